"""Faults: the operating system's, the network's, the listener's.

Held elsewhere: resets after the 101 (``tests/net/test_closing.py``), what callbacks raise
(``tests/listeners/test_errors.py``), callbacks that hang (``tests/listeners/test_deadlines.py``),
places that cannot be written to (``tests/test_config.py``).
"""

from __future__ import annotations

import ast
import contextlib
import errno
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import GreenletExit

from support import ROOT, Process, Server, flood, wait_until, websocket_request
from support.apps import Echo, wrap
from support.figures import record
from support.procfs import cpu_seconds
from support.room import MakeRoom, open_by_hand
from support.servers import read_all
from support.wire import TEXT, Log, Peer, frame, middleware_for, peer_of
from wsmiddleware import WebSocketListener

Serve = Callable[..., Server]
ServeApp = Callable[..., Process]

CLIENTS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from flood import upgrade
socks = [upgrade(int(sys.argv[1])) for _ in range(50)]
print("open", flush=True)
time.sleep(60)
"""


def test_clients_that_are_killed_are_closed_with_1006(serve: Serve) -> None:
    log = Log()
    middleware = middleware_for(log.listener())
    server = serve(middleware)
    folder = str(Path(flood.__file__).parent)
    arguments = [sys.executable, "-c", CLIENTS, str(server.port), folder]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as clients:
        assert clients.stdout and clients.stdout.readline() == b"open\n"
        wait_until(lambda: middleware.registry.size == 50)
        clients.send_signal(signal.SIGKILL)
        wait_until(lambda: middleware.registry.unfinished == 0)
    assert log.closes == [(1006, "")] * 50
    assert log.errors == []


# -- resets ---------------------------------------------------------------------------------------

BEFORE = {
    "before a byte": b"",
    "in the request line": b"GET /ws/te",
    "in the headers": websocket_request("/ws/test")[:60],
    "behind the request": websocket_request("/ws/test"),
}


@pytest.mark.parametrize("is_reset", [False, True], ids=["EOF", "RST"])
@pytest.mark.parametrize("stage", BEFORE)
def test_peer_that_goes_before_the_101_leaves_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture, stage: str, is_reset: bool
) -> None:
    log = Log()
    middleware = middleware_for(log.listener())
    server = serve(middleware)
    for _ in range(20):
        with server.socket() as sock:
            sock.sendall(BEFORE[stage])
            if is_reset:
                Peer(sock).reset()
    with peer_of(server) as peer:  # it comes behind all of them
        peer.send(frame(TEXT, "still here"))
        assert peer.read_text() == "still here"
        wait_until(lambda: middleware.registry.unfinished == 1)
    wait_until(lambda: middleware.registry.unfinished == 0)
    assert len(log.closes) == len(log.clients)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


def test_peer_that_resets_during_on_handshake_leaves_nothing(serve: Serve) -> None:
    asked, goes = Event(), Event()
    log = Log()

    class Slow(log.listener()):  # type: ignore[misc]
        @classmethod
        def on_handshake(cls, request: Any) -> bool:
            asked.set()
            return bool(goes.wait(5))

    middleware = middleware_for(Slow)
    with serve(middleware).socket() as sock:
        sock.sendall(websocket_request("/ws/test"))
        asked.wait(5)
        Peer(sock).reset()
        goes.set()
        wait_until(lambda: middleware.metrics.opened["test"] == len(log.closes))
        wait_until(lambda: middleware.registry.unfinished == 0)
    assert set(log.closes) <= {(1006, "")}
    assert log.errors == []


def test_peer_that_resets_inside_on_open_is_closed_once(serve: Serve) -> None:
    is_in, goes = Event(), Event()

    def on_open(self: Any, wsclient: Any) -> str:
        is_in.set()
        goes.wait(5)
        return "welcome"

    log = Log()
    with peer_of(serve(middleware_for(log.listener(on_open=on_open)))) as peer:
        is_in.wait(5)
        peer.reset()
        wait_until(lambda: not log.client.is_open())
        assert log.closes == []  # not while on_open runs
        goes.set()
        wait_until(lambda: log.closes)
    assert log.closes == [(1006, "")]
    assert log.errors == []


def test_resets_inside_a_broadcast_cost_nobody_else_a_message(serve: Serve) -> None:
    log = Log()
    middleware = middleware_for(log.listener())
    server = serve(middleware)
    channel = middleware.registry.channels["test"]
    with ExitStack() as stack:
        stayers = [stack.enter_context(peer_of(server)) for _ in range(5)]
        goers = [stack.enter_context(peer_of(server)) for _ in range(40)]
        wait_until(lambda: middleware.registry.size == 45)
        for number in range(40):
            if number % 2:
                goers[number].reset()
            else:
                goers[number].sock.close()
            channel.wsclients.broadcast(f"{number}")
            if number % 7 == 0:
                gevent.sleep(0)
        for peer in stayers:
            assert [peer.read_text() for _ in range(40)] == [f"{n}" for n in range(40)]
        wait_until(lambda: middleware.registry.size == 5)
    wait_until(lambda: middleware.registry.unfinished == 0)
    assert len(log.closes) == 45


# -- no file descriptors --------------------------------------------------------------------------

CRAMPED = """
    import contextlib

    class Echo(WebSocketListener):
        held = []

        def on_message(self, wsclient, message):
            if message == "hold":  # all that are left
                with contextlib.suppress(OSError):
                    while True:
                        self.held.append(open("/dev/null"))
            if message == "let go":
                self.held.clear()
            if message == "open":
                try:
                    open("/dev/null")
                except OSError as exc:
                    return str(exc.errno)
            return message
