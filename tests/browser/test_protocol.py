"""What Chromium, which is nobody's test client, makes of our handshake, frames and close codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from support import Server, serving, wait_until
from support.chromium import Browser, Page
from wsmiddleware import WebSocketListener, WebSocketMiddleware, websocket_info

#: A reason of 123 bytes.
LONGEST = "ü€😀" + "x" * 114

#: What pages in files send as `Origin`.
LISTED = "null"

#: Opens a socket, and gives once it is closed what came and how it ended.
SCRIPT = """
([path, messages, code, reason]) => new Promise((resolve) => {
  const socket = window.socket = new WebSocket(path);
  socket.binaryType = "arraybuffer";
  const got = [];
  const said = () => ({ extensions: socket.extensions, protocol: socket.protocol });
  socket.onopen = () => messages.forEach((message) => socket.send(message));
  socket.onmessage = ({ data }) => {
    got.push(typeof data === "string" ? data : Array.from(new Uint8Array(data)));
    if (code !== null && got.length === messages.length)
      socket.close(...[code, reason].filter((value) => value !== undefined && value !== 0));
  };
  socket.onclose = (event) => resolve({
    got, ...said(), code: event.code, reason: event.reason, wasClean: event.wasClean,
  });
})
"""


class Talk(WebSocketListener):
    """Echoes; closes or drops the connection when asked to."""

    subprotocols = ("talk.v2", "talk.v1")
    log: ClassVar[list[tuple[int, str]]] = []

    def on_message(self, wsclient: Any, message: Any) -> Any:
        if not isinstance(message, str) or not message.startswith("close "):
            return message
        _, code, reason = message.split(" ", 2)
        wsclient.close(int(code), reason)
        return None

    def on_close(self, wsclient: Any, reason_phrase: str) -> None:
        self.log.append((wsclient.close_code, reason_phrase))


def blank(environ: Any, start_response: Any) -> Iterable[bytes]:
    """A page that may connect to its own site."""
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<!doctype html><link rel=icon href=data:,><title>blank</title>"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    middleware = WebSocketMiddleware(blank, config=False)
    middleware.register("talk", Talk)
    allowed = ["same-origin", LISTED]
    listed = WebSocketMiddleware(
        middleware, config=False, prefix="/listed", allowed_origins=allowed
    )
    listed.register("talk", Talk)
    with serving(listed) as server:
        yield server


@pytest.fixture
def log() -> list[tuple[int, str]]:
    """Code and reason of each connection that has ended, as `on_close` was told."""
    Talk.log.clear()
    return Talk.log


@pytest.fixture(scope="module")
def blank_page(browser: Browser, server: Server) -> Iterator[Page]:
    with browser.page() as page:
        page.goto(server.url())
        yield page


def talk(page: Page, *messages: str, code: int | None = None, reason: str | None = None) -> Any:
    """A connection of the page that sends, and closes when as many came back (0: no code)."""
    arguments = ["/ws/talk", messages, code, *([] if reason is None else [reason])]
    return page.evaluate(SCRIPT, arguments)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *[(code, "") for code in (1000, 1001, 1002, 1003, 3000)],
        *[(code, f"as {code}") for code in range(1007, 1015)],
        (4999, LONGEST),
    ],
)
def test_close_arrives_as_the_server_sent_it(
    blank_page: Page, log: list[tuple[int, str]], code: int, reason: str
) -> None:
    end = talk(blank_page, f"close {code} {reason}")
    assert (end["code"], end["reason"], end["wasClean"]) == (code, reason, True)
    wait_until(lambda: log)
    assert [code for code, _ in log] == [code]
    assert blank_page.errors() == []


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (3333, "done"), (4999, "ü€😀" + "x" * 114)]
)
def test_close_arrives_as_chromium_sent_it(
    blank_page: Page, log: list[tuple[int, str]], code: int, reason: str
) -> None:
    end = talk(blank_page, "hi", code=code, reason=reason)
    assert (end["code"], end["reason"], end["wasClean"]) == (code, reason, True)
    wait_until(lambda: log)
    assert log == [(code, reason)]


def test_close_without_a_code_is_1005_at_both_ends(
    blank_page: Page, log: list[tuple[int, str]]
) -> None:
    assert talk(blank_page, "hi", code=0)["code"] == 1005
    wait_until(lambda: log)
    assert log == [(1005, "")]


def test_page_that_is_left_closes_with_1001(
    page: Page, server: Server, log: list[tuple[int, str]]
) -> None:
    page.goto(server.url())
    page.evaluate("() => { new WebSocket('/ws/talk') }")
    wait_until(lambda: websocket_info().instances)
    page.goto("about:blank")
    wait_until(lambda: log)
    assert log == [(1001, "")]


def test_compression_is_negotiated_and_messages_survive_it(blank_page: Page) -> None:
    messages = ["a" * 100_000, "ü€😀" * 1000, "", "short"]
    end = talk(blank_page, *messages, code=1000)
    assert end["got"] == messages
    offered = {part.strip() for part in end["extensions"].split(";")}
    assert offered >= {
        "permessage-deflate",
        "server_no_context_takeover",
        "client_no_context_takeover",
    }


def test_first_common_subprotocol_of_the_server_is_chosen(blank_page: Page) -> None:
    chosen = """() => new Promise((resolve) => {
      const socket = new WebSocket("/ws/talk", ["talk.v1", "talk.v2"]);
      socket.onopen = () => { resolve(socket.protocol); socket.close(1000); };
    })"""
    assert blank_page.evaluate(chosen) == "talk.v2"


def test_binary_comes_back(blank_page: Page) -> None:
    script = """() => new Promise((resolve) => {
      const socket = new WebSocket("/ws/talk");
      socket.binaryType = "arraybuffer";
      socket.onopen = () => socket.send(Uint8Array.from({length: 70000}, (_, i) => i % 256));
      socket.onmessage = ({ data }) => {
        resolve(new Uint8Array(data).every((byte, i) => byte === i % 256) && data.byteLength);
        socket.close(1000);
      };
    })"""
    assert blank_page.evaluate(script) == 70000


def test_page_in_a_file_is_let_in_once_it_is_listed_as_the_log_shows_it(
    page: Page, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><title>file</title>", encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate(SCRIPT, [server.ws_url("/ws/talk"), [], None])["code"] == 1006
    assert f"foreign origin '{LISTED}' for host" in caplog.text
    path, own = server.ws_url("/listed/talk"), ["/listed/talk", ["close 4000 own"], None]
    assert page.evaluate(SCRIPT, [path, *own[1:]])["code"] == 4000
    page.goto(server.url())
    assert page.evaluate(SCRIPT, own)["code"] == 4000
    page.goto(server.url().replace("127.0.0.1", "localhost"))
    assert page.evaluate(SCRIPT, [path, [], None])["code"] == 1006


def test_foreign_origin_is_refused(page: Page, server: Server) -> None:
    page.goto(server.url().replace("127.0.0.1", "localhost"))
    end = page.evaluate(SCRIPT, [server.ws_url("/ws/talk"), [], None])
    assert (end["code"], end["wasClean"]) == (1006, False)
    assert "403" in " ".join(page.errors())
    assert page.evaluate(SCRIPT, ["/ws/talk", ["close 4000 own"], None])["code"] == 4000
