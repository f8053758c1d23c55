"""The C extension against the Python engine: whatever comes, both take the same from it."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import math
import os
import socket
import subprocess
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsmiddleware import speedups
from wsmiddleware.metrics import Metrics
from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping
from wsmiddleware.protocol.frames import encode_frame
from wsmiddleware.protocol.prepared import PreparedMessage

if speedups.Stream is None:
    pytest.skip("the extension is not built, or turned off", allow_module_level=True)

MAX_SIZE = 200_000
MARK = 1 << 20
TEXT, BINARY = 1, 2


class Connection:
    """What the extension asks of a connection and of what belongs to it; notes what it is told."""

    # Slots where the extension looks for them.
    __slots__ = (
        *("__dict__", "__weakref__", "_ending", "_is_paused", "_worker"),
        *("is_busy", "size", "stream"),
    )

    pool: Any

    #: Seconds of a turn: none is over because the machine was busy with something else.
    turn = 60.0

    def __init__(self, fd: int, max_size: int = MAX_SIZE, window_bits: int = 0) -> None:
        assert speedups.Stream
        self._is_paused = False
        self._ending: object = None
        self._worker: object = None
        self.connection = self.outbox = self.pool = self
        self.stream: Any = speedups.Stream(fd, max_size, MARK, self.turn, window_bits)
        self.inbox: list[str | bytes] = []
        self.due: list[str | bytes] = []
        self.counts = Metrics()
        self.ready: Any = speedups.Ready(self)  # type: ignore[misc]
        self.start_with(self)
        #: Bytes that wait in the outbox, and whether it is in the middle of a write.
        self.size = 0
        self.is_busy = False
        self.taken: list[Any] = []
        self.calls: list[tuple[object, ...]] = []

    def start_with(self, outbox: object) -> None:
        """Let the stream use that outbox."""
        self.stream.start(self, self.inbox, self.due, outbox, self.ready, self.counts)

    def hold(self, wire: Any) -> None:
        self.taken.append(wire)

    write = hold

    def flush(self) -> None:
        pass

    def flush_soon(self) -> None:
        self.calls.append(("flush_soon",))

    def encode(self, reply: str | bytes) -> bytes:
        """The frame where compression was agreed."""
        return b"frame of " + (reply.encode() if isinstance(reply, str) else reply)

    def submit(self, task: object) -> None:
        self.calls.append(("submit", task))

    def lost(self, exc: OSError | None) -> None:
        self.calls.append(("lost", exc))

    def broken(self, exc: BaseException) -> None:
        self.calls.append(("broken", exc))

    def _receive(self, rest: bytes, is_turn_over: bool = False) -> None:
        self.calls.append(("receive", rest))

    def _run(self, worker: object, is_turn_over: bool = False) -> None:
        self.calls.append(("end turn" if is_turn_over else "run", worker))

    def _pause_if_needed(self) -> None:
        self.calls.append(("pause",))

    def _on_readable(self) -> None:
        self.calls.append(("on_readable",))

    # The member

    def answer(self, reply: object, worker: object, name: str) -> None:
        self.calls.append(("answer", reply, name))

    def failed(self, exc: BaseException, worker: object, name: str) -> None:
        if isinstance(exc, KeyboardInterrupt):
            raise exc
        self.calls.append(("failed", type(exc), name))

    def take_calls(self) -> list[tuple[object, ...]]:
        """What it has been told since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Worker:
    """A worker; a callback may leave greenlet-locals."""

    __slots__ = ("deadline", "greenlet", "is_fresh", "links")

    def __init__(self) -> None:
        self.links: list[object] = []
        self.deadline = 0.0
        self.is_fresh = True
        self.greenlet = Locals()

    def forget_locals(self) -> None:
        vars(self.greenlet).clear()


class Locals:
    """What holds a worker's greenlet-locals."""


class Plain:
    """Something whose `stream` lies in no slot."""

    stream = None


class Unset:
    """Something whose `stream` was never set."""

    __slots__ = ("stream",)


def make_engine(max_size: int, window_bits: int) -> Engine:
    """The engine of a connection on which that was agreed."""
    return Engine(max_message_size=max_size, deflate=Deflate(window_bits) if window_bits else None)


def receive_all(engine: Engine, data: bytes) -> list[Event]:
    """What comes of `data`, in however many turns."""
    events = engine.receive(data, 1 << 20)
    while engine.more:
        events += engine.receive(b"", 1 << 20)
    return events


