"""The programs of docs/frameworks/: the same listener under each of them, over a real socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support import ROOT, Response, Server
from support.servers import serve_by

FOLDER = ROOT / "docs" / "frameworks"
PROGRAMS = sorted(file.stem for file in FOLDER.glob("*_app.py"))


@contextmanager
def serving_program(program: str, folder: Path) -> Iterator[Server]:
    ignored = shutil.ignore_patterns("websocket.json", "__pycache__")
    copy = shutil.copytree(FOLDER, folder / "frameworks", ignore=ignored)
    with serve_by("run", copy, app=f"{program}:app") as process:
        yield process.server


def post(server: Server, path: str, **form: str) -> Response:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = server.request("POST", path, urlencode(form), headers)
    assert answer.status == 204, answer.text
    return answer


def status_of(server: Server, path: str, **headers: str) -> int:
    """The status of a refused handshake."""
    with (
        pytest.raises(InvalidStatus) as refusal,
        server.connect(path, additional_headers=headers),
    ):
        pass
    return refusal.value.response.status_code


@pytest.mark.parametrize("program", PROGRAMS)
def test_listener_and_push_work(program: str, tmp_path: Path) -> None:
    with (
        serving_program(program, tmp_path) as server,
        server.connect("/ws/news") as ann,
        server.connect("/ws/news") as bob,
    ):
        assert ann.recv(5) == bob.recv(5) == "Welcome"
        ann.send("hi")
        assert ann.recv(5) == bob.recv(5) == "hi"
        post(server, "/push", text="ü & more")
        assert ann.recv(5) == bob.recv(5) == "ü & more"
        assert status_of(server, "/ws/news", Origin="http://evil.example") == 403


def test_django_session_is_asked_at_the_handshake(tmp_path: Path) -> None:
    with serving_program("django_app", tmp_path) as server:
        assert status_of(server, "/ws/private") == 403
        cookie = post(server, "/name", name="Ann").headers["Set-Cookie"].split(";")[0]
        forged = cookie.replace("=", "=x", 1)
        assert status_of(server, "/ws/private", Cookie=forged) == 403
        with server.connect("/ws/private", additional_headers={"Cookie": cookie}) as ann:
            assert ann.recv(5) == "Welcome, Ann"


def test_sign_out_ends_the_users_sockets_and_nobody_elses(tmp_path: Path) -> None:
    with serving_program("sign_out", tmp_path) as server:
        assert status_of(server, "/ws/inbox") == 403

        def sign_in(name: str) -> dict[str, str]:
            answer = post(server, "/sign-in", name=name)
            return {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}

        ann, bob = sign_in("Ann"), sign_in("Bob")
        with (
            server.connect("/ws/inbox", additional_headers=ann) as anns,
            server.connect("/ws/inbox", additional_headers=bob) as bobs,
        ):
            anns.send("hi")
            assert anns.recv(5) == "Ann: hi"
            assert server.request("POST", "/sign-out", headers=ann).status == 204
            with pytest.raises(ConnectionClosed) as closed:
                anns.recv(5)
            assert closed.value.rcvd is not None and closed.value.rcvd.reason == "signed out"
            bobs.send("hi")
            assert bobs.recv(5) == "Bob: hi"


def test_socketio_and_plain_websockets_live_beside_us(tmp_path: Path) -> None:
    with (
        serving_program("together_app", tmp_path) as server,
        server.connect("/ws/news") as news,
        server.connect("/echo") as echo,
        server.connect("/socket.io/?EIO=4&transport=websocket") as shout,
    ):
        assert str(shout.recv(5)).startswith('0{"sid":')  # Engine.IO: open
        shout.send("40")  # Socket.IO: connect
        assert str(shout.recv(5)).startswith('40{"sid":')
        for _ in range(3):
            shout.send('421["shout","hello"]')  # an event that asks for an acknowledgement
            echo.send("abc")
            news.send("hi")
            assert shout.recv(5) == '431["HELLO"]'
            assert echo.recv(5) == "cba"
        assert [news.recv(5) for _ in range(4)] == ["Welcome", "hi", "hi", "hi"]


def test_page_shows_every_program() -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    for file in [*FOLDER.glob("*.py"), *FOLDER.glob("websockets/*.py")]:
        assert f"frameworks/{file.relative_to(FOLDER)}\n" in page
