"""The example application in each of the ways to serve it that the README names."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from support import ROOT, Process, Server, running, wait_until
from support.servers import OURS, WAYS, environment
from wsmiddleware import CloseCode

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def copy_example(folder: Path) -> Path:
    """The example without what a developer's own run has left in it."""
    ignored = shutil.ignore_patterns("websocket.json", "__pycache__")
    return shutil.copytree(ROOT / "example_flask_app", folder / "example", ignore=ignored)


@contextmanager
def example(way: str, folder: Path) -> Iterator[Process]:
    """The example served by the README's command, but on a port that is free."""
    copy = copy_example(folder)
    free = [] if way == "run" else ["--bind=127.0.0.1:0"]
    with running([*WAYS[way], *free, "app:app"], cwd=copy, env=environment(copy)) as process:
        yield process


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(way: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with example(way, tmp_path_factory.mktemp(way)) as process:
        yield process.server


def sign_in(server: Server, name: str) -> str:
    """The session's cookie."""
    answer = server.request("POST", "/name", urlencode({"name": name}), FORM)
    assert answer.status == 302
    return answer.headers["Set-Cookie"].split(";")[0]


def chat(server: Server, name: str, room: str) -> AbstractContextManager[ClientConnection]:
    """A connection of someone who has signed in."""
    cookie = sign_in(server, name)
    return server.connect(f"/ws/chat/{room}", additional_headers={"Cookie": cookie})


def said(ws: ClientConnection) -> tuple[object, ...]:
    """The next message, in short."""
    message = json.loads(ws.recv(5))
    return message["event"], message["name"], message.get("text"), message["people"]


def test_readme_names_the_command(way: str) -> None:
    command = " ".join([*WAYS[way], "app:app"]).replace(" --port 0", "")
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_page_allows_itself_only(server: Server) -> None:
    page = server.get("/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "//cdn" not in page.text and "<script>" not in page.text


def test_name_is_escaped_in_the_page(server: Server) -> None:
    page = server.get("/", Cookie=sign_in(server, "<script>alert(1)</script>"))
    assert "&lt;script&gt;" in page.text
    assert "<script>alert" not in page.text


def test_others_in_the_room_hear_what_one_says(server: Server) -> None:
    with chat(server, "Ann", "tea") as ann, chat(server, "Cyd", "coffee") as cyd:
        assert said(ann) == ("came", "Ann", None, ["Ann"])
        assert said(cyd) == ("came", "Cyd", None, ["Cyd"])
        with chat(server, "Bob", "tea") as bob:
            assert said(bob) == said(ann) == ("came", "Bob", None, ["Ann", "Bob"])
            bob.send("<b>hi</b>")
            assert said(bob) == said(ann) == ("said", "Bob", "<b>hi</b>", ["Ann", "Bob"])
        assert said(ann) == ("left", "Bob", None, ["Ann"])
        with pytest.raises(TimeoutError):
            cyd.recv(0.05)


def test_chat_without_a_room_is_in_the_lobby(server: Server) -> None:
    cookie = sign_in(server, "Bob")
    with (
        chat(server, "Ann", "lobby") as ann,
        server.connect("/ws/chat", additional_headers={"Cookie": cookie}) as bob,
    ):
        assert said(ann) == ("came", "Ann", None, ["Ann"])
        assert said(bob) == said(ann) == ("came", "Bob", None, ["Ann", "Bob"])


def test_chat_takes_text_only(server: Server) -> None:
    with chat(server, "Ann", "binary") as ann:
        ann.recv(5)
        ann.send(b"\x00")
        assert code_at_the_end(ann) == CloseCode.UNSUPPORTED_DATA
        assert ann.close_reason == "text only"


def test_chat_refuses_who_has_not_signed_in(way: str, server: Server) -> None:
    assert_refused(way, server, "/ws/chat/lobby")


def test_foreign_origin_is_refused(way: str, server: Server) -> None:
    assert_refused(way, server, "/ws/test", origin="http://evil.example")


def assert_refused(way: str, server: Server, path: str, **options: Any) -> None:
    """403; under the stock worker, whose 101 has gone out before anyone is asked, a close code."""
    if way == "stock":
        with server.connect(path, **options) as ws:
            assert code_at_the_end(ws) == 4403
        return
    with pytest.raises(InvalidStatus) as refusal, server.connect(path, **options):
        pass
    assert refusal.value.response.status_code == 403


def test_text_and_binary_come_back(server: Server) -> None:
    with server.connect("/ws/test") as ws:
        assert ws.recv(5) == "Welcome"
        ws.send("hi")
        assert ws.recv(5) == "ECHO:hi"
        ws.send(b"\x00\xff")
        assert ws.recv(5) == b"\x00\xff"


def test_view_pushes_to_those_who_have_the_role(server: Server) -> None:
    cookie = sign_in(server, "Ann")
    with (
        server.connect("/ws/test?role=editor") as editor,
        server.connect("/ws/test?role=x") as other,
    ):
        assert editor.recv(5) == other.recv(5) == "Welcome"
        assert notify(server, "before", Cookie=cookie) == '{"reached":1}\n'
        assert "Forbidden" in notify(server, "hello")  # nobody may, who is nobody
        assert editor.recv(5) == "Ann: before"
        with pytest.raises(TimeoutError):
            other.recv(0.05)


def notify(server: Server, text: str, **headers: str) -> str:
    """What a push to editors is answered with."""
    return server.request("POST", "/notify/editor", urlencode({"text": text}), FORM | headers).text


def test_push_says_when_nobody_has_the_role(server: Server) -> None:
    assert notify(server, "hello", Cookie=sign_in(server, "Ann")) == '{"reached":0}\n'


def test_sign_out_forgets_the_name(server: Server) -> None:
    signed_out = server.request("POST", "/sign-out", headers={"Cookie": sign_in(server, "Ann")})
    assert "Max-Age=0" in signed_out.headers["Set-Cookie"]


@pytest.mark.parametrize("path", ["/ws/chat/lobby", "/ws/test", "/ws/feed", "/ws/overview"])
def test_sign_out_closes_what_is_open_under_the_name(server: Server, path: str) -> None:
    cookie = sign_in(server, "Ann")
    with (
        server.connect(path, additional_headers={"Cookie": cookie}) as hers,
        chat(server, "Bob", "other") as his,
        server.connect("/ws/test") as nobodys,
    ):
        server.request("POST", "/sign-out", headers={"Cookie": cookie})
        assert code_once_closed(hers) == 4001
        his.send("still here")
        assert {said(his)[0], said(his)[0]} == {"came", "said"}
        assert nobodys.recv(5) == "Welcome"
        nobodys.send("hi")
        assert nobodys.recv(5) == "ECHO:hi"


def test_other_name_takes_the_place_of_the_first(server: Server) -> None:
    cookie = sign_in(server, "Ann")
    with server.connect("/ws/test", additional_headers={"Cookie": cookie}) as ws:
        server.request("POST", "/name", urlencode({"name": "Bob"}), FORM | {"Cookie": cookie})
        assert code_once_closed(ws) == 4001


def code_once_closed(ws: ClientConnection) -> int | None:
    """The code, behind a few messages that were on their way."""
    with suppress(ConnectionClosed):
        for _ in range(8):
            ws.recv(5)
    return ws.close_code


def test_second_window_is_no_second_person(server: Server) -> None:
    with chat(server, "Bob", "windows") as bob:
        assert said(bob) == ("came", "Bob", None, ["Bob"])
        with chat(server, "Ann", "windows") as first:
            assert said(bob) == said(first) == ("came", "Ann", None, ["Ann", "Bob"])
            with chat(server, "Ann", "windows") as second:
                assert said(bob) == said(second) == ("is here", "Ann", None, ["Ann", "Bob"])
            with chat(server, "Ann", "elsewhere") as other:
                assert said(other) == ("came", "Ann", None, ["Ann"])
            first.send("still here")
            assert said(bob) == ("said", "Ann", "still here", ["Ann", "Bob"])
        assert said(bob) == ("left", "Ann", None, ["Bob"])


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/name", 405, "Method Not Allowed"),
        ("POST", "/name", 400, "A name is not only spaces."),
        ("POST", "/notify/editor", 403, "Forbidden"),
    ],
)
def test_error_is_a_page_of_the_application(
    server: Server, method: str, path: str, status: int, words: str
) -> None:
    answer = server.request(method, path, urlencode({"name": "  "}), FORM)
    assert answer.status == status
    assert words in answer.text
    assert "style.css" in answer.text and 'href="/"' in answer.text  # looks alike, leads back
    assert "app.js" not in answer.text  # nothing to connect from there
    assert ("POST" in answer.headers.get("Allow", "")) == (status == 405)