class Link:
    """A stream, its socket's other end, and the engine that gets what the stream leaves."""

    def __init__(self, max_size: int = MAX_SIZE, window_bits: int = 0) -> None:
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.connection = Connection(self.near.fileno(), max_size, window_bits)
        self.stream = self.connection.stream
        self.engine = make_engine(max_size, window_bits)
        self.has_left = False

    def read(self) -> tuple[list[str | bytes], bytes | None]:
        """One readable event: the messages, and what is for the engine."""
        self.stream.receive()
        messages = self.connection.inbox.copy()
        self.connection.inbox.clear()
        rest = [call[1] for call in self.connection.take_calls() if call[0] == "receive"]
        return messages, rest[0] if rest else None  # type: ignore[return-value]

    def receive(self, data: bytes) -> list[Event]:
        """What comes of `data`, through the stream while that takes it, then by the engine."""
        if self.has_left:
            return receive_all(self.engine, data)
        self.far.sendall(data)
        before = self.stream.bytes_received
        events: list[Event] = []
        while self.stream.bytes_received < before + len(data):
            messages, rest = self.read()
            events += messages
            if rest is not None:
                self.has_left = True
                return events + receive_all(self.engine, rest + self._unread())
        return events

    def come(self, *messages: str | bytes) -> None:
        """Let the stream read `messages`."""
        self.far.sendall(b"".join(map(Engine(is_client=True).encode, messages)))
        self.stream.receive()

    def serve(self, listener: object, *messages: str | bytes) -> list[tuple[object, ...]]:
        """Have `messages` read and run; what the connection is told of it."""
        connection = self.connection
        arguments = (connection, listener, "client", Context(), "on_text", "on_data", 30.0)
        self.stream.serve_for(*arguments)
        self.come(*messages)
        assert connection.take_calls() == [("submit", connection.ready)]
        connection.ready(Worker())
        return connection.take_calls()

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


def deflated(opcode: int, payload: bytes, **options: Any) -> bytes:
    """A client's frame of a message that compression makes shorter."""
    return masked(opcode, compress(payload, 15) or b"", rsv1=True, **options)


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


@pytest.fixture
def deflate_link() -> Iterator[Link]:
    found = Link(window_bits=15)
    yield found
    found.close()


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_stream_reads_compressed_messages(deflate_link: Link, step: int) -> None:
    text, data = "grüße, 世界 🎉 " * 20, bytes(1000)
    wire = deflated(TEXT, text.encode()) + masked(TEXT, b"plain") + deflated(BINARY, data) * 2
    pieces = [wire[start : start + step] for start in range(0, len(wire), step)]
    events = [event for piece in pieces for event in deflate_link.receive(piece)]
    assert events == [text, "plain", data, data]
    assert not deflate_link.has_left


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        (masked(TEXT, b"\xff\xff", rsv1=True), Fail(1007, "invalid compressed data")),
        (deflated(TEXT, b"\xff" * 100), Fail(1007, "invalid UTF-8")),
        (deflated(BINARY, bytes(MAX_SIZE + 1)), Fail(1009, "message too big")),
        (masked(0, b"x", rsv1=True), Fail(1002, "reserved bits set")),
    ],
)
def test_stream_leaves_a_bad_compressed_frame_to_the_engine(
    deflate_link: Link, wire: bytes, event: Event
) -> None:
    assert deflate_link.receive(deflated(TEXT, b"x" * 99) + wire) == ["x" * 99, event]
    assert deflate_link.has_left


def test_stream_leaves_large_compressed_message_in_pieces_to_the_engine(deflate_link: Link) -> None:
    data = os.urandom(40_000) + bytes(40_000)
    wire = deflated(BINARY, data)
    assert deflate_link.receive(wire[:20_000]) + deflate_link.receive(wire[20_000:]) == [data]
    assert deflate_link.has_left


def test_stream_makes_no_more_of_compressed_messages_than_a_bound(deflate_link: Link) -> None:
    deflate_link.far.sendall(deflated(BINARY, bytes(1000)) * 100)
    messages, rest = deflate_link.read()
    # Fewer where the machine was busy: it is bounded in time, too.
    assert messages == [bytes(1000)] * len(messages)
    assert 0 < len(messages) <= 65
    assert rest
    assert deflate_link.engine.receive(rest) == [bytes(1000)] * (100 - len(messages))


