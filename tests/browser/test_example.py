"""The example in Chromium: two people, a restart, a phone, a keyboard; and its picture."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from support import ROOT, Process, wait_until
from support.chromium import Browser, Page
from support.servers import serve_by

EXAMPLE = ROOT / "example_flask_app"
PICTURE = ROOT / "docs" / "images" / "two-windows.png"
#: What the picture was taken of. With this variable set the tests take it anew.
DIGEST = PICTURE.with_suffix(".sha256")
TAKES_PICTURE = bool(os.environ.get("TAKE_PICTURE"))

#: Tries to run if it is ever taken for HTML.
SCRIPT = "<img src=x onerror=hit=1>"


def copy_example(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("websocket.json", "__pycache__")
    return shutil.copytree(EXAMPLE, folder / "example", ignore=ignored)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serve_by("run", copy_example(tmp_path_factory.mktemp("example"))) as process:
        yield process


@contextlib.contextmanager
def signed_in(browser: Browser, process: Process, name: str, **context: object) -> Iterator[Page]:
    """Somebody's page, all of it connected; at the end its console has no error."""
    with browser.page(**context) as page:
        sign_in(page, process, name)
        page.until("document.querySelectorAll('.dot[data-state=open]').length === 4")
        yield page
        assert page.errors() == []


def sign_in(page: Page, process: Process, name: str, path: str = "/") -> None:
    page.goto(process.server.url(path))
    page.fill("input[name=name]", name)
    page.click("text=Sign in")


def say(page: Page, text: str) -> None:
    page.fill("#chat-form input", text)
    page.do("press", "#chat-form input", "Enter")


def push(page: Page, role: str, text: str) -> None:
    page.do("select_option", "#push-form select", role)
    page.fill("#push-form input", text)
    page.click("#push-form button")


def test_two_people_see_each_other_and_talk(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, "Ann") as ann:
        with signed_in(browser, example, "Bob") as bob:
            for page in (ann, bob):
                page.until("document.querySelectorAll('.chip').length === 2")
            say(ann, "hello, Bob")
            for page in (ann, bob):
                page.until_text("#chat-log", "hello, Bob")
            assert bob.text("#chat-log .said b") == "Ann"
            say(bob, "hello, Ann")
            ann.until_text("#chat-log", "hello, Ann")
        ann.until_text("#chat-log", "Bob left")
        ann.until("document.querySelectorAll('.chip').length === 1")


def test_push_from_the_view_reaches_the_role_and_nobody_else(
    browser: Browser, example: Process
) -> None:
    with signed_in(browser, example, "Ann") as ann, signed_in(browser, example, "Bob") as bob:
        bob.do("select_option", "#role", "reader")
        bob.until_text("#overview-rows", "reader")
        push(ann, "editor", "for editors")
        ann.until_text("#push-log", "Ann: for editors")
        push(bob, "reader", "for readers")
        bob.until_text("#push-log", "Bob: for readers")
        # What is sent to one client arrives in order: nothing else is on its way.
        assert ann.text("#push-log").split("\n") == ["Ann: for editors"]
        assert bob.text("#push-log").split("\n") == ["Bob: for readers"]


def test_feed_starts_with_the_first_and_ends_with_the_last(page: Page, example: Process) -> None:
    def tick() -> int:
        about = page.text("#feed-about").split()
        return int(about[1]) if about[0] == "tick" else 0

    page.goto(example.server.url())
    wait_until(lambda: tick() > 1)
    page.click("text=Pause")
    wait_until(lambda: json.loads(example.server.get("/health").text) == {"connections": 0})
    before = tick()
    page.click("text=Resume")
    wait_until(lambda: 0 < tick() < before)
    assert page.errors() == []


def test_table_shows_who_comes_and_goes(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, "Ann") as ann:
        ann.until("document.querySelectorAll('#overview-rows tr').length === 4")
        with signed_in(browser, example, "Bob"):
            ann.until("document.querySelectorAll('#overview-rows tr').length === 8")
            ann.until_text("#overview-rows", "Bob")
            assert "/ws/chat/lobby" in ann.text("#overview-rows")
        ann.until("document.querySelectorAll('#overview-rows tr').length === 4")


