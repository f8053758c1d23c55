"""The C extension against the Python engine: whatever comes, both take the same from it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsmiddleware import speedups
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping
from wsmiddleware.protocol.frames import encode_frame
from wsmiddleware.protocol.prepared import PreparedMessage

if speedups.Stream is None:
    pytest.skip("the extension is not built, or turned off", allow_module_level=True)

MAX_SIZE = 200_000
MARK = 1 << 20
TEXT, BINARY = 1, 2


class Link:
    """A stream, its socket's other end, and the engine that gets what the stream leaves."""

    def __init__(self, max_size: int = MAX_SIZE, window_bits: int = 0) -> None:
        assert speedups.Stream
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.stream: Any = speedups.Stream(self.near.fileno(), max_size, MARK, 0.005, window_bits)
        self.engine = Engine(max_message_size=max_size)
        self.has_left = False

    def receive(self, data: bytes) -> list[Event]:
        """What comes of `data`, through the stream while that takes it, then by the engine."""
        if self.has_left:
            return self.engine.receive(data, 1 << 20)
        self.far.sendall(data)
        events: list[Event] = []
        while (found := self.stream.read()) is not None:
            if isinstance(found, tuple):
                events += found[0]
                self.has_left = True
                return events + self.engine.receive(found[1] + self._unread(), 1 << 20)
            events += found
        return events

    def _unread(self) -> bytes:
        try:
            return self.near.recv(1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close both ends."""
        self.near.close()
        self.far.close()


@pytest.fixture
def link() -> Iterator[Link]:
    found = Link()
    yield found
    found.close()


def masked(opcode: int, payload: bytes, **options: Any) -> bytes:
    """A client's frame."""
    return encode_frame(opcode, payload, masked=True, **options)


# Reading


def test_stream_reads_example_of_the_rfc(link: Link) -> None:
    assert link.receive(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58") == ["Hello"]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 16_384, 65_535, 65_536, MAX_SIZE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_stream_reads_every_form_of_length(link: Link, size: int, opcode: int) -> None:
    payload = bytes(97 + i % 26 for i in range(size))
    whole = payload if opcode == BINARY else payload.decode()
    assert link.receive(masked(opcode, payload) * 2) == [whole] * 2
    assert not link.has_left
    assert link.stream.is_idle


@pytest.mark.parametrize("size", [5, 1000, 20_000, 100_000])
@pytest.mark.parametrize("step", [1, 7, 4999])
def test_stream_reads_pieces(link: Link, size: int, step: int) -> None:
    payload = os.urandom(size)
    wire = masked(BINARY, payload) + masked(TEXT, b"x" * size)
    step = max(step, size // 50)
    pieces = [wire[start : start + step] for start in range(0, len(wire), step)]
    assert [event for piece in pieces for event in link.receive(piece)] == [payload, "x" * size]
    assert not link.has_left


def test_stream_reads_text_beyond_ascii(link: Link) -> None:
    text = "grüße, 世界 🎉" * 10
    assert link.receive(masked(TEXT, text.encode())) == [text]
    assert not link.has_left


@pytest.mark.parametrize("size", [100, 1000, 50_000])
def test_bad_byte_of_text_fails_before_the_frame_ends(link: Link, size: int) -> None:
    wire = masked(TEXT, b"x\xff" + b"y" * size)
    header = len(wire) - size - 2
    assert link.receive(wire[: header + 1]) == []
    assert link.receive(wire[header + 1 : header + 3]) == [Fail(1007, "invalid UTF-8")]


def test_stream_leaves_large_text_beyond_ascii_to_the_engine(link: Link) -> None:
    text = "x" * 50_000 + "ü" + "y" * 50_000
    wire = masked(TEXT, text.encode())
    assert link.receive(wire[:60_000]) + link.receive(wire[60_000:]) == [text]
    assert link.has_left


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        (masked(9, b"p"), Ping(b"p")),
        (masked(8, b"\x03\xe8bye"), Close(1000, "bye")),
        (encode_frame(TEXT, b"unmasked"), Fail(1002, "unmasked frame from the client")),
        (masked(TEXT, b"\xff"), Fail(1007, "invalid UTF-8")),
        (masked(TEXT, b"x" * 50_000 + b"\xff")[:-1], None),
        (masked(BINARY, b"x", rsv1=True), Fail(1002, "reserved bits set")),
        (masked(BINARY, b"x" * (MAX_SIZE + 1))[:14], Fail(1009, "message too big")),
        (b"\x82\xfe\x00\x05", Fail(1002, "length not in its shortest form")),
        (b"\x82\xff" + b"\xff" * 8, Fail(1002, "length of 2^63 or more")),
        (b"\x83\x80", Fail(1002, "unknown opcode 3")),
    ],
)
def test_stream_leaves_the_rest_to_the_engine(link: Link, wire: bytes, event: Event) -> None:
    events = link.receive(masked(TEXT, b"before") + wire)
    assert events == ["before"] + [event] * (event is not None)
    assert link.has_left == (event is not None)


def test_stream_reads_at_most_so_many_frames_at_once(link: Link) -> None:
    link.far.sendall(masked(TEXT, b"x") * 300)
    messages, rest = link.stream.read()
    assert messages == ["x"] * 256
    assert link.engine.receive(rest) == ["x"] * 44


def test_stream_allocates_no_more_than_has_come(link: Link) -> None:
    link = Link(max_size=1 << 40)
    before = sys.getallocatedblocks()
    assert link.receive(b"\x82\xff" + (1 << 39).to_bytes(8, "big") + bytes(4) + b"x" * 20_000) == []
    assert sys.getallocatedblocks() - before < 100
    link.close()


def test_stream_tells_what_is_no_data(link: Link) -> None:
    assert link.stream.read() is None
    link.far.close()
    assert link.stream.read() == b""
    link.near.detach()


def test_stream_raises_what_the_socket_says() -> None:
    assert speedups.Stream
    stream = speedups.Stream(-1, 100, MARK, 0.005, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.read()


def test_stream_counts_bytes(link: Link) -> None:
    wire = masked(BINARY, b"x" * 1000)
    link.receive(wire)
    assert link.stream.bytes_received == len(wire)


FRAMES = st.one_of(
    st.builds(masked, st.just(TEXT), st.text(max_size=300).map(str.encode)),
    st.builds(masked, st.just(BINARY), st.binary(max_size=300)),
    st.builds(masked, st.just(BINARY), st.integers(0, 40_000).map(bytes)),
    st.builds(masked, st.integers(0, 15), st.binary(max_size=130), fin=st.booleans()),
    st.builds(masked, st.just(TEXT), st.binary(max_size=20)),
    st.binary(max_size=20),
)


@given(frames=st.lists(FRAMES, max_size=8), cuts=st.lists(st.integers(0, 100_000), max_size=8))
@example(frames=[masked(TEXT, b"x" * 40_000), b"\x81"], cuts=[30_000])
def test_stream_and_engine_take_the_same(frames: list[bytes], cuts: list[int]) -> None:
    wire, link = b"".join(frames), Link()
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(places) if b > a]
    engine = Engine(max_message_size=MAX_SIZE)
    try:
        taken = [event for piece in pieces for event in link.receive(piece)]
        expected = [event for piece in pieces for event in engine.receive(piece, 1 << 20)]
    finally:
        link.close()
    assert taken == expected
    assert list(map(type, taken)) == list(map(type, expected))


# Packing


@pytest.mark.parametrize("size", [0, 125, 126, 16_383, 16_384, 65_535, 65_536])
@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview])
def test_pack_gives_what_the_engine_gives(size: int, kind: Any) -> None:
    data = "x" * size if kind is str else kind(b"x" * size)
    assert speedups.pack
    wire = speedups.pack(data, True)
    assert isinstance(wire, tuple) == (size >= 16_384)
    assert b"".join(wire if isinstance(wire, tuple) else [wire]) == Engine().encode(data)