@pytest.mark.parametrize("data", [bytes(65_537), os.urandom(9000) + bytes(9000)])
def test_stream_leaves_large_compressed_message_to_the_engine(
    deflate_link: Link, data: bytes
) -> None:
    assert deflate_link.receive(deflated(BINARY, data)) == [data]
    assert deflate_link.has_left


def test_stream_takes_nothing_that_is_closed_while_a_message_is_inflated(
    deflate_link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, stream = deflate_link.connection, deflate_link.stream

    class Late:
        def __del__(self) -> None:  # as the collector may run it just then
            stream.is_open = False
            connection.inbox.clear()

    class Reader:
        def __init__(self, wbits: int) -> None:
            self.late = [Late()]
            self.stream = decompressobj(wbits)

        def decompress(self, *args: Any) -> bytes:
            self.late.clear()
            return self.stream.decompress(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    decompressobj = zlib.decompressobj
    connection.inbox.append("before")
    monkeypatch.setattr(zlib, "decompressobj", Reader)
    deflate_link.far.sendall(masked(TEXT, b"a") + deflated(TEXT, b"b" * 99) + masked(8, b""))
    stream.receive()
    assert connection.inbox == []
    ((word, rest),) = connection.calls
    assert (word, Engine().receive(rest)) == ("receive", [Close(1005, "")])  # type: ignore[arg-type]


def test_stream_that_is_stopped_while_a_message_is_inflated_does_no_more(
    deflate_link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(wbits: int) -> Any:
        deflate_link.stream.stop()
        return decompressobj(wbits)

    decompressobj = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", stop)
    deflate_link.far.sendall(deflated(TEXT, b"b" * 99) + masked(9, b""))
    deflate_link.stream.receive()
    assert deflate_link.connection.calls == []


def test_ctrl_c_while_a_message_is_inflated_ends_the_connection_and_goes_on(
    deflate_link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(wbits: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(zlib, "decompressobj", interrupt)
    deflate_link.far.sendall(deflated(TEXT, b"b" * 99))
    with pytest.raises(KeyboardInterrupt):
        deflate_link.stream.receive()
    told = [(word, type(exc)) for word, exc in deflate_link.connection.take_calls()]
    assert told == [("broken", KeyboardInterrupt)]


def test_stream_reads_at_most_so_many_frames_at_once(link: Link) -> None:
    link.far.sendall(masked(TEXT, b"x") * 300)
    messages, rest = link.read()
    assert messages == ["x"] * 256
    assert rest
    assert link.engine.receive(rest) == ["x"] * 44


def test_stream_allocates_no_more_than_has_come(link: Link) -> None:
    link = Link(max_size=1 << 40)
    before = sys.getallocatedblocks()
    assert link.receive(b"\x82\xff" + (1 << 39).to_bytes(8, "big") + bytes(4) + b"x" * 20_000) == []
    assert sys.getallocatedblocks() - before < 100
    link.close()


def test_stream_tells_of_the_end(link: Link) -> None:
    link.connection.ready.tick(1.5)
    link.stream.receive()
    assert link.connection.take_calls() == []
    assert link.stream.last_received == 0
    link.far.close()
    link.stream.receive()
    assert link.connection.take_calls() == [("lost", None)]
    link.near.detach()


def test_stream_tells_what_the_socket_says() -> None:
    connection = Connection(-1)
    connection.stream.receive()
    ((word, exc),) = connection.calls
    assert (word, getattr(exc, "errno", 0)) == ("lost", errno.EBADF)


def test_stream_asks_for_one_worker_for_what_comes(link: Link) -> None:
    connection, stream = link.connection, link.stream
    for count in (1, 2):
        connection.ready.tick(count)
        link.far.send(masked(TEXT, b"x"))
        stream.receive()
        # The clock asks again: should there have been no memory, nobody else would.
        assert connection.calls == [("submit", connection.ready)] * count
        assert connection.inbox == ["x"] * count
    assert (stream.last_received, stream.last_message) == (2, 2)
    connection._worker = object()
    link.far.send(masked(TEXT, b"y"))
    stream.receive()
    assert connection.calls[2:] == [("pause",)]


def test_stream_drops_what_comes_when_it_is_not_open_any_more(link: Link) -> None:
    connection, stream = link.connection, link.stream
    connection.inbox.append("before")
    stream.is_open = False
    link.far.send(masked(TEXT, b"x") + masked(8, b""))
    stream.receive()
    assert connection.inbox == ["before"]
    ((word, rest),) = connection.calls
    assert (word, Engine().receive(rest)) == ("receive", [Close(1005, "")])  # type: ignore[arg-type]


def test_stream_leaves_what_comes_to_the_engine_that_is_at_something(link: Link) -> None:
    link.stream.is_engines = True
    link.far.send(masked(TEXT, b"x"))
    link.stream.receive()
    assert link.connection.calls == [("on_readable",)]
    assert link.near.recv(100)


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
    st.builds(deflated, st.integers(0, 2), st.integers(20, 400_000).map(bytes), fin=st.booleans()),
    st.builds(deflated, st.just(TEXT), st.text("xüß世", min_size=30).map(str.encode)),
    st.builds(masked, st.sampled_from([TEXT, BINARY]), st.binary(max_size=9), rsv1=st.just(True)),
    st.binary(max_size=20),
)


@given(
    frames=st.lists(FRAMES, max_size=8),
    cuts=st.lists(st.integers(0, 100_000), max_size=8),
    window_bits=st.sampled_from([0, 8, 15]),
)
@example(frames=[masked(TEXT, b"x" * 40_000), b"\x81"], cuts=[30_000], window_bits=0)
@settings(deadline=None)
def test_stream_and_engine_take_the_same(
    frames: list[bytes], cuts: list[int], window_bits: int
) -> None:
    wire, link = b"".join(frames), Link(window_bits=window_bits)
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(places) if b > a]
    engine = make_engine(MAX_SIZE, window_bits)
    try:
        taken = [event for piece in pieces for event in link.receive(piece)]
        expected = [event for piece in pieces for event in receive_all(engine, piece)]
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


class Listener:
    def on_text(self, client: str, message: str) -> object:
        if message == "odd":
            return {message}
        if message == "lone":
            return "\ud800"
        if message == "wrong":
            raise LookupError(message)
        return message if message else None

    def on_data(self, client: str, message: bytes) -> bytes:
        return message * 1000


def test_stream_answers_in_one_write_up_to_what_is_for_python(link: Link) -> None:
    connection = link.connection
    calls = link.serve(Listener(), "a", "", b"bc", "odd", "d")
    assert calls == [("flush_soon",), ("answer", {"odd"}, "on_text")]
    assert (
        link.far.recv(1 << 20) == b"\x81\x01a" + b"\x82\x7e\x07\xd0" + b"bc" * 1000 + b"\x81\x01d"
    )
    assert (connection.counts.messages_received, connection.counts.messages_sent) == (5, 3)
    assert link.serve(Listener(), "e", "wrong")[1:] == [("failed", LookupError, "on_text")]
    assert link.far.recv(1 << 20) == b"\x81\x01e"
    calls = link.serve(Listener(), "lone", "f")
    assert calls == [("failed", UnicodeEncodeError, "on_text")]
    assert link.far.recv(1 << 20) == b"\x81\x01f"


def test_stream_has_each_reply_flushed_before_the_next_callback_blocks(link: Link) -> None:
    connection = link.connection

    class Blocking(Listener):
        def on_text(self, client: str, message: str) -> object:
            if message == "b":
                connection.taken.append(link.stream.take_pending())  # the hub got its turn
            return message

    assert link.serve(Blocking(), "a", "b", "c") == [("flush_soon",), ("flush_soon",)]
    assert connection.taken == [b"\x81\x01a"]
    assert link.far.recv(100) == b"\x81\x01b\x81\x01c"


def test_stream_holds_what_comes_behind_something_else(link: Link) -> None:
    connection = link.connection
    connection.size = 1
    assert link.serve(Listener(), "a", "b") == []
    assert connection.taken == [b"\x81\x01a", b"\x81\x01b"]
    connection.size = MARK
    assert link.serve(Listener(), "c") == [("answer", "c", "on_text")]
    assert connection.taken == [b"\x81\x01a", b"\x81\x01b"]


class Closing(Listener):
    """Closes, pauses or ends the connection in its first callback."""

    def __init__(self, connection: Connection, name: str, value: object) -> None:
        self.change = (connection.stream if name == "is_open" else connection, name, value)

    def on_text(self, client: str, message: str) -> object:
        setattr(*self.change)
        return message


CHANGES = [("is_open", False), ("_is_paused", True), ("_ending", Close(1000, ""))]


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_stream_leaves_any_other_day_to_python(link: Link, name: str, value: object) -> None:
    connection = link.connection
    closing = Closing(connection, name, value)
    (*_, (word, worker)) = link.serve(closing, "a", "b")
    assert (word, type(worker), connection.inbox, connection.due) == ("run", Worker, [], [])
    assert connection._worker is None
    link.stream.is_open, connection._is_paused, connection._ending = True, False, None
    link.come("c")
    closing.on_text("", "")
    connection.ready(Worker())
    assert [call[0] for call in connection.calls] == ["submit", "run"]
    assert connection.inbox == ["c"]


def test_stream_leaves_to_python_what_is_left_when_its_turn_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "turn", 0.005)
    link = Link()

    class Slow(Listener):
        def on_text(self, client: str, message: str) -> object:
            time.sleep(0.006)
            return message

    assert [call[0] for call in link.serve(Slow(), "a", "b", "c")] == ["flush_soon", "end turn"]
    assert link.connection.due == ["c", "b"]
    assert link.far.recv(100) == b"\x81\x01a"
    assert [call[0] for call in link.serve(Slow(), "d")] == ["run"]
    assert (link.connection.due, link.connection.inbox) == (["c", "b"], ["d"])
    link.close()


def test_stream_without_callbacks_of_its_own_leaves_them_to_python(link: Link) -> None:
    link.come("a")
    link.connection.ready(Worker())
    assert [call[0] for call in link.connection.calls] == ["submit", "run"]
    assert link.connection.inbox == ["a"]


def test_ready_streams_have_another_worker_for_them_should_one_block() -> None:
    pool = Connection(-1)
    ready: Any = pool.ready
    links, order = [Link() for _ in range(3)], []

    class Blocking(Listener):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_text(self, client: str, message: str) -> None:
            order.append(self.number)
            if self.number == 0:
                # What another worker would do, had this one blocked.
                assert pool.take_calls() == [("submit", ready)]
                ready(Worker())

    for number, link in enumerate(links):
        link.connection.ready = ready
        link.connection.start_with(link.connection)
        link.stream.serve_for(0, Blocking(number), 0, Context(), "on_text", "on_text", 1.0)
        link.come("x")
    assert pool.take_calls() == [("submit", ready)]
    ready(Worker())
    assert order == [0, 1, 2]
    assert pool.take_calls() == [("submit", ready)]  # for the third, had the second blocked
    ready(Worker())
    for link in links:
        link.close()


def test_stream_lets_an_interrupt_through(link: Link) -> None:
    class Interrupted(Listener):
        def on_text(self, client: str, message: str) -> object:
            raise KeyboardInterrupt

    connection = link.connection
    with pytest.raises(KeyboardInterrupt):
        link.serve(Interrupted(), "a", "b")
    assert (connection._worker, connection.due) == (None, ["b"])


def test_stream_leaves_a_callback_its_time_and_its_greenlet_locals_only(link: Link) -> None:
    worker, found, deadlines = Worker(), [], []

    class Leaving(Listener):
        def on_text(self, client: str, message: str) -> None:
            found.append(vars(worker.greenlet).get("local"))
            deadlines.append(worker.deadline)
            vars(worker.greenlet)["local"] = message

    link.stream.serve_for(0, Leaving(), 0, Context(), "on_text", "on_text", 30.0)
    link.come("a", "b")
    link.connection.ready(worker)
    assert found == [None, None]
    assert (deadlines, worker.deadline) == ([30.0, 30.0], math.inf)


def test_stream_gives_the_outbox_what_the_socket_does_not_take() -> None:
    link = Link()
    link.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection, text = link.connection, "ü" * 30_000
    fill(link)
    link.serve(Listener(), text)
    link.serve(Listener(), "short")
    (header, payload), short = connection.taken
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
def test_stream_overtakes_nothing_that_the_socket_did_not_take(is_broken: bool) -> None:
    link = Link()
    before = fill(link)
    got = []

    connection, big = link.connection, "x" * 20_000

    class Outbox:
        __slots__ = ("is_busy", "size")

        def __init__(self) -> None:
            self.size, self.is_busy = 0, False

        def write(self, wire: Any) -> None:
            connection.taken.append(wire)
            self.size += len(wire)
            # The peer reads all there is at this very moment; or it turns out that it has gone.
            got.append(link.far.recv(1 << 22))
            link.stream.is_open = not is_broken

        def flush(self) -> None:
            pass

    connection.start_with(Outbox())
    link.serve(Listener(), "first", big)
    assert got[0][: len(before)] == before
    taken = [wire if isinstance(wire, bytes) else b"".join(wire) for wire in connection.taken]
    sent = got[0][len(before) :] + b"".join(taken)
    assert sent == b"\x81\x05first" + (b"" if is_broken else Engine().encode(big))
    with pytest.raises(BlockingIOError):
        link.far.recv(1)
    link.close()


def test_stream_puts_what_is_pending_behind_what_has_come_to_wait(link: Link) -> None:
    connection = link.connection

    class Pinged(Listener):
        def on_text(self, client: str, message: str) -> object:
            if message == "b":
                connection.size = 5  # half a ping went out meanwhile
            return message

    link.serve(Pinged(), "a", "b")
    assert connection.taken == [b"\x81\x01a", b"\x81\x01b"]
    with pytest.raises(BlockingIOError):
        link.far.recv(1)


def test_stream_and_deliver_refuse_other_arguments(link: Link) -> None:
    assert speedups.deliver
    assert speedups.Stream
    with pytest.raises(TypeError, match="must be list"):
        link.stream.start(0, (), [], 0, 0, Metrics())
    with pytest.raises(TypeError, match=r"must be .*Context"):
        link.stream.serve_for(0, 0, 0, {}, "", "", 1.0)
    with pytest.raises(RuntimeError, match=r"serve\(\) before serve_for\(\)"):
        link.stream.serve(Worker())
    for bits in (-1, 16):
        with pytest.raises(ValueError, match="window_bits is 0 to 15"):
            speedups.Stream(-1, 100, MARK, 0.005, bits)
    with pytest.raises(RuntimeError, match=r"serve_for\(\) before start\(\)"):
        speedups.Stream(-1, 1, MARK, 1, 0).serve_for(0, 0, 0, Context(), "", "", 1.0)
    with pytest.raises(TypeError, match="a list"):
        speedups.deliver((), PREPARED)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        speedups.deliver([1], PREPARED)
    with pytest.raises(TypeError, match=r"Plain\.stream must be a slot"):
        speedups.deliver([Plain()], PREPARED)
    with pytest.raises(AttributeError, match=r"Unset\.stream is not set"):
        speedups.deliver([Unset()], PREPARED)
    with pytest.raises(AttributeError):
        speedups.deliver([link.connection], "message")  # type: ignore[arg-type]


def test_stopped_stream_does_nothing_and_holds_nobody(link: Link) -> None:
    connection = link.connection
    link.come("x")
    assert connection in gc.get_referents(link.stream)
    link.stream.stop()
    assert gc.get_referents(link.stream) == []
    link.come("y")
    connection.ready(Worker())
    assert (connection.take_calls(), connection.inbox) == ([("submit", connection.ready)], ["x"])


def test_stream_that_nobody_stops_is_garbage() -> None:
    link = Link()
    connection = weakref.ref(link.connection)
    link.close()
    del link
    gc.collect()
    assert connection() is None


def test_deliver_leaves_those_it_cannot_serve(link: Link) -> None:
    assert speedups.deliver
    pure, busy, free = Connection(-1), Connection(-1), link.connection
    pure.stream, busy.size = None, 1
    free.ready.tick(2.5)
    assert speedups.deliver([pure, busy, free], PREPARED) == [pure, busy]
    assert link.far.recv(1000) == PREPARED.wire(0)
    assert (link.stream.last_received, link.stream.last_message) == (0, 2.5)
    link.stream.is_open = False
    assert speedups.deliver([free], PREPARED) == [free]


def test_deliver_sends_each_the_form_that_it_has_agreed_on() -> None:
    assert speedups.deliver
    links = [Link(window_bits=bits) for bits in (0, 9, 15, 9)]
    assert speedups.deliver([link.connection for link in links], PREPARED) == []
    got = [link.far.recv(1000) for link in links]
    assert got == [PREPARED.wire(bits) for bits in (0, 9, 15, 9)]
    assert len(set(got)) > 1
    for link in links:
        link.close()


def test_deliver_gives_the_outbox_what_the_socket_does_not_take(link: Link) -> None:
    assert speedups.deliver
    link.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    big = PreparedMessage("ü" * 500_000)
    assert speedups.deliver([link.connection], big) == []
    (rest,) = link.connection.taken
    assert link.far.recv(1 << 20) + bytes(rest) == big.wire(0)


def test_stream_sends_what_encode_makes_where_compression_was_agreed(deflate_link: Link) -> None:
    connection, first, second = deflate_link.connection, "a" * 256, "ü" * 128
    deflate_link.serve(Listener(), first, "", second)
    assert deflate_link.far.recv(1000) == f"frame of {first}frame of {second}".encode()
    connection.size = 1
    big = "c" * 20_000
    deflate_link.serve(Listener(), big)
    assert connection.taken == [b"frame of " + big.encode()]


def test_stream_makes_the_frame_itself_of_what_is_too_small_to_be_compressed(
    deflate_link: Link,
) -> None:
    class Same(Listener):
        def on_data(self, client: str, message: bytes) -> bytes:
            return message

    text, data, engine = "ü" * 127, b"x" * 255, make_engine(MAX_SIZE, 15)
    calls = deflate_link.serve(Same(), text, data, "lone")
    assert deflate_link.far.recv(1000) == engine.encode(text) + engine.encode(data)
    assert calls[-1] == ("failed", UnicodeEncodeError, "on_text")


@pytest.mark.parametrize("is_open", [True, False])
def test_what_happens_while_a_reply_is_encoded_counts(is_open: bool) -> None:
    link = Link(window_bits=15)
    connection = link.connection

    def encode(reply: str) -> bytes:
        # What a finalizer may do that the collector runs just then.
        connection.size, link.stream.is_open = 5, is_open
        return b"frame"

    connection.encode = encode  # type: ignore[assignment, method-assign]
    link.serve(Listener(), "a" * 256, "b" * 256)
    assert connection.taken == [b"frame"] * 2 * is_open
    with pytest.raises(BlockingIOError):
        link.far.recv(1)
    link.close()


def test_ready_takes_a_worker() -> None:
    ready: Any = speedups.Ready
    with pytest.raises(TypeError):
        ready(Connection(-1))(1, other=1)
    assert ready.__new__(ready)(Worker()) is None


def test_stream_and_deliver_leak_nothing(link: Link) -> None:
    assert speedups.deliver
    connection, listener = link.connection, Listener()

    def turn() -> None:
        link.serve(listener, "a", b"b", "x" * 20_000, "odd")
        link.serve(listener, "a", "wrong", "lone")
        speedups.deliver([connection], PREPARED)  # type: ignore[misc]
        link.far.send(masked(TEXT, b"x") + masked(9, b""))
        link.stream.receive()
        connection.take_calls()
        connection.ready(Worker())
        link.far.recv(1 << 20)
        connection.taken.clear()

    assert_leaks_nothing(turn)


def test_stream_leaks_nothing_of_compressed_messages(deflate_link: Link) -> None:
    wire = deflated(TEXT, b"x" * 999) + deflated(BINARY, bytes(99)) + deflated(TEXT, b"\xff" * 99)

    def turn() -> None:
        deflate_link.far.send(wire)
        messages, rest = deflate_link.read()
        assert (messages, bool(rest)) == (["x" * 999, bytes(99)], True)
        deflate_link.connection.ready(Worker())
        deflate_link.connection.take_calls()

    assert_leaks_nothing(turn)


def test_stream_survives_a_close_while_the_hub_is_asked_to_flush(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush_soon() -> None:  # as a finalizer does it, which the collector runs in there
        link.stream.take_pending()
        link.stream.is_open = False
        link.connection.due.clear()

    monkeypatch.setattr(link.connection, "flush_soon", flush_soon)
    assert [call[0] for call in link.serve(Listener(), "a", "b", "c")] == ["run"]


@pytest.mark.parametrize("key", [b"", b"123", b"12345", "1234", None])
def test_apply_mask_refuses_a_key_that_is_not_four_bytes(key: Any) -> None:
    assert speedups.apply_mask
    with pytest.raises(TypeError, match="a key of 4 bytes"):
        speedups.apply_mask(b"data", key)
