"""What the C extension alone does: how far it goes itself, and what it leaves to the engine."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from support.twins import MAX_SIZE, Link, RecordedMember, deflated, masked, twin_of
from support.wire import BINARY, CLOSE, PING, TEXT
from wsmiddleware import speedups
from wsmiddleware.protocol.frames import encode_frame
from wsmiddleware.protocol.prepared import PreparedMessage

PREPARED = PreparedMessage("wire")


@pytest.fixture
def twin() -> SimpleNamespace:
    """That one alone."""
    return twin_of("c")


def left(link: Link) -> bytes:
    """What has been left to the engine."""
    return b"".join(data for data, *_ in link.told("take"))


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wire",
    [
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        masked(TEXT, "grüße, 世界 🎉".encode()),
        masked(TEXT, b"x" * MAX_SIZE),
        masked(BINARY, os.urandom(MAX_SIZE)),
        masked(BINARY, os.urandom(65_535)) * 3,
    ],
)
@pytest.mark.parametrize("step", [4999, 1 << 20])
def test_whole_messages_are_no_business_of_the_engine(link: Link, wire: bytes, step: int) -> None:
    for start in range(0, len(wire), step):
        assert link.receive(wire[start : start + step]) is not None
    assert left(link) == b""


def test_whole_compressed_messages_are_none_either(deflate_link: Link) -> None:
    wire = deflated(TEXT, "grüße, 世界 🎉 ".encode() * 20) + deflated(BINARY, bytes(1000))
    deflate_link.receive(wire + masked(TEXT, b"plain"))
    assert left(deflate_link) == b""


@pytest.mark.parametrize(
    "wire",
    [
        masked(PING, b"p"),
        masked(CLOSE, b"\x03\xe8bye"),
        masked(TEXT, b"frag", fin=False),
        encode_frame(TEXT, b"unmasked"),
        masked(TEXT, b"\xff"),
        masked(BINARY, b"x", rsv1=True),
        masked(BINARY, b"x" * (MAX_SIZE + 1))[:14],
        b"\x82\xfe\x00\x05",
        b"\x83\x80",
        masked(TEXT, b"x" * 50_000 + b"\xff"),
        masked(TEXT, ("x" * 50_000 + "ü").encode()),
    ],
)
def test_what_else_comes_is_the_engines_as_it_came(link: Link, wire: bytes) -> None:
    link.receive(masked(TEXT, b"before") + wire[:40_000])
    link.receive(wire[40_000:])
    assert left(link) in (wire, wire[:40_000])


def test_after_what_was_the_engines_messages_are_the_streams_again(link: Link) -> None:
    link.receive(masked(PING, b"p"))
    before = left(link)
    link.receive(masked(TEXT, b"x") * 3)
    assert left(link) == before


@pytest.mark.parametrize(
    "wire",
    [
        masked(TEXT, b"\xff\xff", rsv1=True),
        deflated(TEXT, b"\xff" * 100),
        deflated(BINARY, bytes(MAX_SIZE + 1)),
        masked(0, b"x", rsv1=True),
        deflated(BINARY, bytes(65_537)),
        deflated(BINARY, os.urandom(9000) + bytes(9000)),
    ],
)
def test_odd_and_large_compressed_messages_are_the_engines(deflate_link: Link, wire: bytes) -> None:
    deflate_link.receive(deflated(TEXT, b"x" * 99) + wire)
    assert left(deflate_link) == wire


def test_one_read_takes_so_many_frames(link: Link) -> None:
    wire = masked(TEXT, b"x") * 300
    link.send(wire)
    link.read()
    assert left(link) == wire[256 * len(wire) // 300 :]


def test_one_read_makes_so_much_of_compressed_messages(deflate_link: Link) -> None:
    frame = deflated(BINARY, bytes(1000))
    deflate_link.send(frame * 100)
    deflate_link.read()
    # 64 KiB have been made; or less, where that took too long.
    rest = left(deflate_link)
    assert rest == frame * (len(rest) // len(frame))
    assert 35 * len(frame) <= len(rest) < 100 * len(frame)


# -- serving --------------------------------------------------------------------------------------


def test_connection_for_which_no_worker_could_be_asked_is_dropped_and_no_other(
    twin: SimpleNamespace, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(task: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    other = Link(twin, reactor=link.reactor)
    monkeypatch.setattr(link.reactor.pool, "submit", fail_once)
    link.come("a")
    other.come("b")
    link.reactor.resubmit()  # as the clock does
    other.settle()
    assert link.connection.is_closed
    assert other.member.messages == ["b"]
    other.close()


# -- what it refuses ------------------------------------------------------------------------------


def test_stream_refuses_other_arguments(twin: SimpleNamespace, link: Link) -> None:
    make: Any = speedups.Stream
    reactor, metrics = link.reactor, link.metrics
    for bits in (-1, 16):
        with pytest.raises(ValueError, match="window_bits is 0 to 15"):
            make(reactor, None, metrics, -1, 1, 1, 1.0, bits)
    with pytest.raises(TypeError, match="Ready"):
        make(None, None, metrics, -1, 1, 1, 1.0, 0)
    with pytest.raises(TypeError, match="Counts"):
        make(reactor, None, None, -1, 1, 1, 1.0, 0)
    with pytest.raises(TypeError, match=r"must be .*Context"):
        link.connection.serve_for(0, 0, 0, {}, "", "", 1.0)
    with pytest.raises(TypeError):
        twin.Ready()


class Plain:
    """Something whose `connection` lies in no slot."""

    connection = None


class Unset:
    """Something whose `connection` was never set."""

    __slots__ = ("connection",)


def test_broadcast_refuses_who_has_no_stream_in_a_slot(twin: SimpleNamespace, link: Link) -> None:
    with pytest.raises(TypeError, match="a list"):
        twin.deliver((), PREPARED)
    with pytest.raises(TypeError, match=r"Plain\.connection must be a slot"):
        twin.deliver([Plain()], PREPARED)
    with pytest.raises(AttributeError, match=r"Unset\.connection is not set"):
        twin.deliver([Unset()], PREPARED)
    with pytest.raises(TypeError, match="must be a Stream"):
        twin.deliver([RecordedMember(None)], PREPARED)


def test_broadcast_refuses_a_wire_form_that_is_no_bytes(twin: SimpleNamespace, link: Link) -> None:
    class Message:
        def wire(self, window_bits: int) -> object:
            return bytearray(b"x")

    with pytest.raises(TypeError, match="must give bytes"):
        twin.deliver([link.member], Message())