@pytest.mark.parametrize("text", ["grüße", "ü" * 10_000, "🎉" * 5000])
def test_pack_encodes_text(text: str) -> None:
    assert speedups.pack
    wire = speedups.pack(text, False)
    assert b"".join(wire if isinstance(wire, tuple) else [wire]) == Engine().encode(text)


def test_pack_copies_what_may_change() -> None:
    assert speedups.pack
    data = bytearray(b"x" * 20_000)
    _, payload = speedups.pack(data, True)
    data[:] = b"y"
    assert payload == b"x" * 20_000


def test_pack_keeps_text_alive_for_its_view() -> None:
    assert speedups.pack
    _, payload = speedups.pack("x" * 10_000 + "y" * 10_000, True)
    gc.collect()
    assert bytes(payload[10_000:]) == b"y" * 10_000  # type: ignore[arg-type]


def test_pack_refuses_what_is_no_message() -> None:
    assert speedups.pack
    with pytest.raises(TypeError, match="not int"):
        speedups.pack(1, True)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        speedups.pack("\ud800", True)
    with pytest.raises(TypeError):
        speedups.pack()  # type: ignore[call-arg]


# The extension itself


def assert_leaks_nothing(turn: Callable[[], None]) -> None:
    """However often `turn` is called, it leaves no more behind."""
    turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(200):
        turn()
    gc.collect()
    assert sys.getallocatedblocks() - before < 50


