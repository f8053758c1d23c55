"""Where ``run`` listens: every address, a Unix socket, a socket that was handed to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from websockets.sync.client import unix_connect

from support import Process, Server, running
from support.servers import environment, write_app

pytestmark = pytest.mark.once

APP = """
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [])
        return [environ.get("REMOTE_ADDR", "nobody").encode()]

    app = WebSocketMiddleware(page)
"""
ECHO = """
    class Echo(WebSocketListener):
        def on_message(self, wsclient, message):
            return message
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_app(tmp_path, APP, echo=ECHO)


@contextlib.contextmanager
def run(folder: Path, *options: str, ready: str) -> Iterator[Process]:
    arguments = ["wsmiddleware", "run", "app:app", *options]
    with running(arguments, cwd=folder, env=environment(folder), ready=ready) as process:
        yield process


def ask(path: Path) -> bytes:
    """The page, through a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return data


def mistake(folder: Path, *options: str, **environ: str) -> str:
    """The one line that a start ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "wsmiddleware", "run", "app:app", *options],
        cwd=folder,
        env={**environment(folder), **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_every_address_is_of_both_families(folder: Path) -> None:
    options = ["--host", "::", "--port", "0"]
    with run(folder, *options, ready=r"http://\[::1\]:(?P<port>[1-9]\d*)") as process:
        port = process.server.port
        assert Server(port).get("/").text == "127.0.0.1"
        assert Server(port, host="::1").request("GET", "/").text == "::1"
        with Server(port).connect("/ws/echo") as client:
            client.send("hi")
            assert client.recv(timeout=10) == "hi"


#: What `run` says once it listens on a Unix socket.
READY = r"ws\+unix:.*:/ws/echo\n"


@pytest.mark.parametrize("options", [[], ["--reload"]], ids=str)
def test_a_unix_socket_serves_and_is_removed(folder: Path, options: list[str]) -> None:
    path = folder / "s.sock"
    with run(folder, "--unix", str(path), *options, ready=READY) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert ask(path).endswith(b"\r\n\r\nnobody")
        with unix_connect(str(path), "ws://localhost/ws/echo", open_timeout=10) as client:
            client.send("hi")
            assert client.recv(timeout=10) == "hi"
            assert "somebody listens there already" in mistake(folder, "--unix", str(path))
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not path.exists()
        assert "Traceback" not in process.output


def test_what_a_killed_server_left_is_replaced(folder: Path) -> None:
    path = folder / "s.sock"
    for _ in range(2):
        with run(folder, "--unix", str(path), ready=READY) as process:
            assert ask(path).endswith(b"nobody")
            process.popen.kill()
            process.popen.wait()
            assert path.exists()


def test_several_clients_of_gevent_websocket_are_kept_apart(folder: Path) -> None:
    source = """
        def app(environ, start_response):
            ws = environ["wsgi.websocket"]
            ws.receive()
            clients = ws.handler.server.clients
            ws.send(str(len(clients)))
            ws.receive()
            return []
    """
    write_app(folder, source)
    path = folder / "s.sock"
    with (
        run(folder, "--unix", str(path), ready=r"unix:.*\n"),
        unix_connect(str(path), "ws://localhost/") as one,
        unix_connect(str(path), "ws://localhost/") as two,
    ):
        for client in (one, two):
            client.send("how many?")
            assert client.recv(timeout=10) == "2"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("app.py", "is no socket"),
        ("nowhere/s.sock", "No such file or directory"),
        ("x" * 200, "too long"),
    ],
)
def test_a_path_that_cannot_be_listened_on_is_said(folder: Path, path: str, words: str) -> None:
    said = mistake(folder, "--unix", path)
    assert words in said
    assert path in said
    assert (folder / "app.py").exists()


def handed(folder: Path, listener: socket.socket, *options: str) -> subprocess.Popen[str]:
    """`run` in a process that has `listener` as descriptor 3, as systemd starts it."""
    start = textwrap.dedent(
        """
        import os, sys
        os.dup2(int(sys.argv[1]), 3)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.execv(sys.executable, [sys.executable, "-m", "wsmiddleware", *sys.argv[2:]])
        """
    )
    return subprocess.Popen(
        [sys.executable, "-c", start, str(listener.fileno()), "run", "app:app", *options],
        cwd=folder,
        env={**environment(folder), "LISTEN_FDS": "1"},
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("options", [[], ["--fd", "3"], ["--reload"]], ids=str)
def test_a_socket_that_was_handed_over_is_served(folder: Path, options: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with handed(folder, listener, *options) as popen:
            try:
                assert Server(port).get("/").text == "127.0.0.1"  # it waits in the backlog
                assert popen.stdout
                assert popen.stdout.readline() == f"http://127.0.0.1:{port}/\n"
                assert popen.stdout.readline() == f"ws://127.0.0.1:{port}/ws/echo\n"
                popen.send_signal(signal.SIGTERM)
                assert popen.wait(10) == 0
            finally:
                popen.kill()


def test_a_unix_socket_that_was_handed_over_stays(folder: Path) -> None:
    path = folder / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with handed(folder, listener) as popen:
            try:
                assert ask(path).endswith(b"nobody")
                popen.send_signal(signal.SIGTERM)
                assert popen.wait(10) == 0
            finally:
                popen.kill()
        assert path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fd", "77"], "descriptor 77 is no socket"),
        (["--unix", "s.sock", "--port", "1"], "--port and --unix"),
        (["--unix", "s.sock", "--fd", "3"], "--unix and --fd"),
        (["--host", "::1", "--fd", "3"], "--host and --fd"),
    ],
)
def test_what_contradicts_or_is_none_is_said(
    folder: Path, options: Sequence[str], words: str
) -> None:
    assert words in mistake(folder, *options)


def test_variables_of_another_process_are_not_ours(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = mistake(folder, "--port", port, LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    assert "ddress already in use" in said
