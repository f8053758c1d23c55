"""From replies and broadcasts to the socket: in order, whole, and nothing to who has gone.

Over the stream in C and over its twin in Python.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from support.twins import Link, deflated, frames, make_engine, masked
from support.wire import PING, TEXT
from wsmiddleware.protocol.prepared import PreparedMessage

PREPARED = PreparedMessage("wire " * 100)
BIG = "big" * 10_000


class Echo:
    def on_text(self, client: str, message: str) -> object:
        if message == "odd":
            return {message}
        if message == "lone":
            return "\ud800"
        if message == "wrong":
            raise LookupError(message)
        return message

    def on_data(self, client: str, message: bytes) -> bytes:
        return message


def narrow(link: Link) -> None:
    """Let the socket take little."""
    link.connection._transport.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


# -- replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [["ü" * 30_000, "short"], ["a", "b" * 20_000, "c", "d" * 70_000]])
def test_replies_that_the_socket_does_not_take_at_once(link: Link, texts: list[str]) -> None:
    narrow(link)
    link.member.serve(Echo())
    link.come(*texts)
    expected = frames(*texts)
    assert link.get(len(expected)) == expected


def test_replies_come_behind_what_waits(link: Link) -> None:
    before = link.fill()
    link.connection.send(frames("first"))
    assert link.outbox.size
    link.serve(Echo(), "a", "b")
    expected = before + frames("first", "a", "b")
    assert link.get(len(expected)) == expected


def test_replies_past_the_mark_wait_for_room(make_link: Any) -> None:
    link = make_link(send_queue_size=65_536)
    narrow(link)
    texts = [f"{number}" * 10_000 for number in range(30)]
    link.member.serve(Echo())
    link.come(*texts)
    while not link.outbox.size >= 65_536:
        link.reactor.wait_for_turn()
    for _ in range(10):
        link.reactor.wait_for_turn()
    # One reply past the mark at most, and what a worker had of one write.
    assert link.outbox.size < 65_536 + 40_000
    assert link.connection.due
    expected = frames(*texts)
    assert link.get(len(expected)) == expected


def test_pong_comes_behind_replies_that_share_a_write(link: Link) -> None:
    class Pinged(Echo):
        def on_text(self, client: str, message: str) -> object:
            if message == "b":  # as a finalizer or a signal handler may send one
                link.send(masked(PING, b"p"))
                link.read()
            return message if isinstance(message, str) else None

    link.serve(Pinged(), "a", "b", "c")
    assert link.get_all() == frames("a") + b"\x8a\x01p" + frames("b", "c")


def test_nothing_overtakes_what_the_socket_did_not_take(link: Link) -> None:
    before, got = link.fill(), b""

    def read() -> None:
        nonlocal got
        got = link.get_all()  # the peer reads all there is at this very moment

    link.outbox.hooks["write"] = read
    link.serve(Echo(), "first", BIG)
    assert got.startswith(before)
    expected = before + frames("first", BIG)
    assert got + link.get(len(expected) - len(got)) == expected


def test_no_reply_goes_to_whoever_gets_the_descriptor_next(link: Link) -> None:
    link.fill()
    descriptor, others = link.connection._transport.fileno(), []

    def lose() -> None:
        link.connection.abort()
        while not any(end.fileno() == descriptor for pair in others for end in pair):
            others.append(socket.socketpair())

    link.outbox.hooks["write"] = lose
    link.serve(Echo(), "first", BIG)
    assert others
    for end in (end for pair in others for end in pair):
        end.shutdown(socket.SHUT_WR)
    for end in (end for pair in others for end in pair):
        assert end.recv(1) == b""
        end.close()


# -- compressed -----------------------------------------------------------------------------------


def test_replies_where_compression_was_agreed(deflate_link: Link) -> None:
    messages = ["a" * 256, "ü" * 127, b"x" * 255, "ü" * 128, "c" * 20_000]
    deflate_link.serve(Echo(), *messages, "lone")
    engine = make_engine(window_bits=15)
    assert deflate_link.get_all() == b"".join(map(engine.encode, messages))
    assert deflate_link.member.calls == [("failed", UnicodeEncodeError, "on_text")]


@pytest.mark.parametrize("way", ["send", "close", "abort"])
def test_what_happens_while_a_reply_is_encoded_counts(deflate_link: Link, way: str) -> None:
    connection, encode = deflate_link.connection, deflate_link.connection.encode
    ways = {
        "send": lambda: connection.send(frames("sent")),
        "close": lambda: connection.close(1000, ""),
        "abort": connection.abort,
    }

    def encode_late(*args: Any) -> bytes:
        # What a finalizer may do that the collector runs just then.
        ways.pop(way, list)()
        return encode(*args)  # type: ignore[no-any-return]

    connection.encode = encode_late
    texts = ["a" * 256, "b" * 256]
    deflate_link.serve(Echo(), *texts)
    replies = b"".join(encode(text) for text in texts)
    expected = {"send": frames("sent") + replies, "close": b"\x88\x02\x03\xe8", "abort": b""}
    assert deflate_link.get_all() == expected[way]
    assert deflate_link.told("reply_lost") == [[]] * (way != "send")


# -- broadcasts -----------------------------------------------------------------------------------


def test_broadcast_has_the_form_that_each_has_agreed_on(
    twin: SimpleNamespace, make_link: Any
) -> None:
    links = [make_link(window_bits=bits) for bits in (0, 9, 15, 9)]
    twin.deliver([link.member for link in links], PREPARED)
    got = [link.get_all() for link in links]
    assert got == [PREPARED.wire(bits) for bits in (0, 9, 15, 9)]
    assert len(set(got)) == 3


def test_broadcast_is_noted(twin: SimpleNamespace, link: Link) -> None:
    link.reactor.now += 2.5
    twin.deliver([link.member], PREPARED)
    connection = link.connection
    assert connection.last_message == connection.last_received + 2.5
    assert (link.metrics.messages_sent, connection.bytes_sent) == (1, len(PREPARED.wire(0)))


def test_broadcast_comes_behind_what_waits(twin: SimpleNamespace, link: Link) -> None:
    before = link.fill()
    link.connection.send(frames("first"))
    twin.deliver([link.member], PREPARED)
    expected = before + frames("first") + PREPARED.wire(0)
    assert link.get(len(expected)) == expected


def test_broadcast_from_a_callback_comes_behind_the_replies_before_it(
    twin: SimpleNamespace, link: Link
) -> None:
    class Telling(Echo):
        def on_text(self, client: str, message: str) -> object:
            if message == "b":
                twin.deliver([link.member], PREPARED)
            return message

    link.serve(Telling(), "a", "b", "c")
    assert link.get_all() == frames("a") + PREPARED.wire(0) + frames("b", "c")


def test_broadcast_that_the_socket_does_not_take_at_once(twin: SimpleNamespace, link: Link) -> None:
    narrow(link)
    big = PreparedMessage("ü" * 200_000)
    twin.deliver([link.member], big)
    assert link.outbox.size
    assert link.get(len(big.wire(0))) == big.wire(0)


def test_broadcast_in_the_middle_of_a_write_tears_no_frame(
    twin: SimpleNamespace, link: Link
) -> None:
    narrow(link)
    link.outbox.hooks["write"] = lambda: twin.deliver([link.member], PREPARED)
    link.member.serve(Echo())
    link.come("x" * 100_000)
    reply, wire = frames("x" * 100_000), PREPARED.wire(0)
    assert link.get(len(reply + wire)) in (reply + wire, wire + reply)


def test_broadcast_goes_to_nobody_who_has_closed(twin: SimpleNamespace, make_link: Any) -> None:
    closed, aborted, last = (make_link() for _ in range(3))
    closed.connection.close(1000, "")
    aborted.connection.abort()
    twin.deliver([link.member for link in (closed, aborted, last)], PREPARED)
    assert closed.get_all() == b"\x88\x02\x03\xe8"
    assert aborted.far.recv(1) == b""
    assert last.get_all() == PREPARED.wire(0)


def test_broadcast_goes_on_behind_whom_there_is_no_memory_for(
    twin: SimpleNamespace, make_link: Any
) -> None:
    def fail() -> None:
        raise MemoryError

    links = [make_link() for _ in range(3)]
    links[1].fill()
    links[1].outbox.hooks["write"] = fail
    twin.deliver([link.member for link in links], PREPARED)
    assert [type(exc) for (exc,) in links[1].told("broken")] == [MemoryError]
    assert links[1].connection.is_closed
    assert [link.get_all() for link in links[::2]] == [PREPARED.wire(0)] * 2


def test_ctrl_c_in_the_middle_of_a_broadcast_ends_whose_frame_it_may_have_torn(
    twin: SimpleNamespace, link: Link
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    link.fill()
    link.outbox.hooks["write"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        twin.deliver([link.member], PREPARED)
    assert [type(exc) for (exc,) in link.told("broken")] == [KeyboardInterrupt]
    assert link.connection.is_closed


def test_broadcast_refuses_what_is_no_member_and_no_message(
    twin: SimpleNamespace, link: Link
) -> None:
    with pytest.raises(AttributeError):
        twin.deliver([1], PREPARED)
    with pytest.raises(AttributeError):
        twin.deliver([link.member], "message")
    assert link.told("broken") == []


# -- leaks ----------------------------------------------------------------------------------------


def assert_leaks_nothing(turn: Callable[[], None]) -> None:
    """However often `turn` is called, it leaves no more behind."""

    def growth() -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(100):
            turn()
        gc.collect()
        return sys.getallocatedblocks() - before

    # The loop has some dozens of its own, now more, now fewer; what leaks leaks in each round.
    grown = []
    while not grown or grown[-1] >= 50:
        grown.append(growth())
        assert len(grown) < 8, grown


def test_messages_replies_and_broadcasts_leak_nothing(twin: SimpleNamespace, link: Link) -> None:
    listener = Echo()

    def turn() -> None:
        link.serve(listener, "a", b"b", "x" * 20_000, "odd", "wrong", "lone")
        twin.deliver([link.member], PREPARED)
        link.receive(masked(TEXT, b"x") + masked(PING, b""))
        half = masked(TEXT, b"y" * 30_000)
        link.receive(half[:20_000])
        link.receive(half[20_000:])
        link.get_all()
        forget(link)

    assert_leaks_nothing(turn)


def test_compressed_messages_leak_nothing(deflate_link: Link) -> None:
    wire = deflated(TEXT, b"x" * 999) + deflated(TEXT, bytes(99)) + masked(TEXT, b"plain")

    def turn() -> None:
        events = deflate_link.receive(wire)
        assert events == ["x" * 999, "\0" * 99, "plain"]
        forget(deflate_link)

    assert_leaks_nothing(turn)


def test_connections_that_fail_leak_nothing(twin: SimpleNamespace) -> None:
    reactor = twin.Reactor()
    large = masked(TEXT, b"y" * 30_000)
    wires = [large[:5], large[:20_000], large[:-1] + b"\0", deflated(TEXT, b"\xff" * 99)]

    def turn() -> None:
        for wire in wires:
            link = Link(twin, reactor=reactor, window_bits=15)
            link.receive(wire)
            link.close()

    assert_leaks_nothing(turn)


def forget(link: Link) -> None:
    """Let go of what has been recorded."""
    for recorded in (link.connection, link.outbox, link.member):
        recorded.calls.clear()