def test_stream_and_pack_leak_nothing(link: Link) -> None:
    assert speedups.pack

    def turn() -> None:
        link.receive(masked(TEXT, b"x" * 30) + masked(BINARY, b"y" * 30_000)[:20_000])
        Link.receive(link, bytes(10_000 + 8))
        link.receive(masked(TEXT, b"\xff"))
        for data in ("ü", "x" * 20_000, b"x" * 20_000):
            speedups.pack(data, True)  # type: ignore[misc]

    assert_leaks_nothing(turn)


@pytest.mark.parametrize("word", ["off", "0", "No"])
def test_variable_turns_the_extension_off(word: str) -> None:
    code = "from wsmiddleware import speedups as s; print(s.IMPLEMENTATION, s.Stream, s.pack)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, speedups.VARIABLE: word},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "python None None\n"


PREPARED = PreparedMessage("wire " * 100)


class Member:
    """What the extension asks of a connection, its outbox, its member and the worker."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.connection = self.outbox = self
        self.size = 0
        self.links: list[object] = []
        self.taken: list[object] = []
        self.flushes = 0

    def hold(self, wire: object) -> None:
        self.taken.append(wire)

    write = hold

    def flush_soon(self) -> None:
        self.flushes += 1

    def encode(self, reply: str | bytes) -> bytes:
        """The frame where compression was agreed."""
        return b"frame of " + (reply.encode() if isinstance(reply, str) else reply)

    def serve(self, listener: object, *due: object) -> object:
        """The messages `due`, the first of them first."""
        return self.stream.serve(
            list(reversed(due)), Context(), listener, "client", "on_text", "on_data", self, Worker()
        )


class Worker:
    """A worker without greenlet-locals."""

    links: ClassVar[list[object]] = []


class Listener:
    def on_text(self, client: str, message: str) -> object:
        if message == "odd":
            return {message}
        if message == "wrong":
            raise LookupError(message)
        return message if message else None

    def on_data(self, client: str, message: bytes) -> bytes:
        return message * 1000


def test_serve_answers_in_one_write_up_to_what_is_for_python(link: Link) -> None:
    member = Member(link.stream)
    assert member.serve(Listener(), "a", "", b"bc", "odd", "d") == {"odd"}
    assert link.far.recv(1 << 20) == b"\x81\x01a" + b"\x82\x7e\x07\xd0" + b"bc" * 1000
    assert (link.stream.callback, link.stream.replies, member.flushes) == ("on_text", 2, 1)
    with pytest.raises(LookupError, match="wrong"):
        member.serve(Listener(), "e", "wrong")
    assert link.far.recv(1 << 20) == b"\x81\x01e"
    with pytest.raises(UnicodeEncodeError):
        member.serve(Listener(), "\ud800")


def test_serve_holds_what_comes_behind_something_else(link: Link) -> None:
    member = Member(link.stream)
    member.size = 1
    assert member.serve(Listener(), "a", "b") is None
    assert member.taken == [b"\x81\x01a", b"\x81\x01b"]
    member.size = MARK
    assert member.serve(Listener(), "c") == "c"
    link.stream.is_open = False
    assert member.serve(Listener(), "d") is None
    assert len(member.taken) == 2


def test_serve_gives_the_outbox_what_the_socket_does_not_take() -> None:
    link = Link()
    link.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    member, text = Member(link.stream), "ü" * 30_000
    with contextlib.suppress(BlockingIOError):
        while True:
            link.near.send(bytes(1000))
    assert member.serve(Listener(), text) is None
    assert member.serve(Listener(), "short") is None
    (header, payload), short = member.taken
    assert (header + bytes(payload), short) == (Engine().encode(text), b"\x81\x05short")
    link.close()


def fill(link: Link) -> bytes:
    """Leave a bit of room in the socket; what has been put there."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += link.near.send(bytes(1000))
    return bytes(sent)