def test_page_comes_back_after_a_restart_of_the_server(browser: Browser, tmp_path: Path) -> None:
    folder = copy_example(tmp_path)
    with browser.page() as page:
        with serve_by("run", folder) as process:
            port = process.server.port
            sign_in(page, process, "Ann")
            page.until_text("#state", "live")
        page.until_text("#state", "reconnecting")
        page.until("document.querySelector('#chat-state').title.startsWith('lost (1')")
        with serve_by("run", folder, ["--port", str(port)]):
            page.until_text("#state", "live")
            say(page, "I am back")
            page.until_text("#chat-log", "I am back")
        refused = [error for error in page.errors() if "ERR_CONNECTION_REFUSED" in error]
        assert page.errors() == refused  # while nobody listened, and nothing else


def test_page_asks_for_the_name_again_when_the_server_forgot_it(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_example(tmp_path)
    with browser.page() as page:
        with serve_by("run", folder) as process:
            port = process.server.port
            sign_in(page, process, "Ann")
            page.until_text("#state", "live")
        monkeypatch.setenv("SECRET_KEY", "another")
        with serve_by("run", folder, ["--port", str(port)]):
            page.do("wait_for_selector", "text=What shall the others call you?")


def test_script_in_a_name_or_a_message_is_shown_as_text(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, SCRIPT) as page:
        page.until("document.querySelector('.chip')")
        say(page, f"<script>hit = 1</script>{SCRIPT}")
        push(page, "editor", SCRIPT)
        page.until_text("#push-log", f"{SCRIPT}: {SCRIPT}")
        page.until_text("#chat-log", f"<script>hit = 1</script>{SCRIPT}")
        for place in ("#people", "#overview-rows", "#chat-log .said b", "header"):
            page.until_text(place, SCRIPT)
        assert page.evaluate("typeof hit") == "undefined"
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_policy_stops_a_script_that_got_in_all_the_same(page: Page, example: Process) -> None:
    page.goto(example.server.url())
    page.evaluate("""() => {
      document.body.append(Object.assign(document.createElement("script"), { text: "hit = 1" }));
    }""")
    assert page.evaluate("typeof hit") == "undefined"
    assert "Content Security Policy" in " ".join(page.errors())


def test_keyboard_is_enough(page: Page, example: Process) -> None:
    page.goto(example.server.url())
    page.do("keyboard.type", "Ann")  # the field has the focus
    page.do("keyboard.press", "Enter")
    page.do("wait_for_selector", ".chip")
    reached = {}
    for _ in range(24):  # past the last and around
        page.do("keyboard.press", "Tab")
        name, outline = page.evaluate("""() => {
          const focused = document.activeElement;
          return [focused.closest("[id]")?.id, getComputedStyle(focused).outlineStyle];
        }""")
        reached[name] = outline
        if page.evaluate("document.activeElement.matches('#chat-form input')"):
            page.do("keyboard.type", "without a mouse")
            page.do("keyboard.press", "Enter")
    page.until_text("#chat-log", "without a mouse")
    stops = {"chat-log", "chat-form", "feed-switch", "role", "push-log", "push-form"}
    assert {reached.get(name) for name in stops} == {"solid"}  # seen, each of them


def test_who_has_signed_in_can_write_at_once(page: Page, example: Process) -> None:
    sign_in(page, example, "Ann")
    page.until_text("#state", "live")
    page.do("keyboard.type", "no click before")
    page.do("keyboard.press", "Enter")
    page.until_text("#chat-log", "no click before")


def test_who_signs_out_does_so_in_each_window(browser: Browser, example: Process) -> None:
    # Their consoles may say 403: a socket that came back before its page had heard.
    with browser.page() as ann, browser.page(beside=ann) as second:
        sign_in(ann, example, "Ann")
        second.goto(example.server.url())
        for page in (ann, second):
            page.until_text("#state", "live")
        second.click("text=Sign out")
        for page in (ann, second):
            page.do("wait_for_selector", "text=What shall the others call you?")


def test_second_window_of_one_person_is_no_news(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, "Bob") as bob, signed_in(browser, example, "Ann") as ann:
        bob.until_text("#chat-log", "Ann came")
        with browser.page(beside=ann) as second:
            second.goto(example.server.url())
            second.until("document.querySelectorAll('.chip').length === 2")
            assert "Nothing was said yet." in empty_state(second, "#chat-log")
        say(ann, "still here")
        bob.until_text("#chat-log", "still here")
        assert bob.text("#chat-log").split("\n").count("Ann came") == 1
        assert "Ann left" not in bob.text("#chat-log")


def empty_state(page: Page, selector: str) -> str:
    """What a list shows that has no entry."""
    script = "(selector) => getComputedStyle(document.querySelector(selector), '::before').content"
    return str(page.evaluate(script, selector))


def test_lists_say_what_is_to_come(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, "Ann") as page:
        assert "appears here" in empty_state(page, "#push-log")
        for place in ("#chat-log", "#overview-rows"):  # what they show once they are empty
            page.evaluate("(place) => document.querySelector(place).replaceChildren()", place)
            assert "yet." in empty_state(page, place)


def test_push_says_whom_it_reached(browser: Browser, example: Process) -> None:
    with signed_in(browser, example, "Ann") as ann:
        push(ann, "reader", "is anyone there?")
        ann.until_text("#push-told", "Nobody has the role reader now.")
        assert ann.do("input_value", "#push-form input") == "is anyone there?"
        push(ann, "editor", "to myself")
        ann.until_text("#push-told", "Pushed to 1 page.")
        assert ann.do("input_value", "#push-form input") == ""


def test_what_cannot_be_sent_says_so_and_stays(browser: Browser, tmp_path: Path) -> None:
    with browser.page() as page:
        with serve_by("run", copy_example(tmp_path)) as process:
            sign_in(page, process, "Ann")
            page.until_text("#state", "live")
        page.until_text("#state", "reconnecting")
        say(page, "lost?")
        page.until_text("#chat-told", "Not sent")
        push(page, "editor", "lost?")
        page.until_text("#push-told", "Not pushed")
        for form in ("#chat-form", "#push-form"):
            assert page.do("input_value", f"{form} input") == "lost?"


def test_push_of_who_is_signed_out_asks_for_the_name(page: Page, example: Process) -> None:
    sign_in(page, example, "Ann")
    page.until_text("#state", "live")
    page.do("context.clear_cookies")
    push(page, "editor", "for whom?")
    page.do("wait_for_selector", "text=What shall the others call you?")


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        ("a/b", "a-b"),
        ("/", "lobby"),
        ("..", "lobby"),
        ("a%2Fb?c#d\\e", "a%2Fb?c#d\\e"),
        ("tea & more", "tea-&-more"),
        ("Żółw 🐢", "Żółw-🐢"),
        ("%", "%"),
        ("\x00\x7f;,", "\ufffd\x7f;,"),
        ("W" * 3000, "W" * 40),
    ],
)
def test_any_room_can_be_entered(page: Page, example: Process, room: str, shown: str) -> None:
    sign_in(page, example, "Ann", f"/?room={quote(room, safe='')}")
    page.until_text("#state", "live")
    say(page, "is it here?")
    page.until_text("#chat-log", "is it here?")
    assert page.evaluate("document.body.dataset.room") == shown
    page.do("reload")
    page.until_text("#state", "live")
    assert page.errors() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360])
