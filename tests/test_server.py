"""The server: time limits, and going down."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import gevent
import gevent.local
import pytest
from gevent.event import Event
from greenlet import GreenletExit
from websockets.exceptions import ConnectionClosed

from support import Server, serving, wait_until
from support.accepting import echo, read_head, refusing
from support.servers import Tls, read_all
from wsmiddleware import CloseCode
from wsmiddleware.server import WSGIServer, drain

Serve = Callable[..., Server]


def test_a_request_that_does_not_end_gets_408() -> None:
    server = WSGIServer(("127.0.0.1", 0), refusing, log=None)
    server.handshake_timeout = 0.05
    server.start()
    try:
        for start in (b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            with Server(server.server_port).socket() as client:
                client.sendall(start)
                assert read_all(client).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    finally:
        server.stop()


def test_a_tls_handshake_has_a_time_limit(tmp_path: Path) -> None:
    server = WSGIServer(("127.0.0.1", 0), refusing, log=None, ssl_context=Tls(tmp_path).server)
    server.handshake_timeout = 0.05
    server.start()
    try:
        with Server(server.server_port).socket() as client:
            assert read_all(client) == b""
    finally:
        server.stop()


def test_plain_http_at_a_tls_port_leaves_no_traceback(
    tmp_path: Path, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(refusing, ssl_context=Tls(tmp_path).server).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in read_all(client)
    assert "Traceback" not in capfd.readouterr().err


def test_draining_ends_connections_that_wait_for_a_request() -> None:
    server = WSGIServer(("127.0.0.1", 0), refusing, log=None)
    server.start()
    with Server(server.server_port).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_head(client)
        assert client.recv(2) == b"no"
        wait_until(lambda: server.idle_handlers)
        started = time.monotonic()
        server.start_draining()
        assert client.recv(1) == b""
        assert time.monotonic() - started < 5


def test_draining_answers_the_request_that_runs_and_closes() -> None:
    inside, go_on = Event(), Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        inside.set()
        go_on.wait(5)
        return refusing(environ, start_response)

    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    with Server(server.server_port).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(5)
        server.start_draining()
        go_on.set()
        answer = read_all(client)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"no")


def test_draining_takes_no_request_behind_one_that_runs() -> None:
    inside, go_on = Event(), Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"o"
        inside.set()
        go_on.wait(5)
        yield b"k"

    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    with Server(server.server_port).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(5)
        server.start_draining()
        go_on.set()
        assert read_all(client).endswith(b"\r\n\r\nok")


def test_draining_ends_what_waits_on_wsgi_websocket() -> None:
    server = WSGIServer(("127.0.0.1", 0), echo, log=None)
    server.start()
    with Server(server.server_port).connect("/echo") as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
        server.start_draining()
        server.release_websockets()
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=5)
    wait_until(lambda: not server.clients)


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def test_requests_of_two_connections_share_a_greenlet_and_nothing_else() -> None:
    seen: list[tuple[Any, list[object]]] = []
    local = gevent.local.local()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        places = local, gevent.getcurrent()
        left = [VARIABLE.get(), *(getattr(place, "value", "unset") for place in places)]
        seen.append((weakref.ref(gevent.getcurrent()), left))
        VARIABLE.set("of another connection")
        local.value = gevent.getcurrent().value = "of another connection"
        return refusing(environ, start_response)

    with serving(app) as server:
        for _ in range(2):
            with server.socket() as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert b" 403 " in read_all(client)
    assert seen[0][0]() is seen[1][0]() is not None
    assert seen[0][1] == seen[1][1] == ["unset"] * 3


def test_a_handler_that_is_killed_or_fails_takes_nobody_with_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Failing(WSGIServer):
        ends: ClassVar[list[BaseException]] = [GreenletExit(), LookupError("no handler")]

        def handle(self, sock: Any, address: Any) -> None:
            if self.ends:
                raise self.ends.pop(0)
            super().handle(sock, address)

    server = Failing(("127.0.0.1", 0), refusing, log=None)
    server.start()
    try:
        for _ in range(2):
            with Server(server.server_port).socket() as client, contextlib.suppress(OSError):
                assert read_all(client) == b""
        with Server(server.server_port).socket() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(client).endswith(b"no")
    finally:
        server.stop()
    printed = capfd.readouterr().err
    assert "LookupError: no handler" in printed
    assert "GreenletExit" not in printed


def test_a_closed_server_keeps_no_greenlets() -> None:
    inside, go_on = Event(), Event()
    greenlets = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        greenlets.append(gevent.getcurrent())
        if environ["PATH_INFO"] == "/slow":
            inside.set()
            go_on.wait(5)
        return refusing(environ, start_response)

    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    with Server(server.server_port).socket() as slow:
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(5)
        with Server(server.server_port).socket() as quick:
            quick.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(quick).endswith(b"no")
        server.start_draining()
        wait_until(lambda: greenlets[1].dead)
        assert not greenlets[0].dead
        go_on.set()
        assert read_all(slow).endswith(b"no")
    wait_until(lambda: greenlets[0].dead)


def test_drain_waits_for_a_request_that_runs() -> None:
    inside, ended = Event(), []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        inside.set()
        gevent.sleep(0.2)
        ended.append(True)
        return refusing(environ, start_response)

    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    with Server(server.server_port).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(5)
        drain(server, CloseCode.GOING_AWAY, 5)
        assert ended
        assert read_all(client).endswith(b"no")