"""


@contextlib.contextmanager
def idle_sockets(server: Server, count: int) -> Iterator[list[socket.socket]]:
    socks = [socket.create_connection((server.host, server.port)) for _ in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("way", ["run", "worker"])
def test_strangers_do_not_use_up_the_descriptors(serve_app: ServeApp, way: str) -> None:
    process = serve_app(CRAMPED, way=way, handshake_timeout=60)
    with peer_of(process.server) as peer:
        pid = worker_of(process, way)
        soft = 60
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, soft))
        with idle_sockets(process.server, 2 * soft):
            wait_until(lambda: "descriptors run out" in process.output, lambda: process.output)
            peer.send(frame(TEXT, "open"))
            assert peer.read_text() == "open"
            # Who comes with a request is served, in the crowd.
            with peer_of(process.server) as other:
                other.send(frame(TEXT, "welcome"))
                assert other.read_text() == "welcome"
    assert process.output.count("descriptors run out") == 1
    assert "cannot accept" not in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("way", ["run", "worker"])
def test_server_out_of_descriptors_goes_on_and_says_so_once(serve_app: ServeApp, way: str) -> None:
    process = serve_app(CRAMPED, way=way)
    with peer_of(process.server) as peer:
        pid = worker_of(process, way)
        soft = 60
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, soft))
        peer.send(frame(TEXT, "hold"))
        assert peer.read_text() == "hold"
        with idle_sockets(process.server, 20):
            wait_until(lambda: "cannot accept" in process.output, lambda: process.output)
            peer.send(frame(TEXT, "open"))
            assert int(peer.read_text()) == errno.EMFILE
            spent = cpu_seconds(pid)
            started = time.monotonic()
            while time.monotonic() - started < 1:
                peer.send(frame(TEXT, "still here"))
                assert peer.read_text() == "still here"
                gevent.sleep(0.05)
            spent = cpu_seconds(pid) - spent
        peer.send(frame(TEXT, "let go"))
        assert peer.read_text() == "let go"
        # Room again: those who wait in the backlog are served.
        assert process.server.get("/").status == 200
        with peer_of(process.server) as other:
            other.send(frame(TEXT, "welcome"))
            assert other.read_text() == "welcome"
    record(
        f"no descriptor left, {way}",
        bound="served on, one log line, < 0.5 s of processor time a second",
        measured=f"{spent:.2f} s of processor time a second",
    )
    assert spent < 0.5
    assert process.output.count("cannot accept") == 1
    assert "Traceback" not in process.output


def worker_of(process: Process, way: str) -> int:
    """The process that serves."""
    pid = process.popen.pid
    if way == "run":
        return pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])


# -- listeners ------------------------------------------------------------------------------------


class Own(BaseException):
    """Nobody else's."""


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GreenletExit, Own, gevent.Timeout])
def test_hook_that_raises_whatever_it_is_answers_500(
    serve: Serve, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    class Failing(Echo):
        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            raise kind

    middleware = wrap(listener=Failing)
    server = serve(middleware)
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo") + frame(TEXT, "hello"))
        assert read_all(sock).startswith(b"HTTP/1.1 500 ")
    assert kind.__name__ in caplog.text
    assert middleware.registry.unfinished == 0


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GreenletExit, Own])
def test_edges_that_raise_whatever_it_is_stop_nothing(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            raise kind

        @classmethod
        def on_last_close(cls) -> None:
            raise kind

        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    served = room(Test)
    for _ in range(2):
        with served.connect() as ws:
            ws.send("hello")
            assert ws.recv(5) == "hello"
        served.wait_until_settled()
    assert caplog.text.count("Test.on_first_open raised") == 2
    assert caplog.text.count("Test.on_last_close raised") == 2


def test_callback_that_hangs_holds_up_nobody_else_nor_the_end(room: MakeRoom) -> None:
    release = Event()

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "hang":
                release.wait()
            return message

    served = room(Test, close_timeout=0.5)
    with ExitStack() as stack:
        hanging = served.connect_many(stack, 20)
        for ws in hanging:
            ws.send("hang")
        with served.server.socket() as sock:
            open_by_hand(sock)
            peer = Peer(sock)
            for number in range(50):  # none ever comes where it waits for the others
                peer.send(frame(TEXT, f"{number}"))
                assert peer.read_text() == f"{number}"
            started = time.monotonic()
            down = gevent.spawn(served.middleware.shutdown, timeout=2.0)
            assert peer.read_close() == (1001, "going away")
            assert time.monotonic() - started < 1.5  # not after the two seconds
        for ws in hanging:  # they are told too, whatever their callback does
            with pytest.raises(Exception, match="1001"):
                ws.recv(5)
        down.get(timeout=5)
        assert time.monotonic() - started < 4
    release.set()


# -- clocks ---------------------------------------------------------------------------------------


def test_nothing_but_time_stamps_reads_the_clock_on_the_wall() -> None:
    """The wall clock jumps: it may say when something was, never how long something takes."""
    readers = {
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for file in (ROOT / "wsmiddleware").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.time", "time", "datetime.now", "datetime.utcnow")
    }
    assert readers == {
        "wsmiddleware/listeners/session.py: time.time()",  # opened_at
        "wsmiddleware/net/connection.py: time.time()",  # expires_at is a time of day, as given
        "wsmiddleware/connect.py: datetime.now()",  # what the command line shows
        "wsmiddleware/handler.py: time.time()",  # the access log
        "wsmiddleware/reading.py: time.time()",  # the same, for what is refused
    }


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_clock_that_jumps_closes_nobody(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    log = Log()
    settings = {"ping_interval": 0.1, "ping_timeout": 0.3, "idle_timeout": 5}
    with peer_of(serve(middleware_for(log.listener(), **settings))) as peer:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        for _ in range(3):
            assert peer.read() == (9, b"")
            peer.send(frame(10))
        peer.send(frame(TEXT, "still here"))
        while (opcode := peer.read())[0] == 9:
            pass
        assert opcode == (TEXT, b"still here")
    wait_until(lambda: log.closes)
