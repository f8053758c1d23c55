"""Every way a connection ends, from both sides (RFC 6455, section 7)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from support import Server, wait_until
from support.wire import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Log,
    close_frame,
    connection_of,
    frame,
    middleware_for,
    narrow,
    peer_of,
)

Serve = Callable[..., Server]


def start(serve: Serve, log: Log, callbacks: Any = None, **settings: Any) -> Server:
    return serve(middleware_for(log.listener(**(callbacks or {})), **settings))


def closed(log: Log, code: int, reason: str = "") -> None:
    wait_until(lambda: log.closes, "on_close was not called")
    assert log.closes == [(code, reason)]


# -- the peer closes --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
def test_close_frame_is_answered_with_its_code_and_reason(serve: Serve, code: int) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        peer.send(close_frame(code, "thank you ü"))
        assert peer.read_close() == (code, "thank you ü")
        peer.read_end()
    closed(log, code, "thank you ü")


def test_empty_close_frame_is_answered_with_an_empty_one(serve: Serve) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        peer.send(frame(CLOSE))
        assert peer.read() == (CLOSE, b"")
        peer.read_end()
    closed(log, 1005)


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\3", 1002)]
    + [(code.to_bytes(2, "big"), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)]
    + [(b"\3\xe8\xff", 1002)],
)
def test_bad_close_frame_is_a_protocol_error(serve: Serve, payload: bytes, code: int) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        peer.send(frame(CLOSE, payload))
        sent, _ = peer.read_close()
        assert sent == (1007 if payload.endswith(b"\xff") else code)
        peer.read_end()
    closed(log, 1006)


def test_messages_before_the_close_frame_are_answered_first(serve: Serve) -> None:
    def on_message(self: Any, wsclient: Any, message: Any) -> Any:
        gevent.sleep(0.01)
        return message

    with peer_of(start(serve, log := Log(), {"on_message": on_message})) as peer:
        messages = [f"{number}" for number in range(5)]
        peer.send(*(frame(TEXT, each) for each in messages), close_frame(4001), frame(TEXT, "no"))
        assert [peer.read_text() for _ in messages] == messages
        assert peer.read_close() == (4001, "")
        peer.read_end()
    closed(log, 4001)
    assert log.messages == messages


def test_callback_holds_the_answer_up_for_close_timeout_at_most(serve: Serve) -> None:
    release = Event()
    callbacks = {"on_message": lambda *args: release.wait()}
    with peer_of(start(serve, log := Log(), callbacks, close_timeout=0.2)) as peer:
        started = time.monotonic()
        peer.send(frame(TEXT, "slow"), close_frame(1000))
        assert peer.read_close() == (1000, "")
        assert 0.15 < time.monotonic() - started < 2
        peer.read_end()
        assert not log.closes, "on_close ran beside on_message"
        release.set()
    closed(log, 1000)


def test_callback_may_close_after_the_peer_has(serve: Serve) -> None:
    # The peer's close frame has come, but its message is being handled.
    def on_message(self: Any, wsclient: Any, message: Any) -> None:
        wait_until(lambda: wsclient._connection.is_ending)
        wsclient.close(4002, "ours")

    with peer_of(start(serve, log := Log(), {"on_message": on_message})) as peer:
        peer.send(frame(TEXT, "x"), close_frame(4001, "theirs"))
        assert peer.read_close() == (4002, "ours")
        peer.read_end()
    closed(log, 4001, "theirs")


def test_peer_that_keeps_tcp_open_after_the_handshake_is_dropped(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener(), close_timeout=0.5)
    with peer_of(serve(middleware)) as peer:
        peer.send(close_frame(1000))
        assert peer.read_close() == (1000, "")
        peer.read_end()  # our direction has ended
        closed(log, 1000)
        assert middleware.registry.unfinished == 1  # its socket holds a place
        wait_until(lambda: middleware.registry.unfinished == 0)


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize(
    "wire", [close_frame(4000, "bye"), b"\x81\x02hi"], ids=["close", "invalid"]
)
def test_on_close_does_not_wait_for_tcp_to_end(serve: Serve, wire: bytes, is_read: bool) -> None:
    edges: list[str] = []
    listener = (log := Log()).listener(on_open=lambda self, wsclient: narrow(wsclient))
    listener.on_last_close = classmethod(lambda cls: edges.append("last"))  # type: ignore[attr-defined]
    middleware = middleware_for(listener, close_timeout=60)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        if not is_read:
            log.client.send(b"x" * 500_000)  # so that our close frame waits
        peer.send(wire)
        closed(log, *((4000, "bye") if wire[0] == 0x88 else (1006,)))
        wait_until(lambda: edges)
        assert middleware.registry.unfinished == 1
        if not is_read:
            assert peer.read() == (BINARY, b"x" * 500_000)
        assert peer.read_close()[0] == (4000 if wire[0] == 0x88 else 1002)
        peer.read_end()
    wait_until(lambda: middleware.registry.unfinished == 0)
    assert log.closes[1:] == [] and edges == ["last"]


# -- we close ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1012, 1014, 3000, 4999, "GOING_AWAY"])
def test_own_close_waits_for_the_peers(serve: Serve, code: int | str) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        client = log.client
        client.close(code, "tschüß")
        assert not client.is_open()
        assert peer.read_close() == (1001 if code == "GOING_AWAY" else code, "tschüß")
        assert not log.closes
        peer.send(close_frame(4000, "bye"))
        peer.read_end()
        closed(log, 4000, "bye")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2000, 5000, "NONE"])
def test_close_refuses_other_codes(serve: Serve, code: int | str) -> None:
    with start(serve, log := Log()).connect("/ws/test") as ws:
        wait_until(lambda: log.clients)
        with pytest.raises(ValueError, match=str(code)):
            log.client.close(code)
        with pytest.raises(ValueError, match="123"):
            log.client.close(1000, "ü" * 62)
        ws.send("still open")
        assert ws.recv() == "still open"


def test_second_close_does_nothing(serve: Serve) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        log.client.close(4001)
        log.client.close(4002)
        assert peer.read_close() == (4001, "")
        peer.send(close_frame(4001))
        peer.read_end()
        log.client.close(4003)


def test_messages_after_our_close_are_for_nobody(serve: Serve) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        log.client.close()
        peer.send(*(frame(TEXT, "late") for _ in range(1000)), close_frame(1000))
        assert peer.read_close() == (1000, "")
        peer.read_end()
    closed(log, 1000)
    assert log.messages == []


def test_close_in_a_batch_ends_it(serve: Serve) -> None:
    def on_message(self: Any, wsclient: Any, message: Any) -> Any:
        if message == "stop":
            wsclient.close(4000)
        return message

    with peer_of(start(serve, log := Log(), {"on_message": on_message})) as peer:
        peer.send(*(frame(TEXT, each) for each in ("one", "stop", "two")))
        assert peer.read_text() == "one"
        assert peer.read_close() == (4000, "")
        peer.send(close_frame(4000))
        peer.read_end()
    assert log.messages == ["one", "stop"]


def test_what_is_queued_goes_before_our_close_frame(serve: Serve) -> None:
    log = Log()
    server = start(serve, log, {"on_open": lambda self, wsclient: narrow(wsclient)})
    with peer_of(server, receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        for number in range(50):
            log.client.send(bytes([number]) * 10_000)
        log.client.close(4000)
        assert [peer.read() for _ in range(50)] == [
            (BINARY, bytes([n]) * 10_000) for n in range(50)
        ]
        assert peer.read_close() == (4000, "")
        peer.send(close_frame(4000))
        peer.read_end()
    closed(log, 4000)


def test_slow_reader_gets_what_is_queued_however_long_it_takes(serve: Serve) -> None:
    log = Log()
    callbacks = {"on_open": lambda self, wsclient: narrow(wsclient)}
    with peer_of(start(serve, log, callbacks, close_timeout=0.3), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        for _ in range(20):
            log.client.send(b"x" * 10_000)
        log.client.close(4000)
        started = time.monotonic()
        for _ in range(20):
            assert peer.read() == (BINARY, b"x" * 10_000)
            gevent.sleep(0.05)
        assert time.monotonic() - started > 0.9
        assert peer.read_close() == (4000, "")
        peer.send(close_frame(4000))
    closed(log, 4000)


def test_peer_that_ignores_our_close_is_dropped(serve: Serve) -> None:
    with peer_of(start(serve, log := Log(), close_timeout=0.2)) as peer:
        wait_until(lambda: log.clients)
        log.client.close(4000)
        started = time.monotonic()
        assert peer.read_close() == (4000, "")
        peer.read_end()
        assert 0.15 < time.monotonic() - started < 2
    closed(log, 1006)


def test_peer_that_reads_nothing_after_our_close_is_dropped(serve: Serve) -> None:
    log = Log()
    callbacks = {"on_open": lambda self, wsclient: narrow(wsclient)}
    with peer_of(start(serve, log, callbacks, close_timeout=0.2), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        log.client.send(b"x" * 500_000)
        log.client.close(4000)
        closed(log, 1006)
        peer.reset()


def test_both_close_at_once(serve: Serve) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        peer.send(close_frame(4001, "theirs"))
        log.client.close(4002, "ours")
        assert peer.read_close() == (4002, "ours")
        peer.read_end()
    closed(log, 4001, "theirs")


# -- violations -------------------------------------------------------------------------------

VIOLATIONS = {
    "unmasked": (b"\x81\x02hi", 1002),
    "reserved bit": (b"\xc1\x80\0\0\0\0", 1002),
    "unknown opcode": (frame(3, "x"), 1002),
    "fragmented ping": (frame(PING, "x", fin=False), 1002),
    "continuation of nothing": (frame(0, "x"), 1002),
    "message inside a message": (frame(TEXT, "a", fin=False) + frame(TEXT, "b"), 1002),
    "utf-8": (frame(TEXT, b"\xff"), 1007),
    "utf-8 in a fragment": (frame(TEXT, b"\xc3", fin=False) + frame(0, b"\x28", fin=False), 1007),
    "too big": (b"\x82\xff" + (2**20 + 1).to_bytes(8, "big") + b"\0\0\0\0", 1009),
}


@pytest.mark.parametrize("wire", VIOLATIONS)
def test_violation_fails_the_connection_after_what_came_before(
    serve: Serve, caplog: pytest.LogCaptureFixture, wire: str
) -> None:
    data, code = VIOLATIONS[wire]
    with peer_of(start(serve, log := Log())) as peer:
        caplog.clear()
        peer.send(frame(TEXT, "before"), data, frame(TEXT, "after"))
        assert peer.read_text() == "before"
        sent, reason = peer.read_close()
        assert sent == code
        assert reason
        peer.read_end()
    closed(log, 1006)
    assert log.messages == ["before"]
    assert [r for r in caplog.records if r.levelno > logging.INFO] == [], "a peer's fault alone"


def test_unread_input_does_not_destroy_our_close_frame(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener())
    with peer_of(serve(middleware)) as peer:
        wait_until(lambda: log.clients)
        connection = connection_of(middleware)
        sender = gevent.spawn(peer.send, b"\x81\x02hi", b"x" * 4_000_000)
        wait_until(lambda: connection.sent_code)  # a reset would overtake it, were there one
        assert peer.read_close()[0] == 1002
        sender.get(timeout=10)
        peer.read_end()
        assert middleware.registry.unfinished == 1, "the socket was closed before all was read"
    closed(log, 1006)


def test_violation_in_answer_to_our_close_is_read_to_its_end(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener())
    with peer_of(serve(middleware)) as peer:
        wait_until(lambda: log.clients)
        connection = connection_of(middleware)
        log.client.close(4000)
        sender = gevent.spawn(peer.send, b"\x81\x02hi", b"x" * 4_000_000)
        wait_until(lambda: connection.failure)
        assert peer.read_close() == (4000, "")
        sender.get(timeout=10)
        peer.read_end()
        assert middleware.registry.unfinished == 1, "the socket was closed before all was read"


def test_violation_in_answer_to_our_close_leaves_it_intact(serve: Serve) -> None:
    log = Log()
    callbacks = {"on_open": lambda self, wsclient: narrow(wsclient)}
    with peer_of(start(serve, log, callbacks), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        log.client.send(b"x" * 300_000)
        connection = log.client._connection
        log.client.close(4000)
        peer.send(b"\x81\x02hi", b"x" * 100_000)
        wait_until(lambda: connection.failure)
        assert peer.read() == (BINARY, b"x" * 300_000)
        assert peer.read_close() == (4000, "")
        peer.read_end()
    closed(log, 1006)


# -- the stream breaks ------------------------------------------------------------------------

STAGES = {
    "at once": b"",
    "in a header": b"\x81",
    "in a frame": frame(TEXT, "hello")[:-2],
    "in a message": frame(TEXT, "hello", fin=False),
    "behind a message": frame(TEXT, "hello"),
}


@pytest.mark.parametrize("is_reset", [False, True], ids=["EOF", "RST"])
@pytest.mark.parametrize("stage", STAGES)
def test_end_of_stream_at_any_stage_is_1006_once(serve: Serve, stage: str, is_reset: bool) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        peer.send(STAGES[stage])
        if stage == "behind a message":
            assert peer.read_text() == "hello"
        if is_reset:
            peer.reset()
    closed(log, 1006)
    assert not log.client.is_open()
    assert log.errors == []


@pytest.mark.parametrize("is_reset", [False, True], ids=["EOF", "RST"])
def test_end_of_stream_while_a_callback_blocks(serve: Serve, is_reset: bool) -> None:
    release = Event()

    def on_message(self: Any, wsclient: Any, message: Any) -> Any:
        release.wait()
        return message

    with peer_of(start(serve, log := Log(), {"on_message": on_message})) as peer:
        peer.send(frame(TEXT, "one"))
        wait_until(lambda: log.messages)
        peer.send(frame(TEXT, "two"))
        if is_reset:
            peer.reset()
    wait_until(lambda: not log.client.is_open())
    assert not log.closes
    release.set()
    closed(log, 1006)
    assert log.messages[:1] == ["one"]


@pytest.mark.parametrize("is_reset", [False, True], ids=["EOF", "RST"])
def test_end_of_stream_in_answer_to_our_close(serve: Serve, is_reset: bool) -> None:
    with peer_of(start(serve, log := Log())) as peer:
        wait_until(lambda: log.clients)
        log.client.close(4000)
        assert peer.read_close() == (4000, "")
        if is_reset:
            peer.reset()
    closed(log, 1006)
