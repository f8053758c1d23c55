"""A peer that does not read, a listener that does not keep up: every queue has its limit."""

from __future__ import annotations

import _socket
import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

from support import Server, wait_until
from support.room import hold_up_thread
from support.threads import in_thread
from support.wire import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Log,
    Peer,
    close_frame,
    connection_of,
    frame,
    middleware_for,
    narrow,
    peer_of,
)
from wsmiddleware import (
    ConnectionClosed,
    SlowConsumerError,
    WebSocketError,
    WebSocketMiddleware,
)
from wsmiddleware.net.connection import Connection
from wsmiddleware.net.reader import LARGE_RECV_SIZE
from wsmiddleware.net.throttle import Throttle
from wsmiddleware.protocol.deflate import compress

Serve = Callable[..., Server]
start_thread = monkey.get_original("_thread", "start_new_thread")

MARK = 65536
PIECE = b"x" * 1000


class Stalled:
    """A client whose outbox is at its mark, and the peer that does not read."""

    def __init__(self, middleware: WebSocketMiddleware, log: Log, peer: Peer) -> None:
        wait_until(lambda: log.clients)
        self.middleware, self.log, self.peer = middleware, log, peer
        self.client = log.client
        self.connection = connection_of(middleware)
        self.outbox = self.connection.outbox
        self.queued = 0
        self.fill()

    def fill(self) -> None:
        """Sends until the mark is reached, and the kernel takes no more.

        Once more after the loop has turned: with the peer's delayed acknowledgement, 40 ms later,
        the kernel takes another piece of it.
        """
        while True:
            self.outbox.retry()
            if self.outbox.size >= MARK:
                return
            assert self.client.send(PIECE, wait=False)
            self.queued += 1

    def read_queued(self) -> None:
        """Lets the peer read all that was sent."""
        for _ in range(self.queued):
            assert self.peer.read() == (BINARY, PIECE)


@contextmanager
def stalled(serve: Serve, **settings: Any) -> Iterator[Stalled]:
    log = Log()
    listener = log.listener(on_open=lambda self, wsclient: narrow(wsclient))
    middleware = middleware_for(listener, send_queue_size=MARK, **settings)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        yield Stalled(middleware, log, peer)


# -- past the mark ----------------------------------------------------------------------------


def test_send_below_the_mark_returns_at_once(serve: Serve) -> None:
    with stalled(serve) as it:
        assert it.outbox.is_stalled
        assert MARK <= it.outbox.size < MARK + 1004
        it.read_queued()
        wait_until(lambda: it.outbox.size == 0)


def test_send_past_the_mark_waits_for_the_low_mark(serve: Serve) -> None:
    with stalled(serve) as it:
        sizes: list[int] = []

        def send() -> None:
            it.client.send("last")
            sizes.append(it.outbox.size)

        sender = gevent.spawn(send)
        while True:
            gevent.sleep(0.001)
            if sizes:
                break
            assert it.outbox.size > MARK // 4
            assert it.peer.read() == (BINARY, PIECE)
            it.queued -= 1
        assert 0 < sizes[0] <= MARK // 4 + 6
        it.read_queued()
        assert it.peer.read_text() == "last"
        sender.get()


def test_send_gives_up_after_send_timeout(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with stalled(serve, send_timeout=0.2) as it:
        caplog.clear()
        started = time.monotonic()
        with pytest.raises(SlowConsumerError):
            while it.client.send(PIECE):
                it.queued += 1  # the kernel has taken another piece meanwhile
        assert 0.15 < time.monotonic() - started < 2
        assert not it.client.is_open()
        assert it.middleware.metrics.slow_consumers == 1
        with pytest.raises(ConnectionClosed):
            it.client.send("more")
        it.read_queued()
        assert it.peer.read_close() == (1013, "slow consumer")
        it.peer.send(close_frame(1013))
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    wait_until(lambda: it.log.closes)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["a callback", "SIGSTOP"])
def test_loop_that_is_held_up_closes_no_reader(serve: Serve, is_stopped: bool) -> None:
    """The peer reads all the time, in a thread; we alone are late."""
    with stalled(serve, send_timeout=0.3, close_timeout=0.3, ping_timeout=0.3) as it:
        sender = gevent.spawn(it.client.send, "behind")
        gevent.sleep(0.05)
        assert not sender.dead
        in_background(lambda: read_natively(it.peer))
        if is_stopped:
            pid = os.getpid()
            command = f"kill -STOP {pid}; sleep 1; kill -CONT {pid}"
            subprocess.run(["sh", "-c", command], check=True)
        else:
            hold_up_thread(1)
        assert sender.get(timeout=5) is True
        assert it.client.is_open()
        assert it.client.send("still there", wait=False)
        it.client.close()


