"""A client with ``reconnect=True``: back-off, bounds, and what is sent meanwhile."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from websockets.sync.server import ServerConnection

from support import PATIENCE, wait_until
from support.clients import Recorder, accept, raw_server, read_request, websockets_server
from wsmiddleware import (
    ConnectionClosed,
    HandshakeError,
    SlowConsumerError,
    create_websocket_client,
)
from wsmiddleware.client import WebSocketClient
from wsmiddleware.net.backoff import Backoff
from wsmiddleware.net.orders import Orders
from wsmiddleware.net.reactor import Reactor
from wsmiddleware.upkeep import OfflineQueue

FAST: dict[str, Any] = {"reconnect": True, "reconnect_delay": 0.01, "max_reconnect_delay": 0.02}


def test_delays_double_to_the_cap_and_are_jittered() -> None:
    low, high = (Backoff(1, 5, dice=lambda dice=dice: dice) for dice in (0.0, 1.0))
    assert [high.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    assert [low.next() for _ in range(5)] == [0.5, 1, 2, 2.5, 2.5]
    jittered = Backoff(1, 1)
    assert len({jittered.next() for _ in range(20)}) == 20


def test_attempts_are_bounded_and_counted_anew_after_a_success() -> None:
    backoff = Backoff(1, 60, limit=3, dice=lambda: 1.0)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, None]
    backoff.succeeded(0.1)  # it did not last: the delay goes on growing
    assert backoff.next() == 8
    backoff.succeeded(100)
    assert backoff.next() == 1


def test_client_comes_back_and_tells_of_each_connection() -> None:
    listener = Recorder()
    with websockets_server(lambda ws: ws.close(1012)) as url:
        ws = create_websocket_client(url, listener, **FAST)
        listener.wait_for("open", times=3)
        ws.disconnect()
    names = listener.names()
    assert names[:6] == ["open", "close"] * 3
    assert "error" not in str(names)
    assert ws.wait(0)


def test_what_ended_a_connection_is_told_before_its_close() -> None:
    listener = Recorder()
    with raw_server(accept) as url:
        ws = create_websocket_client(url, listener, **FAST)
        listener.wait_for("open", times=2)
        ws.disconnect()
    assert listener.names()[:4] == ["open", "error unexpected", "close", "open"]


def test_first_connection_that_fails_only_raises() -> None:
    listener = Recorder()
    with pytest.raises(HandshakeError):
        create_websocket_client("ws://127.0.0.1:1/", listener, **FAST)
    gevent.sleep(0.05)
    assert listener.events == []


def test_attempts_that_fail_are_connect_errors_and_bounded() -> None:
    listener = Recorder()
    count = 0

    def once(sock: socket.socket) -> None:
        nonlocal count
        count += 1
        if count == 1:
            accept(sock)
        else:
            read_request(sock)
            sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    with raw_server(once) as url:
        ws = create_websocket_client(url, listener, reconnect_attempts=3, **FAST)
        assert ws.wait(PATIENCE)
    assert listener.names() == ["open", "error unexpected", "close"] + ["error connect"] * 3
    assert "503 Busy" in str(listener.last("error")[2])
    assert not ws.is_open()
    with pytest.raises(ConnectionClosed):
        ws.send_text("x")


class Flaky:
    """A server that ends the first connection, then lets nobody in until `gate` is set."""

    def __init__(self) -> None:
        self.gate = Event()
        self.received: list[str | bytes] = []
        self.is_asked = False
        self._count = 0

    def __call__(self, ws: ServerConnection) -> None:
        self._count += 1
        if self._count > 1:
            self.received.extend(ws)

    def process_request(self, ws: ServerConnection, request: Any) -> None:
        if self._count:
            self.is_asked = True
            self.gate.wait(PATIENCE)


@contextlib.contextmanager
def disconnected(listener: object, **options: Any) -> Iterator[tuple[Flaky, WebSocketClient]]:
    """A client whose first connection has ended, and its server."""
    server = Flaky()
    with websockets_server(server, process_request=server.process_request) as url:
        ws = create_websocket_client(url, listener, **{**FAST, **options})
        wait_until(lambda: not ws.is_open())
        yield server, ws
        ws.disconnect()
        server.gate.set()


def test_messages_wait_for_the_next_connection_behind_those_of_on_open() -> None:
    class Greeting(Recorder):
        def on_open(self) -> None:
            super().on_open()
            if len(self.events) > 1:
                gevent.sleep(0.01)
                ws.send_text("hello again")

    with disconnected(Greeting()) as (server, ws):
        ws.send_text("one")
        ws.send_binary(b"two")
        gevent.get_hub().threadpool.apply(ws.send_text, ("three",))
        server.gate.set()
        wait_until(lambda: len(server.received) == 4)
        ws.send_text("four")
        ws.disconnect()
    assert server.received == ["hello again", "one", b"two", "three", "four"]


def test_queue_is_bounded_and_can_be_refused() -> None:
    listener = Recorder()
    with disconnected(listener, offline_queue_size=100) as (_, ws):
        ws.send_binary(bytes(100))
        with pytest.raises(ConnectionClosed, match="offline_queue_size"):
            ws.send_text("x")
        with pytest.raises(ConnectionClosed):
            ws.send_ping()
    with disconnected(object(), offline_queue_size=0) as (_, ws), pytest.raises(ConnectionClosed):
        ws.send_text("x")
    kind, cause = listener.last("error")[1:3]
    assert (kind, "1 messages were never sent" in str(cause)) == ("general", True)


def test_disconnect_ends_the_waiting_at_once() -> None:
    with disconnected(object(), reconnect_delay=60, max_reconnect_delay=60) as (_, ws):
        with gevent.Timeout(5):
            ws.disconnect()
        assert ws.wait(0)


def test_disconnect_ends_the_dialling_at_once() -> None:
    with disconnected(object(), connect_timeout=60) as (server, ws):
        wait_until(lambda: server.is_asked)
        with gevent.Timeout(5):
            ws.disconnect()
        assert ws.wait(0)


class Own(BaseException):
    """No `Exception` at all."""


def resolve_by(monkeypatch: pytest.MonkeyPatch, resolver: Callable[..., object]) -> None:
    monkeypatch.setattr(gevent.socket, "getaddrinfo", resolver)


@pytest.mark.parametrize(
    "kind", [OSError, UnicodeError, RuntimeError, MemoryError, SystemExit, gevent.Timeout, Own]
)
def test_attempt_that_fails_with_whatever_is_told_and_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    listener = Recorder()
    resolve, count = gevent.socket.getaddrinfo, 0

    def resolver(*args: Any, **options: Any) -> object:
        nonlocal count
        count += 1
        if count in (2, 3):
            raise kind
        return resolve(*args, **options)

    with raw_server(accept) as url:
        resolve_by(monkeypatch, resolver)
        ws = create_websocket_client(url, listener, reconnect_attempts=4, **FAST)
        listener.wait_for("open", times=2)
        count = -1000
        ws.disconnect()
    assert listener.names()[:6] == (
        ["open", "error unexpected", "close"] + ["error connect"] * 2 + ["open"]
    )
    cause = listener.events[3][2]
    assert kind in (type(cause), type(cause.__cause__))
    assert ws.wait(0)


def test_attempts_that_fail_with_whatever_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Recorder()

    def resolver(*args: Any, **options: Any) -> object:
        raise RuntimeError

    with raw_server(accept) as url:
        ws = create_websocket_client(url, listener, reconnect_attempts=2, **FAST)
        resolve_by(monkeypatch, resolver)
        assert ws.wait(PATIENCE)
    assert listener.names() == ["open", "error unexpected", "close"] + ["error connect"] * 2


def test_first_connection_that_fails_with_whatever_is_a_handshake_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolver(*args: Any, **options: Any) -> object:
        raise UnicodeError("label too long")

    resolve_by(monkeypatch, resolver)
    with pytest.raises(HandshakeError, match=r"DNS look-up failed: .*label too long"):
        create_websocket_client("ws://localhost:1/", object())


def test_time_out_of_the_caller_is_the_callers() -> None:
    with (
        raw_server(lambda sock: sock.recv(65536) and gevent.sleep(0.5)) as url,
        pytest.raises(gevent.Timeout),
        gevent.Timeout(0.05),
    ):
        create_websocket_client(url, object())


def test_disconnect_never_breaks_off_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very moment that an attempt fails."""
    fails, ended = Event(), []

    class Listener(Recorder):
        def on_error(self, type: str, cause: BaseException, data: bytes | None = None) -> None:
            super().on_error(type, cause, data)
            if type == "connect":
                try:
                    gevent.sleep(0.05)
                except BaseException as exc:
                    ended.append(repr(exc))
                    raise
                ended.append("whole")

    def resolver(*args: Any, **options: Any) -> object:
        asked.set()
        fails.wait(PATIENCE)
        raise OSError("no resolver today")

    asked = Event()
    with raw_server(accept) as url:
        ws = create_websocket_client(url, Listener(), **FAST)
        resolve_by(monkeypatch, resolver)
        assert asked.wait(PATIENCE)
        fails.set()
        ws.disconnect(wait=False)
        assert ws.wait(PATIENCE)
    assert ended == ["whole"]


