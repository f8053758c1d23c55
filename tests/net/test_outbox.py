"""The write queue over a real pair of sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from support import wait_until
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.transport import TcpTransport


class Owner:
    """What an outbox told its owner."""

    def __init__(self) -> None:
        self.errors: list[OSError] = []
        self.drained_count = self.moved_count = 0

    def lost(self, exc: OSError) -> None:
        self.errors.append(exc)

    def drained(self) -> None:
        self.drained_count += 1

    def moved(self) -> None:
        self.moved_count += 1


class Recorded(TcpTransport):
    """A transport that keeps the sizes of its writes."""

    __slots__ = ("sizes",)

    def send(self, data: Any) -> int:  # type: ignore[override]
        self.sizes.append(len(data))
        return super().send(data)

    def sendmsg(self, parts: Any) -> int:  # type: ignore[override]
        self.sizes += map(len, parts)
        return super().sendmsg(parts)


class Bench:
    """An outbox, its owner, and the other end of its socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.transport = Recorded(ours.family, ours.type, ours.proto, fileno=ours.detach())
        self.transport.setblocking(False)
        self.transport.sizes = []
        self.owner = Owner()
        self.loop = gevent.get_hub().loop
        self.outbox = Outbox(self.loop, self.transport, self.owner, 1000)
        self.peer.settimeout(5)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.peer.recv(size - len(data))
        return data


@pytest.fixture
def bench() -> Iterator[Bench]:
    it = Bench()
    yield it
    it.outbox.close()
    it.transport.close()
    it.peer.close()


def test_write_goes_straight_to_the_socket(bench: Bench) -> None:
    bench.outbox.write(b"hello")
    assert bench.peer.recv(100) == b"hello"
    assert (bench.outbox.size, bench.outbox.bytes_sent, bench.outbox.is_stalled) == (0, 5, False)
    assert bench.owner.drained_count == 0


def test_hold_waits_for_flush_and_shares_its_write(bench: Bench) -> None:
    for _ in range(100):
        bench.outbox.enqueue(b"hello")
    assert bench.outbox.size == 500
    assert bench.transport.sizes == []
    bench.outbox.flush()
    assert bench.transport.sizes == [500]
    assert bench.outbox.size == 0


def test_write_comes_behind_what_is_held(bench: Bench) -> None:
    bench.outbox.enqueue(b"one")
    bench.outbox.write(b"two")
    assert bench.peer.recv(100) == b"onetwo"


def test_big_items_are_not_joined(bench: Bench) -> None:
    bench.outbox.enqueue(b"a" * 60_000)
    bench.outbox.enqueue(b"b" * 60_000)
    bench.outbox.flush()
    assert bench.transport.sizes[0] == 60_000
    assert bench.read(120_000) == b"a" * 60_000 + b"b" * 60_000


def test_stall_keeps_order_and_ends(bench: Bench) -> None:
    pieces = [bytes([number]) * (1 + number * 97) for number in range(200)]
    for piece in pieces:
        bench.outbox.write(piece)
    assert bench.outbox.is_stalled
    assert bench.outbox.size + bench.outbox.bytes_sent == sum(map(len, pieces))
    assert bench.read(sum(map(len, pieces))) == b"".join(pieces)
    wait_until(lambda: bench.owner.drained_count)
    assert bench.owner.drained_count == 1
    assert (bench.outbox.size, bench.outbox.is_stalled) == (0, False)
    assert bench.owner.moved_count


def test_drained_outbox_leaves_no_active_watcher(bench: Bench) -> None:
    # Its own state: what an earlier test has left in the loop ends when it likes.
    bench.outbox.write(b"x" * 500_000)
    assert bench.outbox._watcher.active
    bench.read(500_000)
    wait_until(lambda: bench.owner.drained_count)
    assert not bench.outbox._watcher.active


def test_room_comes_with_the_low_mark(bench: Bench) -> None:
    bench.outbox.write(b"x" * 500_000)
    waiter = gevent.spawn(bench.outbox.wait_for_room, 30)
    left = 500_000
    while not waiter.ready():
        left -= len(bench.peer.recv(2000))
        gevent.sleep(0)
    assert waiter.get() is True
    assert left < 500_000
    assert bench.outbox.size <= 1000
    assert bench.outbox.wait_for_room(0) is True


def test_wait_for_room_gives_up(bench: Bench) -> None:
    bench.outbox.write(b"x" * 500_000)
    started = time.monotonic()
    assert bench.outbox.wait_for_room(0.05) is False
    assert time.monotonic() - started < 2


def test_close_wakes_whoever_waits_and_stops_the_watcher(bench: Bench) -> None:
    bench.outbox.write(b"x" * 500_000)
    watcher = bench.outbox._watcher
    assert watcher.active
    waiter = gevent.spawn(bench.outbox.wait_for_room, 30)
    gevent.sleep(0)
    bench.outbox.close()
    assert not watcher.active
    assert waiter.get(timeout=1) is True
    assert bench.outbox.size == 0


@pytest.mark.parametrize("is_held", [False, True])
def test_owner_is_told_of_a_broken_stream(bench: Bench, is_held: bool) -> None:
    bench.peer.close()
    if is_held:
        bench.outbox.enqueue(b"x")
        bench.outbox.flush()
    else:
        bench.outbox.write(b"x")
    assert [type(exc) for exc in bench.owner.errors] == [BrokenPipeError]


def test_owner_is_told_of_a_stream_that_breaks_in_a_stall(bench: Bench) -> None:
    bench.outbox.write(b"x" * 500_000)
    bench.peer.close()
    wait_until(lambda: bench.owner.errors)
    assert bench.owner.drained_count == 0


def test_outbox_that_is_closed_within_a_write_watches_nothing(bench: Bench) -> None:
    class Closing(Recorded):
        """As a finalizer may close it, which the collector runs there."""

        __slots__ = ()

        def send(self, data: Any) -> int:  # type: ignore[override]
            sent = super().send(data)
            bench.outbox.close()
            return sent

    transport = Closing(fileno=os.dup(bench.transport.fileno()))
    transport.setblocking(False)
    transport.sizes = []
    bench.outbox = Outbox(bench.loop, transport, bench.owner, 1000)
    bench.outbox.write(b"x" * 500_000)
    assert bench.outbox._watcher is None
    assert not bench.outbox.is_stalled
    transport.close()
