"""The page's server: answers to its own page, and what it refuses, slow and hostile requests."""

import base64
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

import mixerflow
from mixerflow.cli import main
from mixerflow.errors import ConfigError, ResourceError
from mixerflow.view import ROUTES, Route, Server, server, view_of
from viewed import coded, png_of, small_view


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "run"
    splits = small_view(out, channels=3, classes=False)
    return out, splits, view_of(out, splits)


@contextmanager
def serving(viewed, **settings):
    """A server in a thread."""
    served = Server(viewed, **settings)
    thread = threading.Thread(target=served.serve_forever, args=[0.02])
    thread.start()
    try:
        yield served
    finally:
        served.shutdown()
        thread.join()
        served.close()


@pytest.fixture(scope="module")
def served(made):
    with serving(made[2]) as running:
        yield running


def request(served, method, path, body=None, **headers):
    """Status, headers and body of an answer; a header that is None is left out."""
    link = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    own = {"X-Secret": served.secret} if method == "POST" else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {name: value for name, value in (own | named).items() if value is not None}
    try:
        link.request(method, path, body, sent)
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        link.close()


def asked(served, path, body=None, **given):
    """The answer of a route, which must be good."""
    sent = json.dumps(given) if body is None else body
    status, headers, answer = request(served, "POST", path, sent)
    assert status == 200 and headers["Content-Type"] == "application/json", answer
    return json.loads(answer)


def refused(answer, status, words):
    """One line of JSON, with the headers of every answer."""
    told, headers, body = answer
    line = json.loads(body)["error"]
    assert told == status and words in line and "\n" not in line and "Traceback" not in line
    assert all(headers[name] == value for name, value in server.HEADERS.items())


def answers_afterwards(served, made):
    """The figure of an image is the package's."""
    image = made[1].test.pixels[:1]
    own = mixerflow.bits(mixerflow.load(made[0]), image).bits_per_dim
    told = asked(served, "/score", png_of(image[0]))
    assert told["bits_per_dim"] == pytest.approx(own, abs=1e-5)


def raw(served, data, wait=10.0):
    """All that is answered to bytes."""
    with socket.create_connection(("127.0.0.1", served.server_port), wait) as link:
        link.sendall(data)
        parts = []
        while part := link.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


