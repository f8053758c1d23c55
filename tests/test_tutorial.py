"""The ten steps of docs/tutorial.md, taken: after each of them what it promises is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.exceptions import InvalidStatus

from support import ROOT, Server, running
from support.servers import environment, serve_by

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "example_flask_app"

#: Of each step its files: what a block says in its first line that it is, and its text.
STEPS: dict[int, dict[str, str]] = {
    int(number): {
        name: text
        for _, name, text in re.findall(
            r"```(\w+)\n(?:#|//|<!--) (\S+\.\w+)(?: -->)?\n(.*?)```", step, re.DOTALL
        )
    }
    for number, step in re.findall(r"\n## (\d+)\. (.*?)(?=\n## |\Z)", TEXT, re.DOTALL)
}

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def take(folder: Path, last: int) -> Path:
    """The folder after this step."""
    for name in ("websockets", "templates", "static"):
        (folder / name).mkdir()
    for number in range(1, last + 1):
        for name, text in STEPS[number].items():
            (folder / name).write_text(text, encoding="utf-8")
        if number == 9:
            for part in ("static", "templates"):
                for file in (EXAMPLE / part).iterdir():
                    (folder / part / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def after(tmp_path: Path) -> Iterator[Callable[[int], Server]]:
    """`after(step)` serves what there is after that step."""
    with ExitStack() as stack:
        yield lambda step: stack.enter_context(serve_by("run", take(tmp_path, step))).server


def sign_in(server: Server, name: str) -> dict[str, str]:
    answer = server.request("POST", "/name", urlencode({"name": name}), FORM)
    assert answer.status == 302
    return {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}


def assert_echoes(server: Server) -> None:
    with server.connect("/ws/test") as ws:
        assert ws.recv(5) == "Welcome"
        ws.send("hi")
        assert ws.recv(5) == "ECHO:hi"


def test_there_are_ten_steps() -> None:
    assert list(STEPS) == list(range(1, 11))


def test_step_2_has_a_channel(after: Callable[[int], Server]) -> None:
    server = after(2)
    assert server.get("/").text == "Hello"
    assert_echoes(server)


def test_step_3_has_a_page(after: Callable[[int], Server]) -> None:
    server = after(3)
    assert "/static/page.js" in server.get("/").text
    assert "new WebSocket" in server.get("/static/page.js").text
    assert_echoes(server)


def test_step_4_knows_who_it_is(after: Callable[[int], Server]) -> None:
    server = after(4)
    with pytest.raises(InvalidStatus, match="403"), server.connect("/ws/chat/lobby"):
        pass
    ann = sign_in(server, "Ann")
    assert "You are Ann." in server.get("/", **ann).text
    with server.connect("/ws/chat/lobby", additional_headers=ann) as ws:
        ws.send("hi")
        assert ws.recv(5) == "Ann: hi"


def test_step_5_tells_the_others(after: Callable[[int], Server]) -> None:
    server = after(5)
    ann, bob = sign_in(server, "Ann"), sign_in(server, "Bob")
    with (
        server.connect("/ws/chat/lobby", additional_headers=ann) as hers,
        server.connect("/ws/chat/lobby", additional_headers=bob) as his,
    ):
        assert json.loads(hers.recv(5))["people"] == ["Ann"]
        assert json.loads(hers.recv(5))["people"] == ["Ann", "Bob"]
        hers.send("hi")
        his.recv(5)
        assert json.loads(his.recv(5))["text"] == "hi"


def test_step_6_feeds(after: Callable[[int], Server]) -> None:
    server = after(6)
    assert 'data-path="ws/feed"' in server.get("/").text
    with server.connect("/ws/feed") as ws:
        messages = [json.loads(ws.recv(5)) for _ in range(2)]
    assert any("value" in message for message in messages)


def test_step_7_pushes(after: Callable[[int], Server]) -> None:
    server = after(7)
    ann = sign_in(server, "Ann")
    assert "default-src 'none'" in server.get("/", **ann).headers["Content-Security-Policy"]
    with server.connect("/ws/test?role=editor") as editor:
        assert editor.recv(5) == "Welcome"
        text = urlencode({"text": "ready"})
        answer = server.request("POST", "/notify/editor", text, {**FORM, **ann})
        assert json.loads(answer.text) == {"reached": 1}
        assert editor.recv(5) == "Ann: ready"


def test_step_8_shows_who_is_connected(after: Callable[[int], Server]) -> None:
    server = after(8)
    ann = sign_in(server, "Ann")
    with server.connect("/ws/overview", additional_headers=ann) as ws:
        assert [row["user"] for row in json.loads(ws.recv(5))] == ["Ann"]


def test_step_9_is_the_example(tmp_path: Path) -> None:
    folder = take(tmp_path, 9)
    files = [file.relative_to(EXAMPLE) for file in EXAMPLE.glob("**/*.*") if is_of_the_page(file)]
    assert len(files) >= 10
    for file in files:
        assert (folder / file).read_bytes() == (EXAMPLE / file).read_bytes(), file


def is_of_the_page(file: Path) -> bool:
    is_left_over = "__pycache__" in file.parts
    return not is_left_over and (file.parent != EXAMPLE or file.name == "app.py")


@pytest.mark.once
def test_step_10_serves_to_others(tmp_path: Path) -> None:
    before, [line] = (
        re.split(r"```console\n.*gunicorn", TEXT)[0],
        re.findall(r"^SECRET.*", TEXT, re.M),
    )
    assert "stop the first server" in before.split("\n\n")[-2]  # it has the port
    key, command = line.split(" gunicorn ")
    assert key == 'SECRET_KEY="$(openssl rand -hex 32)"'
    assert "--bind 0.0.0.0:8000" in command
    words = ["gunicorn", *command.replace(":8000", ":0").split()]
    env = {**environment(tmp_path), "SECRET_KEY": "given"}
    ready = r"http://0\.0\.0\.0:(?P<port>[1-9]\d*)"
    with running(words, cwd=take(tmp_path, 10), env=env, ready=ready) as process:
        assert_echoes(process.server)


def test_step_10_has_a_test_that_passes(tmp_path: Path) -> None:
    folder = take(tmp_path, 10)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    result = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr
