"""gunicorn's worker: its names, its access log, its ways down."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from gunicorn.config import Config
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

import wsmiddleware.gunicorn
from support import Process, wait_until
from support.servers import OURS, Tls, serve_by, write_app

GUNICORN = [way for way in OURS if way != "run"]

APP = """
    import os
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]

    app = WebSocketMiddleware(page)
"""

LISTENER = """
    class Echo(WebSocketListener):
        def on_message(self, wsclient, message):
            return message

        def on_close(self, wsclient, reason_phrase):
            print("on_close", wsclient.close_code, flush=True)

        @classmethod
        def on_last_close(cls):
            print("on_last_close", flush=True)
"""


def close_code(client: ClientConnection, timeout: float = 10) -> int | None:
    """The code of the close frame that comes next, None when the connection just ends."""
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(timeout=timeout)
    return None if caught.value.rcvd is None else caught.value.rcvd.code


def pid(process: Process) -> str:
    """The worker that answers a new connection."""
    return process.server.get("/").text


def test_no_name_of_the_module_is_a_setting_of_gunicorn() -> None:
    assert not set(vars(wsmiddleware.gunicorn)) & set(Config().settings)


@pytest.mark.parametrize("way", GUNICORN)
def test_the_worker_is_found_by_name(tmp_path: Path, way: str) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by(way, folder) as process, process.server.connect("/ws/echo") as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"


@pytest.mark.parametrize("way", OURS)
def test_the_garbage_collector_passes_over_what_is_loaded(tmp_path: Path, way: str) -> None:
    app = """
        import gc

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str(gc.get_freeze_count() > 10 * len(gc.get_objects())).encode()]
    """
    with serve_by(way, write_app(tmp_path, app)) as process:
        assert process.server.get("/").text == "True"


def test_the_access_log_is_kept(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("alias", folder, ["--access-logfile", "-"]) as process:
        process.server.get("/page")
        with process.server.connect("/ws/echo"):
            pass
        with process.server.socket() as client:
            client.sendall(b"no HTTP\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400")
        process.server.get("/last")
        wait_until(lambda: '"GET /last HTTP/1.1" 200 ' in process.output, process.output)
        assert '"GET /page HTTP/1.1" 200 ' in process.output
        assert '"GET /ws/echo HTTP/1.1" 101 ' in process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize("way", OURS)
def test_sigterm_tells_a_hundred_clients_within_three_seconds(tmp_path: Path, way: str) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by(way, folder) as process, ExitStack() as stack:
        clients = [stack.enter_context(process.server.connect("/ws/echo")) for _ in range(100)]
        started = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - started < 3
        assert {close_code(client) for client in clients} == {1001}
        wait_until(lambda: "on_last_close\n" in process.output, process.output)
        assert process.output.count("on_close 1001\n") == 100
        assert process.output.count("on_last_close\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_end_tells_the_clients_too(tmp_path: Path, number: signal.Signals) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("worker", folder) as process, process.server.connect("/ws/echo") as client:
        started = time.monotonic()
        process.signal(number)
        assert close_code(client) == 1001
        assert process.wait() == 0
        assert time.monotonic() - started < 3


def test_sighup_tells_the_clients_of_the_old_worker_1012(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("alias", folder) as process:
        with process.server.connect("/ws/echo") as client:
            process.signal(signal.SIGHUP)
            assert close_code(client) == 1012
        with process.server.connect("/ws/echo") as client:
            client.send("again")
            assert client.recv(timeout=10) == "again"
            # The worker of the latest generation is told the truth again.
            process.signal(signal.SIGTERM)
            assert close_code(client) == 1001


def test_a_worker_less_is_no_reload(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("worker", folder, ["--workers", "2"]) as process:
        wait_until(lambda: process.output.count("Booting worker") == 2, process.output)
        with process.server.connect("/ws/echo") as client:
            # Of one worker or the other; the code is that of an end in either case.
            process.signal(signal.SIGTTOU)
            wait_until(lambda: "Worker exiting" in process.output, lambda: process.output)
            process.signal(signal.SIGTERM)
            assert close_code(client) == 1001


def test_max_requests_replaces_the_worker(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("alias", folder, ["--max-requests", "3"]) as process:
        with process.server.connect("/ws/echo") as client:
            old = pid(process)
            assert pid(process) == old
            assert close_code(client) == 1012
        assert pid(process) != old


def test_several_workers_are_warned_of(tmp_path: Path) -> None:
    # In one write: the two of them share the stream.
    folder = write_app(tmp_path, APP + "    os.write(1, b'loaded\\n')\n", echo=LISTENER)
    with serve_by("worker", folder, ["--workers", "2"]) as process:
        # gunicorn itself waits in vain for a worker that was told to end before it had begun.
        wait_until(lambda: process.output.count("loaded\n") == 2, lambda: process.output)
        assert process.output.count("no backplane") == 1


def test_reload_by_gunicorn_tells_the_clients_1012(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("worker", folder, ["--reload", "--reload-engine", "poll"]) as process:
        with process.server.connect("/ws/echo") as client:
            write_app(folder, APP.replace("str(os.getpid())", "'new code'"))
            assert close_code(client) == 1012
        assert process.server.get("/").text == "new code"


def test_preload_is_safe(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with (
        serve_by("worker", folder, ["--preload", "--workers", "2"]) as process,
        process.server.connect("/ws/echo") as client,
    ):
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
        process.signal(signal.SIGTERM)
        assert close_code(client) == 1001


def test_an_idle_http_connection_does_not_hold_the_end_up(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("worker", folder) as process, process.server.socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - started < 3


def test_tls_works_under_gunicorn(tmp_path: Path) -> None:
    tls, folder = Tls(tmp_path), write_app(tmp_path, APP, echo=LISTENER)
    files = ["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)]
    with serve_by("worker", folder, files) as process:
        server = type(process.server)(process.server.port, tls.client)
        with server.connect("/ws/echo") as client:
            client.send("hello")
            assert client.recv(timeout=10) == "hello"
            process.signal(signal.SIGTERM)
            assert close_code(client) == 1001
        assert process.wait() == 0


def test_connections_do_not_count_as_worker_connections(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by("worker", folder, ["--worker-connections", "2"]) as process, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(process.server.connect("/ws/echo"))
        assert process.server.get("/").status == 200