def test_page_fits_a_phone_and_can_be_read(
    browser: Browser, example: Process, scheme: str, width: int
) -> None:
    phone = {"viewport": {"width": width, "height": 640}, "is_mobile": True, "has_touch": True}
    with signed_in(browser, example, "A" * 30, color_scheme=scheme, **phone) as page:
        page.goto(example.server.url(f"/?room={'W' * 200}"))
        say_when_live(page, "W" * 500)
        push(page, "editor", "W" * 500)
        page.until(
            "document.querySelector('#chat-log .said') && document.querySelector('#push-log .said')"
        )
        page.until_text("#overview-rows", "editor")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate(CUT) == []
        assert page.evaluate(SQUASHED) == []
        assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_errors_look_like_the_page(browser: Browser, example: Process, scheme: str) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}
    with browser.page(color_scheme=scheme, **phone) as page:
        page.goto(example.server.url("/nowhere"))
        assert page.text("h2") == "Not Found"
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        assert page.evaluate(CONTRAST) == []
        page.click("text=Back to the page")
        page.until_text("#state", "live")


def say_when_live(page: Page, text: str) -> None:
    page.until_text("#state", "live")
    say(page, text)


#: The cells of the table whose content is not seen whole, or only behind a scroll bar.
CUT = """() => [...document.querySelectorAll("#overview-rows td")]
  .filter((cell) => {
    const card = cell.closest(".card").getBoundingClientRect();
    return cell.scrollWidth > cell.clientWidth || cell.getBoundingClientRect().right > card.right;
  })
  .map((cell) => cell.outerHTML)"""

