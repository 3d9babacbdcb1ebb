"""The page in a real browser: dropped files, keys, a phone, and the words for what is wrong."""

import base64
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import mixerflow
from browser import Browser, chromium
from mixerflow.evaluate import draw_values
from mixerflow.view import ROUTES, Route, Server, view_of
from viewed import decoded, png_of, small_view

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium is installed"),
]
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""
IDLE = "!document.querySelector('[aria-busy]')"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "run"
    return out, small_view(out)


@pytest.fixture(scope="module")
def served(made):
    running = Server(view_of(*made))
    thread = threading.Thread(target=running.serve_forever, args=[0.02])
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"), patience=120)
    running.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    yield running
    running.close()


@pytest.fixture
def page(browser, served):
    """The page, just opened; nothing may be wrong with it in the end."""
    browser.open("about:blank")
    browser.events.clear()
    browser.open(served.address)
    browser.wait(f"document.querySelectorAll('#samples img').length === 16 && {IDLE}")
    yield browser
    assert browser.run("violations") == []
    bad = [each for each in browser.complaints() if "400 (Bad Request)" not in json.dumps(each)]
    assert bad == []


def text(page, name):
    return page.run(f"document.getElementById('{name}').textContent")


def shown(page, selector):
    """The pixels of an image that the page shows."""
    return decoded(page.run(f"document.querySelector('{selector}').src").partition(",")[2])


def drop(page, content, name="dropped.png"):
    """Drop a file on the page, and wait for the end."""
    data = base64.b64encode(content).decode()
    page.run(f"""{{
        const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], {json.dumps(name)}));
        const settings = {{ dataTransfer: given, bubbles: true, cancelable: true }};
        const target = document.getElementById("drop");
        window.stopped = [
            !target.dispatchEvent(new DragEvent("dragover", settings)),
            !target.dispatchEvent(new DragEvent("drop", settings)),
        ];
    }}""")
    assert page.run("stopped") == [True, True]  # the browser does not open the file itself
    page.wait(IDLE)


def error(page, section="one"):
    return page.run(f"document.querySelector('#{section} .error').textContent")


def test_a_dropped_image_shows_the_packages_figures(page, made, tmp_path):
    image = made[1].test.pixels[:1]
    own = mixerflow.Scorer(made[0])(image)
    drop(page, png_of(image[0]))
    bits = float(own["bits_per_dim"][0])
    assert text(page, "bits") == f"{bits:.3f}"
    assert np.array_equal(shown(page, "#image"), image[0])
    assert shown(page, "#map").shape == (3, 8, 8)
    rows = page.run("[...document.querySelectorAll('#files tr')].map((each) => each.innerText)")
    cells = [row.split("\t") for row in rows]
    assert cells[0] == ["the model, ideal", f"{bits * 8:,.0f}", f"{bits:.3f}"]
    for row, codec in zip(cells[1:], ("png", "webp"), strict=True):
        length = mixerflow.pictures.codec_bits(image, codec, sheet=False)
        assert row[1:] == [f"{length * 8:,.0f}", f"{length:.3f}"]
    bars = page.run("[...document.querySelectorAll('#class-bars .share')].map((e) => e.innerText)")
    shares = [float(bar.removesuffix(" %")) / 100 for bar in bars]
    assert shares == pytest.approx([own[f"p_{k}"][0] for k in made[1].test.classes], abs=1e-3)
    words = text(page, "verdict")
    flagged = bool(own["outlier_complexity"][0])
    assert words.startswith("An outlier by" if flagged else "No outlier by complexity")
    assert f"{own['score_complexity'][0]:.3f} is" in words
    labels = page.run("[...document.querySelectorAll('#histograms svg')].map((e) => e.ariaLabel)")
    assert len(labels) == 2 and f"this image {bits:.3f}" in labels[1]
    assert "40 inside images" in labels[0]
    assert text(page, "image-name") == "dropped.png: taken as it is"
    page.screenshot(tmp_path / "desktop.png")
    with Image.open(tmp_path / "desktop.png") as picture:
        assert picture.width == 1280


def test_a_chosen_file_of_another_kind_is_fitted_if_the_box_is_ticked(page, tmp_path):
    ramp = np.add.outer(np.arange(30), np.arange(50)).astype(np.uint8)
    Image.fromarray(np.stack([ramp, ramp, 255 - ramp], -1)).save(tmp_path / "photo.png")
    page.choose_file("#file", tmp_path / "photo.png")
    page.wait(f"{IDLE} && document.getElementById('bits').textContent")
    told = text(page, "image-name")
    assert told == "photo.png: cut to 30 x 30, turned to grey, scaled to 8 x 8"
    page.run("document.getElementById('fit').click()")
    page.choose_file("#file", tmp_path / "photo.png")
    page.wait(f"document.querySelector('#one .error').textContent && {IDLE}")
    assert "an image of 50 x 30, colour, the model's are 8 x 8, grey" in error(page)
    assert text(page, "image-name") == told