def test_feed_starts_anew_once_nobody_looks(server: Server) -> None:
    for _ in range(2):
        with server.connect("/ws/feed") as ann, server.connect("/ws/feed") as bob:
            assert next_number(ann) == 1
            assert next_number(bob) in (1, 2)  # it may have come a moment later
        wait_until(lambda: json.loads(server.get("/health").text)["connections"] == 0)


def next_number(ws: ClientConnection) -> int:
    """The next tick of the feed; what came before the first look is passed over."""
    message = json.loads(ws.recv(5))
    return int(message["number"]) if "number" in message else next_number(ws)


def test_overview_shows_who_comes_and_goes(server: Server) -> None:
    cookie = sign_in(server, "Ann")
    with server.connect("/ws/overview", additional_headers={"Cookie": cookie}) as overview:

        def shown() -> list[str]:
            return [f"{row['user']} {row['path']}" for row in json.loads(overview.recv(5))]

        # recv() fails when nothing new comes.
        while shown() != ["Ann /ws/overview"]:
            pass
        with chat(server, "Bob", "tea"):
            while shown() != ["Bob /ws/chat/tea", "Ann /ws/overview"]:
                pass
        while shown() != ["Ann /ws/overview"]:
            pass


def test_health_is_plain_http(server: Server) -> None:
    assert server.get("/health").status == 200


def test_listeners_are_a_screen_each() -> None:
    for file in (ROOT / "example_flask_app" / "websockets").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 50, file


@pytest.mark.parametrize("our_way", OURS)
def test_sigterm_tells_every_client(our_way: str, tmp_path: Path) -> None:
    with example(our_way, tmp_path) as process:
        with ExitStack() as stack:
            connect = process.server.connect
            clients = [stack.enter_context(connect("/ws/test")) for _ in range(10)]
            for ws in clients:
                assert ws.recv(5) == "Welcome"
            process.signal(signal.SIGTERM)
            codes = [code_at_the_end(ws) for ws in clients]
        process.wait(3)
    assert codes == [CloseCode.GOING_AWAY] * 10


def code_at_the_end(ws: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        ws.recv(5)
    return ws.close_code