#: The dots that are not round.
SQUASHED = """() => [...document.querySelectorAll(".dot")]
  .filter((dot) => dot.offsetWidth < 9 || dot.offsetWidth !== dot.offsetHeight)
  .map((dot) => `${dot.id} ${dot.offsetWidth} ${dot.offsetHeight}`)"""

#: The dots and fields that a screen reader has no name for.
UNNAMED = """() => [...document.querySelectorAll("[role=img], input:not([type=hidden]), select")]
  .filter((each) => !each.ariaLabel && !each.labels?.[0]?.textContent.trim())
  .map((each) => each.outerHTML)"""

#: The texts whose contrast is below 4.5 to 1, and the borders of what can be used below 3 to 1
#: (WCAG 2.2, 1.4.3 and 1.4.11). A button without a border is seen by its ground.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = ([r, g, b]) => [r, g, b]
    .map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgb(color)[3] ? color : back(element.parentElement);
  };
  const contrast = (...colors) => {
    const pair = colors.map((color) => luminance(rgb(color)));
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const texts = [...document.querySelectorAll("body *")]
    .filter((each) => [...each.childNodes].some(isText))
    .filter((each) => contrast(getComputedStyle(each).color, back(each)) < 4.5);
  const edge = (each) => {
    const { borderTopColor, backgroundColor } = getComputedStyle(each);
    return rgb(borderTopColor)[3] ? borderTopColor : backgroundColor;
  };
  const fields = [...document.querySelectorAll("input:not([type=hidden]), select, button")]
    .filter((each) => contrast(edge(each), back(each.parentElement)) < 3);
  return [...texts, ...fields].map((each) => each.outerHTML.slice(0, 100));
}"""


# -- the picture in the README ---------------------------------------------------------------------


def digest() -> str:
    """Of what the page is made of."""
    parts = sorted(
        file for folder in ("static", "templates") for file in (EXAMPLE / folder).iterdir()
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in parts)).hexdigest()


def test_picture_of_two_windows_is_of_this_page(
    browser: Browser, example: Process, tmp_path: Path
) -> None:
    window = {"viewport": {"width": 720, "height": 810}}
    with (
        signed_in(browser, example, "Ann", color_scheme="light", **window) as ann,
        signed_in(browser, example, "Bob", color_scheme="dark", **window) as bob,
    ):
        bob.do("select_option", "#role", "reader")
        say(ann, "Good morning! Is the release out?")
        bob.until_text("#chat-log", "release")
        say(bob, "In ten minutes. Watch the feed.")
        ann.until_text("#chat-log", "ten minutes")
        push(ann, "editor", "The draft is ready")
        push(bob, "reader", "Chapter 3 is online")
        ann.until_text("#push-log", "draft")
        bob.until_text("#push-log", "Chapter")
        if TAKES_PICTURE:
            wait_until(lambda: int(ann.text("#feed-about").split()[1]) > 40, timeout=60)
        files = [tmp_path / f"{name}.png" for name in ("ann", "bob")]
        for page, file in zip((ann, bob), files, strict=True):
            page.evaluate("document.activeElement.blur()")
            page.do("screenshot", path=str(file))
        show_side_by_side(browser, files, tmp_path / "both.png")
    if TAKES_PICTURE:
        shutil.copyfile(tmp_path / "both.png", PICTURE)
        DIGEST.write_text(digest() + "\n", encoding="ascii")
    hint = "the page has changed: look at it after TAKE_PICTURE=1 pytest tests/browser"
    assert DIGEST.read_text(encoding="ascii").strip() == digest(), hint
    assert png_size(PICTURE) == png_size(tmp_path / "both.png")


def show_side_by_side(browser: Browser, files: list[Path], target: Path) -> None:
    """Puts two screenshots into one picture."""
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for file in files
    )
    style = """
      body { margin: 0; display: flex; gap: 24px; padding: 24px; background: #8487a8; }
      img { width: 720px; border-radius: 12px; box-shadow: 0 6px 24px #0008; }
    """
    with browser.page(viewport={"width": 1512, "height": 858}) as page:
        page.do("set_content", f"<style>{style}</style>{images}")
        page.do("screenshot", path=str(target))


def png_size(file: Path) -> tuple[int, int]:
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
