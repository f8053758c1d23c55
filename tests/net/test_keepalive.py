"""Pings, half-open peers, idle connections."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from websockets.exceptions import ConnectionClosed

from support import Server, let_pass, wait_until
from support.wire import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Log,
    close_frame,
    connection_of,
    frame,
    middleware_for,
    narrow,
    peer_of,
)
from wsmiddleware import WebSocketListener
from wsmiddleware.net.keepalive import Keepalive, Verdict

Serve = Callable[..., Server]
FAST = {"ping_interval": 0.1, "ping_timeout": 0.2}


def verdicts(keepalive: Keepalive, *times: float, received: float = 0.0) -> list[Verdict]:
    return [keepalive.check(now, received, 0.0) for now in times]


def test_quiet_peer_is_pinged_once_then_dead() -> None:
    keepalive = Keepalive(0, 20, 20)
    assert verdicts(keepalive, 19.9, 20, 39.9, 40) == [
        Verdict.FINE,
        Verdict.PING,
        Verdict.FINE,
        Verdict.DEAD,
    ]


def test_any_byte_answers_a_ping() -> None:
    keepalive = Keepalive(0, 20, 20)
    assert verdicts(keepalive, 20) == [Verdict.PING]
    assert verdicts(keepalive, 44, 45, 64, 65, received=25.0) == [
        Verdict.FINE,
        Verdict.PING,
        Verdict.FINE,
        Verdict.DEAD,
    ]


def test_zero_turns_pings_and_idle_off() -> None:
    assert Keepalive(0, 0, 20).check(1e9, 0.0, 0.0) is Verdict.FINE


def test_idle_counts_messages_only() -> None:
    keepalive = Keepalive(30, 20, 20)
    assert keepalive.check(29.9, 29.0, 0.0) is Verdict.FINE
    assert keepalive.check(30, 29.0, 0.0) is Verdict.IDLE
    assert keepalive.check(31, 29.0, 30.0) is Verdict.FINE


@pytest.mark.parametrize(
    ("idle", "interval", "timeout", "due", "due_after_ping"),
    [
        (0, 20, 20, 20, 40),
        (0, 20, 0, 20, 40),
        (0, 20, 5, 20, 25),
        (0, 20, 90, 20, 40),
        (30, 20, 90, 20, 30),
        (15, 20, 20, 15, None),
        (15, 0, 20, 15, None),
        (0, 0, 20, math.inf, None),
    ],
)
def test_due_is_when_something_is_found(
    idle: float, interval: float, timeout: float, due: float, due_after_ping: float | None
) -> None:
    keepalive = Keepalive(idle, interval, timeout)
    assert keepalive.due(0.0, 0.0) == due
    assert keepalive.check(min(due, 1e9) - 0.1, 0.0, 0.0) is Verdict.FINE
    if due_after_ping is not None:
        assert keepalive.check(due, 0.0, 0.0) is Verdict.PING
        assert keepalive.due(0.0, 0.0) == due_after_ping
    assert keepalive.due(100.0, 100.0) == 100 + due


def test_quiet_peer_is_left_alone_until_something_is_due(serve: Serve) -> None:
    middleware = middleware_for(Log().listener(), ping_interval=20, idle_timeout=300)
    with peer_of(serve(middleware)) as peer:
        peer.send(frame(TEXT, "hello"))
        assert peer.read_text() == "hello"
        connection = connection_of(middleware)
        reactor = connection.reactor
        assert connection.due_step * reactor._step >= reactor.now + 19


def test_silent_peer_is_found(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener(), **FAST))
    with peer_of(server) as peer:
        assert peer.read() == (PING, b"")
        assert peer.read_close() == (1011, "ping timeout")
        peer.read_end()
    wait_until(lambda: log.closes)
    assert log.closes == [(1006, "")]


def test_any_byte_of_the_peer_keeps_it_open(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener(), **FAST))
    with peer_of(server) as peer:
        for byte in frame(TEXT, "x" * 20)[:7]:
            assert peer.read() == (PING, b"")
            peer.send(bytes([byte]))
        assert log.client.is_open()


def test_answering_peer_stays_open(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener(), **FAST))
    with peer_of(server) as peer:
        for _ in range(6):
            assert peer.read() == (PING, b"")
            peer.send(frame(PONG))
        peer.send(frame(TEXT, "still there"))
        assert peer.read_text() == "still there"
        assert not log.closes


def test_clock_stands_still_while_we_do_not_read(serve: Serve) -> None:
    release = Event()
    listener = (log := Log()).listener(on_message=lambda *args: release.wait() and None)
    middleware = middleware_for(listener, idle_timeout=0.4, **FAST)
    with peer_of(serve(middleware)) as peer:
        wait_until(lambda: log.clients)
        peer.send_until_full(frame(BINARY, b"x" * 100_000))
        assert connection_of(middleware).is_paused
        let_pass(connection_of(middleware).reactor, 1.0)  # past every time-out
        assert log.client.is_open()
        release.set()
        peer.reset()


def test_slow_but_reading_peer_is_alive(serve: Serve) -> None:
    listener = (log := Log()).listener(on_open=lambda self, wsclient: narrow(wsclient))
    middleware = middleware_for(listener, idle_timeout=0, **FAST)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        for _ in range(30):
            log.client.send(b"x" * 10_000)
        for _ in range(30):
            opcode, _ = peer.read()
            assert opcode == BINARY
            gevent.sleep(0.05)
        assert log.client.is_open()


def test_peer_that_takes_nothing_is_found(serve: Serve) -> None:
    listener = (log := Log()).listener(on_open=lambda self, wsclient: narrow(wsclient))
    with peer_of(serve(middleware_for(listener, **FAST)), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        log.client.send(b"x" * 500_000)
        wait_until(lambda: log.closes, timeout=3)
        peer.reset()
    assert log.closes == [(1006, "")]


def test_idle_connection_is_closed_although_pings_go_on(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener(), idle_timeout=0.4, **FAST)
    with serve(middleware).connect("/ws/test") as ws:
        with pytest.raises(ConnectionClosed) as info:
            ws.recv(timeout=5)
        assert info.value.rcvd is not None
        assert (info.value.rcvd.code, info.value.rcvd.reason) == (1001, "idle")
    wait_until(lambda: log.closes)
    assert log.closes[0][0] == 1001


@pytest.mark.parametrize("is_ours", [True, False])
def test_message_either_way_is_not_idle(serve: Serve, is_ours: bool) -> None:
    listener = (log := Log()).listener(on_message=lambda *args: None)
    with peer_of(serve(middleware_for(listener, idle_timeout=0.3))) as peer:
        wait_until(lambda: log.clients)
        for _ in range(6):
            if is_ours:
                log.client.send("hi")
                assert peer.read_text() == "hi"
            else:
                peer.send(frame(TEXT, "hi"))
            gevent.sleep(0.1)
        assert log.client.is_open()
        assert peer.read_close() == (1001, "idle")
        peer.send(close_frame(1001))


def test_session_may_change_its_idle_timeout(serve: Serve) -> None:
    def on_open(self: Any, wsclient: Any) -> None:
        assert wsclient.session.max_idle_timeout == 300_000
        wsclient.session.max_idle_timeout = 100

    with peer_of(serve(middleware_for(Log().listener(on_open=on_open)))) as peer:
        assert peer.read_close() == (1001, "idle")
        peer.send(close_frame(1001))


@pytest.mark.parametrize("settings", [{}, {"max_message_rate": 1}])
def test_flood_of_pings_is_no_message(serve: Serve, settings: dict[str, Any]) -> None:
    middleware = middleware_for((log := Log()).listener(), idle_timeout=0.3, **settings)
    with peer_of(serve(middleware)) as peer:

        def flood() -> list[tuple[int, str]]:
            with contextlib.suppress(OSError):
                peer.send(frame(PING, b"") * 600)  # more than one turn takes
            return log.closes

        wait_until(flood)
        opcode, payload = peer.read()
        while opcode == PONG:
            opcode, payload = peer.read()
        assert payload[2:] == b"idle"


# -- while we are at work ----------------------------------------------------------------------

IDLE = {"idle_timeout": 0.4}


@pytest.mark.parametrize("reply", ["done", None])
@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_message"])
def test_idle_clock_stands_still_while_a_callback_runs(
    serve: Serve, name: str, reply: str | None
) -> None:
    ended: list[float] = []

    def work(self: Any, wsclient: Any, *args: Any) -> str | None:
        let_pass(wsclient._connection.reactor, 1.1)
        ended.append(time.monotonic())
        return reply

    listener = type("Working", (WebSocketListener,), {name: work})
    with peer_of(serve(middleware_for(listener, **IDLE))) as peer:
        if name == "on_message":
            peer.send(frame(TEXT, "go"))
        if reply:
            assert peer.read_text() == reply
        assert peer.read_close() == (1001, "idle")
        # As long as ever, from its end on; but for the steps of a coarse clock.
        assert time.monotonic() - ended[0] > 0.3
        peer.send(close_frame(1001))


def test_idle_clock_stands_still_while_data_of_ours_waits(serve: Serve) -> None:
    listener = (log := Log()).listener(on_open=lambda self, wsclient: narrow(wsclient))
    middleware = middleware_for(listener, **IDLE)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        log.client.send(b"x" * 500_000)
        let_pass(connection_of(middleware).reactor, 1.2)  # the peer is at something else
        assert log.client.is_open()
        assert peer.read() == (BINARY, b"x" * 500_000)
        started = time.monotonic()
        assert peer.read_close() == (1001, "idle")
        assert time.monotonic() - started > 0.3
        peer.send(close_frame(1001))


def test_answers_to_pings_that_wait_are_no_data_of_ours(serve: Serve) -> None:
    listener = (log := Log()).listener(on_open=lambda self, wsclient: narrow(wsclient))
    middleware = middleware_for(listener, close_timeout=0.2, **IDLE)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        outbox = connection_of(middleware).outbox
        ping = frame(PING, "x" * 125) * 50

        def flood() -> bool:
            with contextlib.suppress(OSError):
                peer.send(ping)
            return outbox.is_stalled

        wait_until(flood)
        wait_until(lambda: flood() and not log.client.is_open(), timeout=3)
        peer.reset()


# -- replies that nobody gets ------------------------------------------------------------------


@pytest.mark.parametrize("who", ["peer closes", "peer resets", "we close"])
@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_message"])
def test_lost_reply_is_one_line(
    serve: Serve, caplog: pytest.LogCaptureFixture, name: str, who: str
) -> None:
    caplog.set_level(logging.INFO, "websocket")
    go = Event()
    clients: list[Any] = []

    def work(self: Any, wsclient: Any, *args: Any) -> str:
        clients.append(wsclient)
        go.wait(5)
        return "too late"

    listener = type("Working", (WebSocketListener,), {name: work})
    server = serve(middleware_for(listener, close_timeout=0.1))
    with peer_of(server) as peer:
        peer.send(frame(TEXT, "go") * 3)
        wait_until(lambda: clients)
        if who == "we close":
            clients[0].close()
        elif who == "peer closes":
            peer.send(close_frame(1000))
        else:
            peer.reset()
        wait_until(lambda: not clients[0].is_open())
        go.set()
        wait_until(lambda: " lost: " in caplog.text)
    lines = [record.getMessage() for record in caplog.records if " lost: " in record.getMessage()]
    count = 3 if name == "on_message" and who != "we close" else 1
    assert [line.partition(": ")[2] for line in lines] == [
        f"{count} {'reply' if count == 1 else 'replies'} lost: the connection had closed"
    ]