def test_callback_may_end_it() -> None:
    class Leaving(Recorder):
        def on_close(self) -> None:
            super().on_close()
            ws.disconnect()

    listener = Leaving()
    with websockets_server(lambda ws: ws.close()) as url:
        ws = create_websocket_client(url, listener, **FAST)
        assert ws.wait(PATIENCE)
    assert listener.names() == ["open", "close"]


def test_offline_queue_forgets_in_order() -> None:
    queue = OfflineQueue(3)
    assert queue.put("ab", True)
    assert queue.put(b"cd", False)
    assert not queue.put("e", True)
    assert queue.first() == ("ab", True)
    queue.drop_first()
    assert queue.put("e", True)
    assert (len(queue), queue.clear(), len(queue)) == (2, 2, 0)


def test_orders_of_threads_are_bounded_and_their_errors_told() -> None:
    told: list[Exception] = []
    orders = Orders(Reactor(), 10, told.append)
    block = Event()

    def refuse() -> None:
        raise ConnectionClosed(1006)

    pool = gevent.get_hub().threadpool
    pool.apply(orders.put, (block.wait, (), 10, 1))
    with pytest.raises(SlowConsumerError):
        pool.apply(orders.put, (refuse, (), 1, 0.01))
    pool.apply(orders.put, (refuse, (), 0, 0.01))  # what has no size is always taken
    block.set()
    wait_until(lambda: told)
    assert isinstance(told[0], ConnectionClosed)