@pytest.mark.parametrize("is_broken", [False, True])
def test_serve_overtakes_nothing_that_the_socket_did_not_take(is_broken: bool) -> None:
    link = Link()
    before = fill(link)
    got = []

    class Outbox(Member):
        def write(self, wire: object) -> None:  # type: ignore[override]
            self.taken.append(wire)
            self.size += len(wire)  # type: ignore[arg-type]
            # The peer reads all there is at this very moment; or it turns out that it has gone.
            got.append(link.far.recv(1 << 22))
            link.stream.is_open = not is_broken

    member, big = Outbox(link.stream), "x" * 20_000
    assert member.serve(Listener(), "first", big) is None
    assert got[0][: len(before)] == before
    taken = [bytes(wire) if isinstance(wire, bytes) else b"".join(wire) for wire in member.taken]  # type: ignore[arg-type]
    sent = got[0][len(before) :] + b"".join(taken)
    assert sent == b"\x81\x05first" + (b"" if is_broken else Engine().encode(big))
    with pytest.raises(BlockingIOError):
        link.far.recv(1)
    link.close()


def test_serve_puts_what_is_pending_behind_what_has_come_to_wait(link: Link) -> None:
    member = Member(link.stream)

    class Pinged(Listener):
        def on_text(self, client: str, message: str) -> object:
            if message == "b":
                member.size = 5  # half a ping went out meanwhile
            return message

    assert member.serve(Pinged(), "a", "b") is None
    assert member.taken == [b"\x81\x01a", b"\x81\x01b"]
    with pytest.raises(BlockingIOError):
        link.far.recv(1)


def test_serve_and_deliver_refuse_other_arguments(link: Link) -> None:
    assert speedups.deliver
    assert speedups.Stream
    with pytest.raises(TypeError, match="a list"):
        link.stream.serve((), 1)
    with pytest.raises(TypeError, match="a list"):
        speedups.deliver((), PREPARED)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        speedups.deliver([1], PREPARED)
    with pytest.raises(AttributeError):
        speedups.deliver([Member(link.stream)], "message")  # type: ignore[arg-type]
    for bits in (-1, 16):
        with pytest.raises(ValueError, match="window_bits is 0 to 15"):
            speedups.Stream(-1, 100, MARK, 0.005, bits)


def test_deliver_leaves_those_it_cannot_serve(link: Link) -> None:
    assert speedups.deliver
    pure, busy, free = Member(None), Member(link.stream), Member(link.stream)
    busy.size = 1
    assert speedups.deliver([pure, busy, free], PREPARED) == [pure, busy]
    assert link.far.recv(1000) == PREPARED.wire(0)
    assert link.stream.has_sent
    link.stream.is_open = False
    assert speedups.deliver([free], PREPARED) == [free]


def test_deliver_sends_each_the_form_that_it_has_agreed_on() -> None:
    assert speedups.deliver
    links = [Link(window_bits=bits) for bits in (0, 9, 15, 9)]
    members = [Member(link.stream) for link in links]
    assert speedups.deliver(members, PREPARED) == []
    got = [link.far.recv(1000) for link in links]
    assert got == [PREPARED.wire(bits) for bits in (0, 9, 15, 9)]
    assert len(set(got)) > 1
    for link in links:
        link.close()


def test_deliver_gives_the_outbox_what_the_socket_does_not_take(link: Link) -> None:
    assert speedups.deliver
    link.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    member, big = Member(link.stream), PreparedMessage("ü" * 500_000)
    assert speedups.deliver([member], big) == []
    (rest,) = member.taken
    assert link.far.recv(1 << 20) + bytes(rest) == big.wire(0)  # type: ignore[call-overload]


def test_serve_sends_what_encode_makes_where_compression_was_agreed() -> None:
    link = Link(window_bits=15)
    member = Member(link.stream)
    assert member.serve(Listener(), "a", "", "b") is None
    assert link.far.recv(1000) == b"frame of aframe of b"
    member.size = 1
    big = "c" * 20_000
    assert member.serve(Listener(), big) is None
    assert member.taken == [b"frame of " + big.encode()]
    link.close()


def test_serve_and_deliver_leak_nothing(link: Link) -> None:
    assert speedups.deliver
    member, listener = Member(link.stream), Listener()

    def turn() -> None:
        member.serve(listener, "a", b"b", "x" * 20_000, "odd")
        with contextlib.suppress(LookupError):
            member.serve(listener, "a", "wrong")
        with contextlib.suppress(UnicodeEncodeError):
            member.serve(listener, "a", "\ud800")
        speedups.deliver([member], PREPARED)  # type: ignore[misc]
        link.far.recv(1 << 20)
        member.taken.clear()

    assert_leaks_nothing(turn)