def in_background(function: Callable[[], None]) -> None:
    """In a native thread, which goes on while the loop is held up."""
    monkey.get_original("_thread", "start_new_thread")(function, ())


def read_natively(peer: Peer) -> None:
    with contextlib.closing(_socket.socket(fileno=os.dup(peer.sock.fileno()))) as plain:
        plain.setblocking(True)
        while plain.recv(2**20):
            pass


def test_close_wakes_whoever_waits_for_room(serve: Serve) -> None:
    with stalled(serve, send_timeout=60) as it:
        senders = [gevent.spawn(it.client.send, "x") for _ in range(3)]
        wait_until(lambda: it.outbox._room and it.outbox._room.linkcount() == 3)
        it.client.close(4000)
        for sender in senders:
            with pytest.raises(ConnectionClosed):
                sender.get(timeout=1)
        it.peer.reset()


def test_reset_wakes_whoever_waits_for_room(serve: Serve) -> None:
    with stalled(serve, send_timeout=60) as it:
        sender = gevent.spawn(it.client.send, "x")
        wait_until(lambda: it.outbox._room)
        it.peer.reset()
        with pytest.raises(ConnectionClosed):
            sender.get(timeout=5)


def test_send_that_does_not_wait_closes_a_slow_consumer(serve: Serve) -> None:
    with stalled(serve) as it:
        with pytest.raises(SlowConsumerError):
            it.client.send("too much", wait=False)
        assert not it.client.is_open()
        it.read_queued()
        assert it.peer.read_close() == (1013, "slow consumer")


def test_broadcast_closes_a_slow_consumer_and_reaches_the_others(serve: Serve) -> None:
    with stalled(serve) as it:
        server = Server(it.peer.sock.getpeername()[1])
        with server.connect("/ws/test") as other:
            wait_until(lambda: len(it.log.clients) == 2)
            it.fill()
            started = time.monotonic()
            assert it.log.client.broadcast("news")
            assert time.monotonic() - started < 1
            assert other.recv(timeout=5) == "news"
            assert not it.client.is_open()
        it.read_queued()
        assert it.peer.read_close() == (1013, "slow consumer")