def test_wrong_files_are_one_line_and_the_page_goes_on(page, made):
    image = made[1].test.pixels[0]
    for content, words in (
        (b"", "an empty file"),
        (b"<script>document.title = 'hurt'</script>", "not an image file"),
        (png_of(image)[:50], "truncated or corrupt"),
    ):
        drop(page, content, "<img src=x onerror=alert(1)>.png")
        assert words in error(page) and "\n" not in error(page)
    page.run("model.largest = 3")
    drop(page, png_of(image))
    assert "and at most 3 are taken: give a smaller file" in error(page)
    page.run("model.largest = 1 << 24")
    drop(page, png_of(image), "<b>bold</b>.png")
    assert error(page) == "" and text(page, "image-name").startswith("<b>bold</b>.png: taken")
    assert "fast" not in page.run("document.title") and page.run("document.title") != "hurt"


def test_samples_by_keys(page, made):
    flow = mixerflow.load(made[0])

    def drawn():
        ids = ("seed", "label", "temperature")
        words = [page.run(f"document.getElementById('{each}').value") for each in ids]
        label, given = int(words[1]), {"seed": int(words[0]), "temperature": float(words[2])}
        given["label"] = None if label < 0 else label
        return draw_values(flow, 16, **given).images.numpy().astype(int)

    def seen():
        page.wait(IDLE)
        sources = page.run("[...document.querySelectorAll('#samples img')].map((e) => e.src)")
        return np.stack([decoded(each.partition(",")[2]) for each in sources]).astype(int)

    first = seen()
    assert np.abs(first - drawn()).max() <= 1
    page.run("document.getElementById('temperature').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    second = seen()
    assert text(page, "temperature-shown") == "0.95"
    assert np.abs(second - drawn()).max() <= 1 and np.abs(second - first).max() > 1
    page.run("document.getElementById('again').focus()")
    page.press("Enter")
    third = seen()
    assert page.run("document.getElementById('seed').value") == "1"
    assert np.abs(third - drawn()).max() <= 1 and np.abs(third - second).max() > 1
    page.run("document.querySelectorAll('#samples button')[4].focus()")
    page.press(" ")
    page.wait(f"{IDLE} && document.getElementById('bits').textContent")
    assert np.array_equal(shown(page, "#image"), third[4])
    own = mixerflow.Scorer(made[0])(third[4:5].astype(np.uint8))["bits_per_dim"][0]
    assert text(page, "bits") == f"{own:.3f}"
    assert text(page, "image-name").startswith("sample 5 of seed 1, ")


def test_a_path_by_keys_and_neighbours(page, made):
    images = made[1].test.pixels
    assert page.run("document.getElementById('go').disabled")
    drop(page, png_of(images[0]), "first.png")
    drop(page, png_of(images[5]), "second.png")
    for each in ("first", "second"):
        assert text(page, f"{each}-name") == f"{each}.png"
    page.run("document.getElementById('go').click()")
    page.wait(f"document.querySelectorAll('#film img').length === 11 && {IDLE}")
    assert "pixel for pixel" in text(page, "path-words")
    page.run("document.getElementById('place').focus()")
    assert text(page, "place-shown").startswith("6 of 11")
    for _ in range(5):
        page.press("ArrowRight")
    flow = mixerflow.load(made[0])
    words = text(page, "path-words")
    label = next(k for k, name in enumerate(made[1].test.classes) if words.endswith(f"{name}."))
    own = flow.bits_per_dim(images[5:6], torch.tensor([label])).item()
    assert text(page, "place-shown") == f"11 of 11, {own:.3f} bits/dim"
    assert np.array_equal(shown(page, "#frame"), images[5])
    for _ in range(10):
        page.press("ArrowLeft")
    assert np.array_equal(shown(page, "#frame"), images[0])
    page.run("document.getElementById('find').click()")
    page.wait(f"!document.getElementById('neighbours').hidden && {IDLE}", 120)
    by_pixels = np.square(made[1].train.pixels.astype(float) - images[5]).mean((1, 2, 3)) ** 0.5
    words = "[...document.querySelectorAll('#by-pixels figcaption')].map((e) => e.innerText)"
    captions = page.run(words)
    assert len(captions) == 8
    nearest = int(by_pixels.argmin())
    assert captions[0].startswith(f"{by_pixels.min():.1f} image {nearest} (")
    assert np.array_equal(shown(page, "#by-pixels img"), made[1].train.pixels[nearest])
    assert page.run("document.querySelectorAll('#by-latents img').length") == 8


CONTROLS = """[...document.querySelectorAll("input, button, select")]
    .filter((each) => !each.disabled && each.checkVisibility())"""


def test_every_control_is_reached_by_tab_and_has_a_name(page, made):
    drop(page, png_of(made[1].test.pixels[0]))
    drop(page, png_of(made[1].test.pixels[1]))
    page.run("document.getElementById('go').click()")
    page.wait(f"document.querySelectorAll('#film img').length === 11 && {IDLE}")
    page.run(f"window.controls = {CONTROLS}; document.activeElement.blur(); scrollTo(0, 0)")
    count = page.run("controls.length")
    assert count >= 28
    order = []
    for _ in range(count + 1):
        page.press("Tab")
        order.append(page.run("controls.indexOf(document.activeElement)"))
        outlined = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert order[-1] < 0 or outlined != "none"
    assert sorted({*order} - {-1}) == [*range(count)]
    reached = [each for each in order if each >= 0]
    start = reached.index(0)
    assert reached[start : start + count - start] == [*range(count - start)]  # in reading order
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "combobox", "checkbox", "spinbutton", "image", "progressbar")
    named = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert len(named) > 40
    unnamed = [node for node in named if not node.get("name", {}).get("value")]
    assert [(node["role"]["value"], node["ignored"]) for node in unnamed] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, made, width, tmp_path):
    drop(page, png_of(made[1].test.pixels[0]), "a_name_without_any_space_" * 6 + ".png")
    drop(page, png_of(made[1].test.pixels[1]))
    page.run("document.getElementById('go').click()")
    page.wait(f"document.querySelectorAll('#film img').length === 11 && {IDLE}")
    page.run("document.getElementById('find').click()")
    page.wait(f"!document.getElementById('neighbours').hidden && {IDLE}", 120)
    page.size(width)
    page.wait(f"innerWidth === {width}")
    assert page.run("document.documentElement.scrollWidth") <= width
    wide = f"""[...document.querySelectorAll("main *")]
        .filter((each) => each.getBoundingClientRect().right > {width} + 0.5).length"""
    assert page.run(wide) == 0
    page.screenshot(tmp_path / f"{width}.png")