def test_the_page_comes_with_its_files_and_keeps_others_out(served):
    for path, kind in (("/", "text/html"), ("/view.css", "text/css"), ("/view.js", "text/javas")):
        status, headers, body = request(served, "GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and len(body) > 1000
        assert all(headers[name] == value for name, value in server.HEADERS.items())
        assert served.secret.encode() not in body and "Python" not in headers["Server"]
    policy = server.HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert request(served, "GET", "/")[2].count(b"style=") == 0
    host, port = served.socket.getsockname()
    assert host == "127.0.0.1" and served.address == f"http://127.0.0.1:{port}/#{served.secret}"


def test_every_route_answers(served, made):
    splits = made[1]
    first, second = (coded(each) for each in splits.test.pixels[:2])
    answers_afterwards(served, made)
    assert asked(served, "/about")["shape"] == [3, 8, 8]
    assert asked(served, "/score-fitted", png_of(splits.test.pixels[0]))["scores"]
    assert asked(served, "/map", image=first, map="variance")["map"]
    assert asked(served, "/example", number=1)["image"] == coded_as_here(splits.test.pixels[1])
    drawn = asked(served, "/samples", number=3, temperature=1.0, seed=0, label=-1)
    assert len(drawn["images"]) == 3
    path = asked(served, "/path", first=first, second=second, number=5, way="straight")
    assert len(path["images"]) == 5
    assert len(asked(served, "/neighbours", image=first, number=2)["latents"]) == 2


def coded_as_here(pixels):
    return base64.b64encode(mixerflow.pictures.png_bytes(pixels)).decode()


HOSTS = ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost:PORT.evil"]
HOSTS += ["127.0.0.1:PORT@evil.example", "[::1]:PORT", "0.0.0.0:PORT", ""]


@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_refused(served, host):
    named = host.replace("PORT", str(served.server_port))
    for method, path in (("GET", "/"), ("POST", "/about")):
        refused(request(served, method, path, "{}", Host=named), 403, "another host")


def test_two_hosts_or_none_are_refused(served):
    own = f"Host: 127.0.0.1:{served.server_port}\r\n"
    for head in ("", own * 2, own + "Host: evil.example\r\n"):
        answer = raw(served, f"GET / HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 403 " in answer.split(b"\r\n")[0]
    assert b"another host" in raw(served, b"GET /\r\n\r\n")  # HTTP/0.9
    assert b" 200 " in raw(served, f"GET / HTTP/1.0\r\n{own}\r\n".encode())


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:PORT"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:PORT"},  # the same server, but not the page's own name
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_page_is_refused(served, headers):
    given = {k: v.replace("PORT", str(served.server_port)) for k, v in headers.items()}
    refused(request(served, "POST", "/about", "{}", **given), 403, "another page")
    refused(request(served, "GET", "/", **given), 403, "another page")


def test_the_page_itself_is_heard(served):
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        host = f"{name}:{served.server_port}"
        given = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert request(served, "POST", "/about", "{}", **given)[0] == 200
    assert request(served, "GET", "/", Sec_Fetch_Site="none")[0] == 200


@pytest.mark.parametrize("secret", [None, "", "x", "é", "SECRET "])
def test_without_the_secret_nothing_is_computed(served, secret, monkeypatch):
    monkeypatch.setitem(ROUTES, "/about", Route(lambda *_: pytest.fail("computed")))
    given = secret if secret != "SECRET " else served.secret + "x"
    refused(request(served, "POST", "/about", "{}", X_Secret=given), 403, "without the secret")


PATHS = ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/view.py", "/server.py"]
PATHS += ["/view.css/", "/view.css?x", "/%00", "/view.css%00.png", "*"]


@pytest.mark.parametrize("path", PATHS)
def test_no_address_names_a_file(served, path):
    refused(request(served, "GET", path), 404, "no such page")
    refused(request(served, "POST", path, "{}"), 404, "no such route")


def test_it_is_no_proxy(served):
    refused(request(served, "GET", "http://evil.example/"), 403, "another host")
    own = {"Host": f"127.0.0.1:{served.server_port}"}
    refused(request(served, "GET", "http://evil.example/", **own), 404, "no such page")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT"])
def test_other_methods_are_refused(served, method):
    status, headers, _ = request(served, method, "/")
    assert status == 501 and "Access-Control-Allow-Origin" not in headers


LENGTHS = [("99999999999", 413), ("16777217", 413), ("-1", 400), ("1e3", 400), ("\u0661", 400)]
LENGTHS += [("9" * 5000, 400), ("0x10", 400), ("+5", 400), ("5 5", 400), (" ", 400)]


@pytest.mark.parametrize("length, status", LENGTHS, ids=range(len(LENGTHS)))
def test_lengths_that_cannot_be(served, made, length, status):
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}\r\n"
    head += f"X-Secret: {served.secret}\r\nContent-Length: {length}\r\n\r\n"
    began = time.monotonic()
    answer = raw(served, head.encode() + b"abc")
    assert f" {status} ".encode() in answer.split(b"\r\n")[0], answer
    assert time.monotonic() - began < 9  # nothing waited for what the length promised
    answers_afterwards(served, made)


def test_a_body_too_large_is_told_while_it_is_sent(served):
    answer = request(served, "POST", "/score", b"x" * (16 << 20) + b"x")
    refused(answer, 413, "16,777,217 bytes, and at most 16,777,216 are taken: give a smaller file")
    refused(request(served, "POST", "/samples", b" " * 10**6), 413, "are taken")


def test_chunks_and_no_length_are_refused(served, made):
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}\r\n"
    head += f"X-Secret: {served.secret}\r\n"
    for more in ("", "Transfer-Encoding: chunked\r\n", "Content-Length: 3\r\n" * 2):
        chunk = b"3\r\nabc\r\n0\r\n\r\n" if "chunked" in more else b""
        answer = raw(served, (head + more + "\r\n").encode() + chunk)
        assert b" 411 " in answer.split(b"\r\n")[0]
    both = head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 411 " in raw(served, both.encode() + b"3\r\nabc\r\n0\r\n\r\n").split(b"\r\n")[0]
    answers_afterwards(served, made)