def test_slow_consumer_drop_loses_that_message_and_tells(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with stalled(serve, slow_consumer="drop", close_timeout=0.2) as it:
        caplog.clear()
        for _ in range(100):
            assert it.client.send("lost", wait=False) is False
        it.client.broadcast("lost too")
        assert it.middleware.metrics.dropped == 101
        assert it.client.is_open()
        wait_until(lambda: caplog.records)
        it.read_queued()
        wait_until(lambda: it.outbox.size == 0)
        it.client.send("after")
        assert it.peer.read_text() == "after"
    wait_until(lambda: it.log.closes)
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "101 messages dropped" in lines[0]


def test_what_was_dropped_is_told_at_the_end_too(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with stalled(serve, slow_consumer="drop") as it:
        assert it.client.send("lost", wait=False) is False
        it.peer.reset()
    wait_until(lambda: it.log.closes)
    assert "1 messages dropped" in caplog.text


def test_one_message_may_be_larger_than_the_mark(serve: Serve) -> None:
    with stalled(serve) as it:
        it.read_queued()
        wait_until(lambda: it.outbox.size == 0)
        big = b"y" * (10 * MARK)
        it.client.send(big)
        assert it.outbox.size > MARK
        assert it.peer.read() == (BINARY, big)


def test_waiting_senders_take_turns_and_nothing_is_lost(serve: Serve) -> None:
    with stalled(serve, send_timeout=30) as it:
        it.read_queued()

        def send(letter: bytes) -> None:
            for _ in range(20):
                it.client.send(letter * 20_000)

        senders = [gevent.spawn(send, letter) for letter in (b"a", b"b", b"c", b"d")]
        seen = []
        for _ in range(80):
            opcode, payload = it.peer.read()
            assert (opcode, len(payload)) == (BINARY, 20_000)
            assert payload == payload[:1] * 20_000, "two messages interleaved"
            seen.append(payload[:1])
            assert it.outbox.size < MARK + 4 * 20_010
        assert sorted(seen) == sorted([b"a", b"b", b"c", b"d"] * 20)
        gevent.joinall(senders, raise_error=True)


# -- native threads ---------------------------------------------------------------------------


def test_native_threads_send_in_order(serve: Serve) -> None:
    log = Log()
    with serve(middleware_for(log.listener())).connect("/ws/test") as ws:
        wait_until(lambda: log.clients)

        def send() -> None:
            for number in range(500):
                assert log.client.send(f"{number}")

        in_thread(send)
        assert [ws.recv(timeout=5) for _ in range(500)] == [f"{n}" for n in range(500)]


def test_native_thread_never_waits_for_a_slow_consumer(serve: Serve) -> None:
    with stalled(serve, send_timeout=60) as it:
        # Far past the mark: what the kernel takes after a delayed acknowledgement makes no room.
        it.outbox.enqueue(it.connection.encode(b"y" * MARK, False))
        started = time.monotonic()
        in_thread(lambda: it.client.send("too much"))
        assert time.monotonic() - started < 5
        wait_until(lambda: not it.client.is_open())
        it.read_queued()
        assert it.peer.read() == (BINARY, b"y" * MARK)
        assert it.peer.read_close() == (1013, "slow consumer")


def test_native_thread_closes(serve: Serve) -> None:
    log = Log()
    with peer_of(serve(middleware_for(log.listener()))) as peer:
        wait_until(lambda: log.clients)

        def send_and_close() -> None:
            log.client.send("bye")
            log.client.close(4000, "done")

        in_thread(send_and_close)
        assert peer.read_text() == "bye"
        assert peer.read_close() == (4000, "done")


def send_while_the_loop_is_held_up(send: Callable[[int], bool], count: int) -> list[object]:
    """What each of `count` sends of a native thread came to; no greenlet runs meanwhile."""
    outcomes: list[object] = []

    def work() -> None:
        for number in range(count):
            try:
                outcomes.append(send(number))
            except WebSocketError as exc:
                outcomes.append(type(exc))

    start_thread(work, ())
    deadline = time.monotonic() + 20
    while len(outcomes) < count:
        assert time.monotonic() < deadline, f"a send waits: {len(outcomes)} have returned"
        hold_up_thread(0.01)
    return outcomes


@pytest.mark.parametrize("size", [20_000, 1])
@pytest.mark.parametrize("policy", ["close", "drop"])
def test_sends_of_a_native_thread_count_at_once_against_the_mark(
    serve: Serve, caplog: pytest.LogCaptureFixture, policy: str, size: int
) -> None:
    log, count = Log(), 2000
    middleware = middleware_for(log.listener(), send_queue_size=MARK, slow_consumer=policy)
    with peer_of(serve(middleware)) as peer:
        wait_until(lambda: log.clients)
        outcomes = send_while_the_loop_is_held_up(lambda _: log.client.send(b"x" * size), count)
        taken = outcomes.count(True)
        assert 0 < taken * size < MARK + size
        assert taken < 1000  # small ones take room too
        refused = SlowConsumerError if policy == "close" else False
        assert outcomes == [True] * taken + [refused] * (count - taken)
        assert [peer.read() for _ in range(taken)] == [(BINARY, b"x" * size)] * taken
        if policy == "close":
            assert peer.read_close() == (1013, "slow consumer")
            peer.send(close_frame(1013))
        else:
            in_thread(lambda: log.client.send("there is room again"))
            assert peer.read_text() == "there is room again"
            assert middleware.metrics.dropped == count - taken
    wait_until(lambda: log.closes)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("native thread" in line or "dropped" in line for line in warnings) == 1


@pytest.mark.parametrize("policy", ["close", "drop"])
def test_broadcasts_of_a_native_thread_count_at_once_against_the_mark(
    serve: Serve, policy: str
) -> None:
    log, size, count = Log(), 20_000, 2000
    middleware = middleware_for(log.listener(), send_queue_size=MARK, slow_consumer=policy)
    server = serve(middleware)
    with peer_of(server) as one, peer_of(server) as other:
        wait_until(lambda: len(log.clients) == 2)
        outcomes = send_while_the_loop_is_held_up(
            lambda _: log.client.broadcast(b"x" * size), count
        )
        assert outcomes == [True] * count
        if policy == "drop":
            wait_until(lambda: middleware.metrics.dropped)
            in_thread(lambda: log.client.broadcast("there is room again"))
        for peer in (one, other):
            taken = 0
            while (last := peer.read()) == (BINARY, b"x" * size):
                taken += 1
            assert 0 < taken * size < MARK + size
            if policy == "close":
                assert last[0] == CLOSE
                peer.send(close_frame(1013))
            else:
                assert last == (TEXT, b"there is room again")
                assert middleware.metrics.dropped == 2 * (count - taken)


def test_burst_of_a_native_thread_reaches_a_peer_that_reads(serve: Serve) -> None:
    """Far more than the mark, but the loop is there to take it."""
    log, count = Log(), 300
    middleware = middleware_for(log.listener(), send_queue_size=MARK)
    with peer_of(serve(middleware)) as peer:
        wait_until(lambda: log.clients)
        reader = gevent.spawn(lambda: [peer.read() for _ in range(count)])

        def burst() -> None:
            for _ in range(count):
                assert log.client.send(b"x" * 2000)

        in_thread(burst)
        assert reader.get(timeout=10) == [(BINARY, b"x" * 2000)] * count


# -- when it goes to the wire -----------------------------------------------------------------


def test_what_is_sent_shows_when_the_callback_blocks(serve: Serve) -> None:
    release = Event()

    def on_message(self: Any, wsclient: Any, message: Any) -> str:
        wsclient.send("working")
        wsclient.send("hard")
        release.wait()
        return "done"

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(frame(TEXT, "go"))
        assert peer.read_text() == "working"
        assert peer.read_text() == "hard"
        release.set()
        assert peer.read_text() == "done"


def test_replies_of_a_batch_share_a_write(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("net.connection",):  # however slow the machine is just then
        monkeypatch.setattr(f"wsmiddleware.{module}.TIME_SLICE", 60.0)
    with peer_of(serve(middleware_for(Log().listener()))) as peer:
        peer.send(*(frame(TEXT, f"{n:04}") for n in range(8)))
        assert [peer.read_text() for _ in range(8)] == [f"{n:04}" for n in range(8)]
        assert peer.count_writes() == 1


def test_reply_in_a_batch_keeps_its_place_between_sends(serve: Serve) -> None:
    def on_message(self: Any, wsclient: Any, message: str) -> str:
        if message == "2":
            wsclient.send("sent")
        if message == "4":
            wsclient.close(4000, "enough")
        return message

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(*(frame(TEXT, f"{n}") for n in range(8)))
        assert [peer.read_text() for _ in range(5)] == ["0", "1", "sent", "2", "3"]
        assert peer.read_close() == (4000, "enough")


def test_replies_show_when_a_later_callback_of_the_batch_blocks(serve: Serve) -> None:
    release = Event()

    def on_message(self: Any, wsclient: Any, message: str) -> str:
        if message == "3":
            release.wait()
        return message

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(*(frame(TEXT, f"{n}") for n in range(5)))
        assert [peer.read_text() for _ in range(3)] == ["0", "1", "2"]
        release.set()
        assert [peer.read_text() for _ in range(2)] == ["3", "4"]


@pytest.mark.parametrize("odd", [{"a": 1}, 7, ["x"], bytearray(b"x"), "y" * 20000])
def test_odd_reply_in_a_batch_keeps_its_place(serve: Serve, odd: object) -> None:
    def on_message(self: Any, wsclient: Any, message: str) -> object:
        return odd if message == "1" else message

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(*(frame(TEXT, f"{n}") for n in range(4)))
        assert peer.read_text() == "0"
        expected = odd if isinstance(odd, (str, bytearray)) else json.dumps(odd)
        payload = expected.encode() if isinstance(expected, str) else bytes(expected)
        assert peer.read()[1] == payload
        assert [peer.read_text() for _ in range(2)] == ["2", "3"]


def test_answers_to_pings_of_a_batch_share_a_write(serve: Serve) -> None:
    with peer_of(serve(middleware_for(Log().listener()))) as peer:
        peer.send(frame(PING, "x") * 100)
        assert [peer.read() for _ in range(100)] == [(PONG, b"x")] * 100
        assert peer.count_writes() == 1


def test_sends_and_reply_of_a_callback_keep_their_order_in_one_write(serve: Serve) -> None:
    def on_message(self: Any, wsclient: Any, message: Any) -> str:
        wsclient.send("one")
        wsclient.broadcast("two")
        return "three"

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(frame(TEXT, "go"))
        assert [peer.read_text() for _ in range(3)] == ["one", "two", "three"]
        assert peer.count_writes() == 1


def test_replies_do_not_wait_for_a_batch_that_computes(serve: Serve) -> None:
    def on_message(self: Any, wsclient: Any, message: Any) -> Any:
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass
        return message

    with peer_of(serve(middleware_for(Log().listener(on_message=on_message)))) as peer:
        peer.send(*(frame(TEXT, f"{n:04}") for n in range(5)))
        assert [peer.read_text() for _ in range(5)] == [f"{n:04}" for n in range(5)]
        assert peer.count_writes() == 5


# -- a listener that does not keep up ---------------------------------------------------------


@contextmanager
def blocked(
    serve: Serve, extensions: str | None = None, **settings: Any
) -> Iterator[tuple[Peer, Connection, Log, Event]]:
    """A connection whose first message blocks until the event is set."""
    release, log = Event(), Log()

    def on_message(self: Any, wsclient: Any, message: Any) -> str | None:
        release.wait()
        return "done" if message == "last" else None

    middleware = middleware_for(log.listener(on_message=on_message), **settings)
    with peer_of(serve(middleware), extensions=extensions) as peer:
        wait_until(lambda: log.clients)
        yield peer, connection_of(middleware), log, release
        release.set()


@pytest.mark.parametrize("size", [10, 1000, 60_000, 500_000])
def test_full_inbox_stops_reading_and_nothing_is_lost(serve: Serve, size: int) -> None:
    with blocked(serve, request_timeout=60) as (peer, connection, log, release):
        piece = frame(BINARY, b"x" * size)
        count = peer.send_until_full(b"".join([piece] * (1 + 100_000 // size)))
        waiting = sum(map(len, connection.inbox))
        assert waiting < 262144 + max(LARGE_RECV_SIZE, size)
        # Less than 256 wait, and a read brings 256 by the extension and as many by the engine.
        assert len(connection.inbox) < 768
        assert connection.bytes_received < 2**20 + 2 * size
        release.set()
        peer.finish()
        peer.send(frame(TEXT, "last"))
        assert peer.read_text() == "done"
        assert len(log.messages) == (count + 1) * (1 + 100_000 // size) + 1
        assert all(message == b"x" * size for message in log.messages[:-1])


def test_messages_that_grow_do_not_pile_up(serve: Serve) -> None:
    bomb = frame(BINARY, compress(b"x" * 2**20, 15) or b"")
    compressed = bytes([bomb[0] | 0x40]) + bomb[1:]
    with blocked(serve, extensions="permessage-deflate") as (peer, connection, log, release):
        peer.send(frame(TEXT, "block"))
        wait_until(lambda: log.messages)
        peer.send(compressed * 40)  # in all fewer bytes than one read takes
        wait_until(lambda: connection.is_paused)
        for _ in range(20):  # turns, in each of which it may go on
            connection.reactor.wait_for_turn()
        assert len(connection.inbox) == 1
        release.set()
        peer.send(frame(TEXT, "last"))
        assert peer.read_text() == "done"
        assert [len(message) for message in log.messages] == [5, *[2**20] * 40, 4]


def test_pings_of_a_peer_that_does_not_read_cost_one_payload(serve: Serve) -> None:
    with stalled(serve) as it:
        size = it.outbox.size
        it.peer.send(*(frame(PING, f"{number}") for number in range(5000)))
        wait_until(lambda: it.connection.bytes_received > 5000 * 7)
        wait_until(lambda: it.connection._pong == b"4999")
        assert it.outbox.size <= size
        it.read_queued()
        assert it.peer.read() == (PONG, b"4999")


# -- max_message_rate -------------------------------------------------------------------------


def test_message_rate_pauses_reading_and_loses_nothing(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener(), max_message_rate=50)
    with peer_of(serve(middleware)) as peer:
        started = time.monotonic()
        peer.send(*(frame(TEXT, f"{number}") for number in range(80)))
        assert [peer.read_text() for _ in range(80)] == [f"{number}" for number in range(80)]
        assert 0.5 < time.monotonic() - started < 3
    # How often depends on the loop: held up for a while, the bucket gives several at once.
    assert middleware.metrics.throttled >= 1
    assert len(log.messages) == 80


def test_message_rate_lets_a_burst_through(serve: Serve) -> None:
    middleware = middleware_for(Log().listener(), max_message_rate=100)
    with peer_of(serve(middleware)) as peer:
        started = time.monotonic()
        peer.send(*(frame(TEXT, "x") for _ in range(99)))
        for _ in range(99):
            peer.read()
        assert time.monotonic() - started < 0.9
    assert middleware.metrics.throttled == 0


def test_message_rate_goes_on_after_a_timer_that_came_early(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = Throttle.start, Event()

    def start_second(self: Throttle, callback: Callable[[], object]) -> None:
        if started.is_set():
            start(self, callback)
        started.set()  # the first does not come: `_resume` is called early below

    monkeypatch.setattr(Throttle, "start", start_second)
    middleware = middleware_for(Log().listener(), max_message_rate=5)
    with peer_of(serve(middleware)) as peer:
        peer.send(*(frame(TEXT, f"{number}") for number in range(6)))
        for _ in range(5):
            peer.read()
        connection = connection_of(middleware)
        wait_until(lambda: connection.is_paused)
        connection._resume()
        assert peer.read_text() == "5"


def test_message_rate_does_not_fill_the_inbox_past_its_limit(serve: Serve) -> None:
    with blocked(serve, max_message_rate=200) as (peer, connection, log, release):
        peer.send(frame(TEXT, "x"))
        wait_until(lambda: log.messages)
        peer.send(*(frame(TEXT, "x") for _ in range(400)))
        wait_until(lambda: len(connection.inbox) >= 256)
        # Of a loop that is held up, the bucket lets as many as it holds in at once.
        full = len(connection.inbox)
        assert full < 256 + 200
        gevent.sleep(0.3)  # by their rate 60 more might come
        assert len(connection.inbox) == full
        release.set()
        peer.send(frame(TEXT, "last"))
        assert peer.read_text() == "done"
        assert len(log.messages) == 402


def test_message_rate_does_not_hold_up_our_closing_handshake(serve: Serve) -> None:
    middleware = middleware_for((log := Log()).listener(), max_message_rate=1)
    with peer_of(serve(middleware)) as peer:
        peer.send(*(frame(TEXT, "x") for _ in range(20)))
        wait_until(lambda: log.messages)
        log.client.close(4000)
        peer.send(close_frame(4000))
        wait_until(lambda: log.closes, timeout=3)
        assert log.closes == [(4000, "")]