def test_without_the_secret_the_page_says_what_to_open(browser, served):
    browser.open("about:blank")
    browser.open(served.address.partition("#")[0])
    browser.wait("document.querySelector('#one .error').textContent")
    assert "open the whole address that `mixerflow view` printed" in error(browser)


def test_a_server_that_has_ended_is_told(browser, made):
    running = Server(view_of(*made))
    thread = threading.Thread(target=running.serve_forever, args=[0.02])
    thread.start()
    try:
        browser.open("about:blank")
        browser.open(running.address)
        browser.wait(f"document.querySelectorAll('#samples img').length === 16 && {IDLE}")
    finally:
        running.shutdown()
        thread.join()
        running.close()
    browser.run("document.getElementById('again').click()")
    browser.wait("document.querySelector('#draw .error').textContent")
    assert error(browser, "draw") == "no answer: is `mixerflow view` still running?"


EVIL = """<!doctype html><title>evil</title><script>
const at = "ADDRESS";
const tries = [
    fetch(at + "about", { method: "POST", mode: "no-cors", body: "{}" }),
    fetch(at + "about", { method: "POST", body: "{}", headers: { "X-Secret": "SECRET" } }),
    fetch(at + "view.js"),
];
window.told = Promise.allSettled(tries).then((all) => all.map((each) => each.status));
</script><iframe src="ADDRESS"></iframe><img src="ADDRESSview.css">"""


def test_another_page_of_the_same_browser_reaches_nothing(browser, served, monkeypatch):
    """Not even one that has learned the secret."""
    called = []
    monkeypatch.setitem(ROUTES, "/about", Route(lambda *_: called.append(1) or {}))
    address, _, secret = served.address.partition("#")
    content = EVIL.replace("ADDRESS", address).replace("SECRET", secret).encode()

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{other.server_port}/")
            told = browser.run("told")
            framed = browser.run("document.querySelector('iframe').contentDocument")
        finally:
            other.shutdown()
            thread.join()
    assert told[1:] == ["rejected", "rejected"] and called == [] and framed is None
