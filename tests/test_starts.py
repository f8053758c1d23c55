"""What a start says of a process in which no WebSocket can come, or whose callbacks hold it up."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import running

PLAIN = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]
"""
WRAPPED = PLAIN + "from wsmiddleware import WebSocketMiddleware\napp = WebSocketMiddleware(app)\n"
LISTENER = "from wsmiddleware import WebSocketListener\nclass L(WebSocketListener): pass\n"
REGISTERS = WRAPPED + LISTENER + "app.register('chat', L)\n"

NO_MIDDLEWARE = "wsmiddleware: the application has no WebSocketMiddleware around it"
NO_CHANNEL = "wsmiddleware: there is no channel: "


def started(tmp_path: Path, source: str) -> str:
    """What `run` says until it serves."""
    (tmp_path / "app.py").write_text(source)
    with running(["wsmiddleware", "run", "app:app", "--port", "0"], cwd=tmp_path) as process:
        process.server.get("/")
    return process.output


@pytest.mark.parametrize(
    ("source", "folder", "line"),
    [
        (PLAIN, None, NO_MIDDLEWARE),
        (WRAPPED, None, f"{NO_CHANNEL}{{folder}} does not exist"),
        (WRAPPED, [], f"{NO_CHANNEL}{{folder}} holds no listener"),
        (WRAPPED, ["_base.py", "notes.txt"], f"{NO_CHANNEL}{{folder}} holds no listener"),
    ],
)
@pytest.mark.once
def test_start_without_a_channel_says_so(
    source: str, folder: list[str] | None, line: str, tmp_path: Path
) -> None:
    directory = tmp_path / "websockets"
    if folder is not None:
        directory.mkdir()
        for name in folder:
            (directory / name).write_text("")
    output = started(tmp_path, source)
    assert output.count(line.format(folder=directory)) == 1
    assert output.count("wsmiddleware: ") == 1


@pytest.mark.once
def test_start_with_a_channel_says_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "websockets").mkdir()
    assert "wsmiddleware: " not in started(tmp_path, REGISTERS)


@pytest.mark.once
@pytest.mark.parametrize("name", ["websockets", "flask", "listeners"])
def test_folder_that_hides_a_distribution_is_told(name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    directory.mkdir()
    (directory / "__init__.py").write_text("")
    (directory / "chat.py").write_text(LISTENER)
    source = WRAPPED.replace("(app)", f"(app, listeners={name!r})")
    output = started(tmp_path, source)
    line = f"{directory / '__init__.py'}: makes the folder a package, which hides "
    assert output.count(line) == (name != "listeners")


def script(tmp_path: Path, source: str) -> str:
    (tmp_path / "app.py").write_text(REGISTERS)
    command = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.once
def test_publish_where_nobody_serves_is_told_once(tmp_path: Path) -> None:
    told = script(
        tmp_path,
        """
        import app
        from wsmiddleware import publish
        assert publish("chat", 1) is True and publish("chat", 2) is True
        """,
    )
    assert told.count("publish() reaches nobody") == 1


@pytest.mark.once
@pytest.mark.parametrize("serves", ["app.app({'PATH_INFO': '/'}, lambda *a: None)", "start()"])
def test_publish_of_a_process_that_serves_is_not_told(serves: str, tmp_path: Path) -> None:
    told = script(
        tmp_path,
        f"""
        import app
        from wsmiddleware import publish
        from wsmiddleware.server import WSGIServer
        start = WSGIServer(("127.0.0.1", 0), app.app, log=None).start
        {serves}
        publish("chat", 1)
        """,
    )
    assert "publish()" not in told


@pytest.mark.once
@pytest.mark.parametrize("patch", ["monkey.patch_all()", ""])
def test_server_in_a_process_that_is_not_patched_is_told(patch: str, tmp_path: Path) -> None:
    told = script(
        tmp_path,
        f"""
        from gevent import monkey
        {patch}
        import app
        from wsmiddleware.server import WSGIServer
        server = WSGIServer(("127.0.0.1", 0), app.app, log=None)
        server.start()
        server.stop()
        """,
    )
    assert told.count("the process is not monkey-patched") == (not patch)