def bomb(side=30_000):
    """A small PNG file of very many pixels."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def hostile_files():
    picture = Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))
    pixels = np.moveaxis(np.asarray(picture), -1, 0)
    jpeg, png = png_of(pixels, "JPEG"), png_of(pixels)
    return {
        "empty": (b"", "an empty file"),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "SVG is a format"),
        "html": (b"<script>alert(1)</script>" * 100, "not an image file"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ""),
        "bomb": (bomb(), "too many pixels for one image"),
        "cut JPEG": (jpeg[: len(jpeg) // 2], "truncated or corrupt"),
        "cut PNG": (png[: len(png) // 2], "truncated or corrupt"),
        "changed PNG": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "truncated or corrupt"),
        "head alone": (png[:20], "truncated or corrupt"),
        "GIF": (b"GIF89a" + bytes(50), ""),
        "noise": (os.urandom(10_000), "not an image file"),
    }


@pytest.mark.parametrize("name", hostile_files())
def test_files_of_anybody_are_one_line(served, made, name):
    body, words = hostile_files()[name]
    for route in ("/score", "/score-fitted"):
        refused(request(served, "POST", route, body), 400, words)
    answers_afterwards(served, made)


def test_alpha_and_16_bits_are_read_or_refused(served, tmp_path):
    for name, picture in {
        "clear": Image.new("RGBA", (9, 9), (1, 2, 3, 128)),
        "deep": Image.fromarray(np.full((9, 9), 4096, np.uint16)),
        "palette": Image.new("P", (9, 9)),
        "two levels": Image.new("1", (9, 9)),
    }.items():
        picture.save(tmp_path / f"{name}.png")
        body = (tmp_path / f"{name}.png").read_bytes()
        refused(request(served, "POST", "/score", body), 400, "the image: ")
        assert asked(served, "/score-fitted", body)["dims"] == 192


@pytest.mark.parametrize(
    "body, words",
    [
        (b"[" * 20_000, "no JSON (nested too deeply)"),
        (b'{"number": NaN}', "not finite"),
        (b'{"number": ' + b"9" * 4000 + b"}", "no JSON"),
        (b'{"number": 1000000000, "label": -1}', "1000000000 is no number"),
        (b'{"number": 4, "label": -1, "seed": 0, "temperature": 1e999}', "not finite"),
        (b'{"number": 4, "label": -1, "seed": 0, "temperature": null}', "nothing is no temperat"),
        (b'{"number": 4, "label": 0, "seed": 0, "temperature": 1}', "0 is no label"),
        (b'{"__proto__": 1}', "nothing is no number"),
        (b"\x00", "no JSON"),
    ],
)
def test_json_of_anybody_is_one_line(served, made, body, words):
    refused(request(served, "POST", "/samples", body), 400, words)
    answers_afterwards(served, made)


def test_what_nobody_foresaw_is_one_line_without_a_traceback(served, made, monkeypatch, capfd):
    def fails(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(ROUTES, "/about", Route(fails))
    refused(request(served, "POST", "/about", "{}"), 500, "unforeseen: RuntimeError: first line")
    monkeypatch.setitem(ROUTES, "/about", Route(lambda *_: {"a": float("nan")}))
    refused(request(served, "POST", "/about", "{}"), 500, "unforeseen: ValueError")
    told = capfd.readouterr().err
    assert told.count("warning: something unforeseen") == 2 and "Traceback" not in told
    answers_afterwards(served, made)


def test_slow_senders_are_cut_off_and_others_are_answered(made):
    with serving(made[2], seconds=1.0) as served:
        own = f"Host: 127.0.0.1:{served.server_port}\r\nX-Secret: {served.secret}\r\n"
        slow = [b"", b"GET", b"POST /score HTTP/1.1\r\n" + own.encode()]
        slow += [f"POST /score HTTP/1.1\r\n{own}Content-Length: 900\r\n\r\n".encode()] * 2
        links = [socket.create_connection(("127.0.0.1", served.server_port), 9) for _ in slow]
        for link, begun in zip(links, slow, strict=True):
            link.sendall(begun)
        began, alive = time.monotonic(), {*links}
        answers_afterwards(served, made)  # meanwhile
        told = []
        while alive and time.monotonic() - began < 8:
            for link in [*alive]:
                try:
                    link.sendall(b"x")  # a byte now and then keeps none of them
                    link.settimeout(0.05)
                    if part := link.recv(1000):
                        told.append(part)
                        continue
                except TimeoutError:
                    continue
                except OSError:
                    pass
                alive.discard(link)
        assert not alive
        assert sum(b" 408 " in each for each in told) == 2
        for link in links:
            link.close()
        answers_afterwards(served, made)


def test_idle_connections_take_a_bounded_number_of_threads(made):
    before = threading.active_count()
    with serving(made[2], seconds=2.0) as served:
        links = [
            socket.create_connection(("127.0.0.1", served.server_port), 9)
            for _ in range(3 * server.THREADS)
        ]
        time.sleep(0.5)
        assert threading.active_count() <= before + server.THREADS + 2
        told = [link.recv(100) for link in links[server.THREADS :]]
        assert all(b" 503 " in each for each in told)
        for link in links:
            link.close()
        until = time.monotonic() + 20
        while threading.active_count() > before + 2 and time.monotonic() < until:
            time.sleep(0.05)
        answers_afterwards(served, made)


def test_requests_queue_for_the_model(served, made, monkeypatch):
    at_once, most = [], []

    def work(viewed, body):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.05)
        at_once.pop()
        return {"thread": threading.current_thread().name}

    monkeypatch.setitem(ROUTES, "/about", Route(work))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(asked(served, "/about"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and max(most) == 1 and {a["thread"] for a in answers} == {"model_0"}


def test_ports_that_cannot_be_had(made, served):
    with pytest.raises(ResourceError, match="no port"):
        Server(made[2], served.server_port)
    for port in (-1, 65536):
        with pytest.raises(ConfigError, match=f"no port {port}"):
            Server(made[2], port)


@pytest.mark.parametrize(
    "words, code, line",
    [
        (["--port", "70000"], 2, "no port 70000: --port: give 1 to 65535, or 0 for a free one"),
        (["--neighbours", "0"], 2, "0 images: --neighbours: give at least 1"),
        (["--data", "/no/such"], 3, "/no/such"),
        (["--data", "fashion-mini"], 3, "images are (1, 28, 28), the run's are (3, 8, 8)"),
        (["--prot", "1"], 2, "did you mean --port?"),
    ],
)
def test_mistakes_are_one_line(made, capsys, words, code, line):
    assert main(["view", str(made[0]), *words]) == code
    told = capsys.readouterr()
    assert told.out == "" and line in told.err.splitlines()[-1]
    assert told.err.count("error: ") == 1


def test_a_port_in_use_is_one_line(made, served, capsys):
    assert main(["view", str(made[0]), "--port", str(served.server_port)]) == 5
    assert "no port (Address already in use)" in capsys.readouterr().err


ENDS = [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number, code", ENDS)
def test_the_command_serves_until_a_signal(made, number, code, tmp_path):
    words = [sys.executable, "-m", "mixerflow", "view", str(made[0]), "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes, cwd=tmp_path)
    try:
        address = process.stdout.readline().strip()
        start, _, secret = address.partition("/#")
        link = http.client.HTTPConnection(start.removeprefix("http://"), timeout=60)
        link.request("POST", "/about", "{}", {"X-Secret": secret})
        assert json.loads(link.getresponse().read())["shape"] == [3, 8, 8]
        link.close()
        process.send_signal(number)
        said, told = process.communicate(timeout=60)
        assert process.returncode == code and said == ""
        assert told.splitlines()[-1].endswith("Ctrl-C ends") and "Traceback" not in told
    finally:
        process.kill()
        process.communicate()
