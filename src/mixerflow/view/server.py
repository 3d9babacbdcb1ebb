"""The server of the page: on this machine only, for this page only, with a bound on all it takes.

Whoever can reach a port of this machine can speak to it: other users here, and each page that a
browser here has open. So an answer takes a secret, which only the address that is printed holds;
requests that another page sends, or that name another host (DNS rebinding), are refused before
anything is read; sizes, times and threads are bounded; and no address names a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer
from typing import Any

from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line, printable
from mixerflow.terminal import tell
from mixerflow.view.answers import ROUTES
from mixerflow.view.model import Viewed

HOST = "127.0.0.1"
THREADS = 16
"""Requests at a time; further ones are refused. One at a time uses the model."""
SECONDS = 20.0
"""Time for a request to arrive, and for its answer to be taken."""
_LINGER, _LINGER_BYTES = 2.0, 64 << 20
"""What is still read of a request that was refused, so that its sender hears why."""
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""


class Server(ThreadingHTTPServer):
    """Serves one model's page at 127.0.0.1 until `serve_forever` is left; then `close` it.

    Args:
        viewed: the model.
        port: the port; 0 for a free one.
        seconds: time for a request to arrive, and for its answer to be taken.

    Attributes:
        secret: what an answer takes.

    Raises:
        ConfigError: no such port.
        ResourceError: the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 2 * THREADS

    def __init__(self, viewed: Viewed, port: int = 0, *, seconds: float = SECONDS) -> None:
        if not 0 <= port < 2**16:
            raise ConfigError(f"no port {port}", "--port", "give 1 to 65535, or 0 for a free one")
        folder = resources.files("mixerflow.view")
        self.pages = {
            path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
        }
        self.viewed, self.seconds, self.secret = viewed, seconds, secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(THREADS)
        self.worker = ThreadPoolExecutor(1, "model")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            remedy = "give --port another, or leave it out"
            raise ResourceError(f"no port ({error.strerror})", f"{HOST}:{port}", remedy) from error

    def server_bind(self) -> None:
        """Take the port; HTTP's own method would ask the network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.socket.getsockname()[1]

    @property
    def address(self) -> str:
        """The address to open. A browser sends nothing of what stands after the ``#``."""
        return f"http://{HOST}:{self.server_port}/#{self.secret}"

    @property
    def hosts(self) -> list[str]:
        """The names that this server goes by."""
        names = [f"{name}:{self.server_port}" for name in (HOST, "localhost")]
        return [*names, HOST, "localhost"] if self.server_port == 80 else names

    def close(self) -> None:
        """Give the port back, and end after the work that the model is at."""
        self.server_close()
        self.worker.shutdown(cancel_futures=True)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread of its own, if there is one left."""
        if self._free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could be started
                self._free.release()
                raise
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer, and give the thread back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing of a connection that broke."""


class _Refused(Exception):
    """A request that is not answered: with a status, and a line that says why."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        self.status, self.line = status, line
        super().__init__(line)


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] - the only one there is
    server_version, sys_version = "mixerflow", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Timed(self.connection, self.server.seconds))

    def do_GET(self) -> None:
        """Send the page, or one of its two files."""
        try:
            self._check()
            if self.path not in self.server.pages:
                raise _Refused(HTTPStatus.NOT_FOUND, "no such page")
        except _Refused as refused:
            self.send_error(refused.status, refused.line)
        else:
            self._send(HTTPStatus.OK, *self.server.pages[self.path])

    def do_POST(self) -> None:
        """Send what a route answers to the request's body."""
        try:
            self._check()
            answer = self._answer(self._body())
        except _Refused as refused:
            self.send_error(refused.status, refused.line)
            self._linger()
        else:
            self._send(HTTPStatus.OK, answer, "application/json")

    def _check(self) -> None:
        """Refuse what another page sends, or what names another host."""
        named = self.headers.get_all("Host", [])
        if len(named) != 1 or named[0].lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "a request to another host")
        for origin in self.headers.get_all("Origin", []):
            if origin.lower() != f"http://{named[0].lower()}":
                raise _Refused(HTTPStatus.FORBIDDEN, "a request of another page")
        for site in self.headers.get_all("Sec-Fetch-Site", []):
            if site not in ("same-origin", "none"):
                raise _Refused(HTTPStatus.FORBIDDEN, "a request of another page")

    def _body(self) -> bytes:
        """Return the whole body of a request to a route, which knows the secret."""
        if self.path not in ROUTES:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such route")
        given = self.headers.get("X-Secret", "").encode("latin-1", "replace")
        if not secrets.compare_digest(given, self.server.secret.encode()):
            line = "without the secret: open the whole address that `mixerflow view` printed"
            raise _Refused(HTTPStatus.FORBIDDEN, line)
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_all("Transfer-Encoding") or len(lengths) != 1:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a body without one Content-Length")
        if not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 20):
            raise _Refused(HTTPStatus.BAD_REQUEST, "a Content-Length that is no number")
        length, largest = int(lengths[0]), ROUTES[self.path].largest(self.server.viewed)
        if length > largest:
            line = f"{length:,} bytes, and at most {largest:,} are taken: give a smaller file"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "a body that does not come") from None
        if len(body) < length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "a body that ends too early")
        return body

    def _answer(self, body: bytes) -> bytes:
        """Return what the route computes, after those that came before."""
        route, viewed = ROUTES[self.path], self.server.viewed
        try:
            value = self.server.worker.submit(route.work, viewed, body).result()
            return json.dumps(value, allow_nan=False).encode()
        except MixerFlowError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except Exception as error:
            line = printable(f"something unforeseen: {type(error).__name__}: {first_line(error)}")
            tell(f"warning: {line}")
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, line) from error

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send one line that says what is wrong; http.server calls it for what it cannot parse."""
        line = printable(message or HTTPStatus(code).phrase)
        self._send(HTTPStatus(code), json.dumps({"error": line}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.close_connection = True
        self.connection.settimeout(self.server.seconds)
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _linger(self) -> None:
        """Read on for a moment: a sender that is cut off would not read the answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            rest = _Timed(self.connection, _LINGER)
            left, buffer = _LINGER_BYTES, bytearray(1 << 16)
            while left > 0 and (count := rest.readinto(buffer)):
                left -= count

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the page shows what is wrong."""


class _Timed(io.RawIOBase):
    """What a connection sends, until so many seconds have passed in all: then a TimeoutError."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._until = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("a request that does not end")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
