"""gunicorn's worker from its first moment to its last, whatever is signalled when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import gevent
import pytest

from support import wait_until
from support.accepting import read_head
from support.servers import WAYS, environment, serve_by, write_app
from support.wire import peer_of
from wsmiddleware.gunicorn import _queued

pytestmark = pytest.mark.once

APP = """
    import os, signal
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    app = WebSocketMiddleware(page, config=False, **{settings!r})
"""

LISTENER = """
    class Echo(WebSocketListener):
        def on_close(self, wsclient, reason_phrase):
            print("on_close", wsclient.close_code, flush=True)
"""

#: Ends the master, and the worker itself as a process manager does that signals all of a group.
END = """
    import gevent, os, signal

    def end():
        is_master = os.environ["STARTED_BY"] == str(os.getppid())
        for pid in {os.getpid(), os.getpid() if is_master else os.getppid()}:
            os.kill(pid, signal.SIGTERM)
"""

#: Moments of a start, from when gunicorn takes signals, by what its configuration does then.
MOMENTS = {
    "when_ready": "def when_ready(server): end()",
    "pre_fork": "def pre_fork(server, worker): end()",
    "post_fork": "def post_fork(server, worker): end()",
    "post_worker_init": "def post_worker_init(worker): end()",
    "import": "",  # of the application
    # Before a server listens the loop may turn: gevent asks the DNS for the host's name.
    "listening": """
    from wsmiddleware.server import WSGIServer

    init_socket = WSGIServer.init_socket

    def ending(server):
        init_socket(server)
        end()
        gevent.sleep(0.05)

    WSGIServer.init_socket = ending
    """,
}


@pytest.mark.parametrize(
    ("moment", "options"),
    [
        (moment, f"--workers=2{option}")
        for moment in MOMENTS
        for option in ("", " --preload")
        # With --preload gunicorn takes no signals while it imports.
        if (moment, option) != ("import", " --preload")
    ],
)
def test_sigterm_may_come_at_any_moment_of_a_start(
    tmp_path: Path, moment: str, options: str
) -> None:
    if moment == "import":
        folder = write_app(tmp_path, APP.format(settings={}) + END + "    end()", echo=LISTENER)
    else:
        folder = write_app(tmp_path, APP.format(settings={}), echo=LISTENER)
    conf = textwrap.dedent(END) + textwrap.dedent(MOMENTS[moment])
    (folder / "gunicorn.conf.py").write_text(conf, encoding="utf-8")
    command = [sys.executable, "-m", *WAYS["worker"], "--bind", "127.0.0.1:0", *options.split()]
    env = {**environment(folder), "STARTED_BY": str(os.getpid())}
    ended = subprocess.run(
        [*command, "app:app"], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    for word in ("Traceback", "Exception ignored", "exited with code", "SIGKILL"):
        assert word not in ended.stderr, ended.stderr


@pytest.mark.parametrize("is_list", [False, True])
def test_signals_that_wait_in_a_master_of_any_version_are_found(is_list: bool) -> None:
    numbers = [signal.SIGHUP, signal.SIGTERM]
    queue: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        queue.put(number)
    assert list(_queued(SimpleNamespace(SIG_QUEUE=numbers if is_list else queue))) == numbers


def test_a_process_without_a_master_has_none() -> None:
    assert list(_queued(None)) == []


@pytest.mark.parametrize("is_preloaded", [False, True])
def test_end_of_a_worker_ignores_no_exception(tmp_path: Path, is_preloaded: bool) -> None:
    # A logging handler that lives as long as its module, as Flask's does.
    app = APP.format(settings={}) + "    import logging\n    handler = logging.StreamHandler()\n"
    options = ["--preload"] if is_preloaded else []
    with serve_by("worker", write_app(tmp_path, app, echo=LISTENER), options) as process:
        assert process.server.get("/").status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        wait_until(lambda: "Shutting down: Master" in process.output, lambda: process.output)
    assert "Exception ignored" not in process.output
    assert "Traceback" not in process.output


def test_idle_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP.format(settings={"handshake_timeout": 1}), echo=LISTENER)
    options = ["--worker-connections", "3", "--keep-alive", "1"]
    with serve_by("worker", folder, options) as process, ExitStack() as stack:
        for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
            for _ in range(3):
                sock = stack.enter_context(process.server.socket())
                if request:
                    sock.sendall(request)
                    assert read_head(sock).startswith(b"HTTP/1.1 200")
            assert process.server.get("/").status == 200


@pytest.mark.parametrize("is_told", [False, True])
def test_on_close_runs_when_the_master_is_killed(tmp_path: Path, is_told: bool) -> None:
    folder = write_app(tmp_path, APP.format(settings={"grace_period": 3}), echo=LISTENER)
    with serve_by("worker", folder) as process, peer_of(process.server, "/ws/echo"):
        if is_told:  # and then killed, as by a process manager that is in a hurry
            process.signal(signal.SIGTERM)
            wait_until(lambda: "Handling signal: term" in process.output)
        # The peer never answers a close frame.
        process.signal(signal.SIGKILL)
        wait_until(lambda: "on_close 1006\n" in process.output, lambda: process.output)
        wait_until(lambda: "Worker exiting" in process.output, lambda: process.output)
    assert "Traceback" not in process.output


@pytest.mark.parametrize("way", ["run", "worker"])
def test_handshake_that_came_in_time_is_none_of_a_stopped_processs_sins(
    tmp_path: Path, way: str
) -> None:
    folder = write_app(tmp_path, APP.format(settings={"handshake_timeout": 1}), echo=LISTENER)
    with serve_by(way, folder) as process, process.server.socket() as sock:
        sock.sendall(b"GET / HT")
        gevent.sleep(0.2)
        pids = [process.popen.pid, *_children(process.popen.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            sock.sendall(b"TP/1.1\r\nHo")
            gevent.sleep(1.5)
            assert time.monotonic() - stopped > 1
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        gevent.sleep(0.1)
        sock.sendall(b"st: x\r\n\r\n")
        assert read_head(sock).startswith(b"HTTP/1.1 200")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(each) for each in text.split()]
