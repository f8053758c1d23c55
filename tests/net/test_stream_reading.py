"""From the socket to messages: whatever comes, a connection takes the same from it as the engine.

Over the stream in C and over its twin in Python.
"""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
import zlib
from contextlib import closing
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.twins import (
    IMPLEMENTATIONS,
    MAX_SIZE,
    Link,
    deflated,
    make_engine,
    masked,
    receive_all,
    twin_of,
)
from support.wire import BINARY, CLOSE, PING, TEXT
from wsmiddleware.protocol.engine import Close, Event, Fail, Ping
from wsmiddleware.protocol.frames import encode_frame


def in_pieces(wire: bytes, step: int) -> list[bytes]:
    return [wire[start : start + step] for start in range(0, len(wire), step)]


def test_example_of_the_rfc(link: Link) -> None:
    assert link.receive(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58") == ["Hello"]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 16_384, 65_535, 65_536, MAX_SIZE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_every_form_of_length(link: Link, size: int, opcode: int) -> None:
    payload = bytes(97 + i % 26 for i in range(size))
    whole = payload if opcode == BINARY else payload.decode()
    assert link.receive(masked(opcode, payload) * 2) == [whole] * 2


@pytest.mark.parametrize("size", [5, 1000, 20_000, 100_000])
@pytest.mark.parametrize("step", [1, 7, 4999])
def test_pieces(link: Link, size: int, step: int) -> None:
    payload = os.urandom(size)
    wire = masked(BINARY, payload) + masked(TEXT, b"x" * size)
    pieces = in_pieces(wire, max(step, size // 50))
    assert [event for piece in pieces for event in link.receive(piece)] == [payload, "x" * size]


def test_text_beyond_ascii(link: Link) -> None:
    text = "grüße, 世界 🎉" * 10
    assert link.receive(masked(TEXT, text.encode())) == [text]


def test_large_text_beyond_ascii_in_pieces(link: Link) -> None:
    text = "x" * 50_000 + "ü" + "y" * 50_000
    wire = masked(TEXT, text.encode())
    assert link.receive(wire[:60_000]) + link.receive(wire[60_000:]) == [text]


@pytest.mark.parametrize("size", [100, 1000, 50_000])
def test_bad_byte_of_text_fails_before_the_frame_ends(link: Link, size: int) -> None:
    wire = masked(TEXT, b"x\xff" + b"y" * size)
    header = len(wire) - size - 2
    assert link.receive(wire[: header + 1]) == []
    assert link.receive(wire[header + 1 : header + 3]) == [Fail(1007, "invalid UTF-8")]


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        (masked(PING, b"p"), Ping(b"p")),
        (masked(CLOSE, b"\x03\xe8bye"), Close(1000, "bye")),
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
def test_what_is_no_whole_message(link: Link, wire: bytes, event: Event | None) -> None:
    expected = ["before"] if event is None else ["before", event]
    assert link.receive(masked(TEXT, b"before") + wire) == expected


def test_fragments_and_what_comes_behind_them(link: Link) -> None:
    assert link.receive(masked(TEXT, b"frag", fin=False)) == []
    assert link.connection.is_engines
    assert link.receive(masked(PING, b"p") + masked(0, b"ments")) == [Ping(b"p"), "fragments"]
    assert not link.connection.is_engines
    assert link.receive(masked(TEXT, b"whole")) == ["whole"]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_compressed_messages(deflate_link: Link, step: int) -> None:
    text, data = "grüße, 世界 🎉 " * 20, bytes(1000)
    wire = deflated(TEXT, text.encode()) + masked(TEXT, b"plain") + deflated(BINARY, data) * 2
    events = [event for piece in in_pieces(wire, step) for event in deflate_link.receive(piece)]
    assert events == [text, "plain", data, data]


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        (masked(TEXT, b"\xff\xff", rsv1=True), Fail(1007, "invalid compressed data")),
        (deflated(TEXT, b"\xff" * 100), Fail(1007, "invalid UTF-8")),
        (deflated(BINARY, bytes(MAX_SIZE + 1)), Fail(1009, "message too big")),
        (masked(0, b"x", rsv1=True), Fail(1002, "reserved bits set")),
    ],
)
def test_bad_compressed_frame(deflate_link: Link, wire: bytes, event: Event) -> None:
    assert deflate_link.receive(deflated(TEXT, b"x" * 99) + wire) == ["x" * 99, event]


@pytest.mark.parametrize("data", [bytes(65_537), os.urandom(9000) + bytes(9000)])
def test_large_compressed_message(deflate_link: Link, data: bytes) -> None:
    assert deflate_link.receive(deflated(BINARY, data)) == [data]


def test_large_compressed_message_in_pieces(deflate_link: Link) -> None:
    data = os.urandom(40_000) + bytes(40_000)
    wire = deflated(BINARY, data)
    assert deflate_link.receive(wire[:20_000]) + deflate_link.receive(wire[20_000:]) == [data]


def test_more_messages_than_one_read_takes(link: Link) -> None:
    texts = [str(number) for number in range(3000)]
    assert link.receive(b"".join(masked(TEXT, text.encode()) for text in texts)) == texts


def test_nothing_is_allocated_for_what_a_header_promises(make_link: Any) -> None:
    link = make_link(max_size=1 << 40)
    promise = b"\x82\xff" + (1 << 39).to_bytes(8, "big") + bytes(4)
    tracemalloc.start()
    try:
        assert link.receive(promise + b"x" * 20_000) == []
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_bytes_and_times_are_noted(link: Link) -> None:
    connection, wire = link.connection, masked(BINARY, b"x" * 1000)
    link.read()  # nothing has come
    before = link.reactor.now
    assert connection.last_received == before
    link.reactor.now = before + 5.0
    link.receive(wire)
    assert connection.bytes_received == len(wire)
    assert connection.last_received == connection.last_message >= before + 5.0
    noted, link.reactor.now = connection.last_message, link.reactor.now + 5.0
    link.send(wire[:500])  # no message yet
    link.read()
    assert connection.last_received >= noted + 5.0
    assert connection.last_message == noted


def test_messages_of_several_reads_run_in_one_turn(link: Link) -> None:
    link.come("a")
    link.come("b", "c")
    assert (link.connection.inbox, link.member.messages) == (["a", "b", "c"], [])
    link.settle()
    assert link.member.messages == ["a", "b", "c"]


# -- in the middle of it --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "abort"])
def test_finalizer_ends_the_connection_while_a_message_is_inflated(
    deflate_link: Link, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    connection = deflate_link.connection
    ways = {"close": lambda: connection.close(1000, ""), "abort": connection.abort}

    class Late:
        def __del__(self) -> None:  # as the collector may run it just then
            ways[way]()

    late = [Late()]

    class Reader:
        def __init__(self, wbits: int) -> None:
            self.stream = decompressobj(wbits)

        def decompress(self, *args: Any) -> bytes:
            late.clear()
            return self.stream.decompress(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    decompressobj = zlib.decompressobj
    deflate_link.come("before")
    monkeypatch.setattr(zlib, "decompressobj", Reader)
    deflate_link.send(masked(TEXT, b"a") + deflated(TEXT, b"b" * 99) + masked(CLOSE, b""))
    deflate_link.read()
    deflate_link.settle()
    assert deflate_link.member.messages == []
    assert deflate_link.told("broken") == []
    if way == "close":
        assert connection.closing.ending == Close(1005, "")
        assert deflate_link.get(4) == b"\x88\x02\x03\xe8"
    assert deflate_link.far.recv(1) == b""


def test_ctrl_c_while_a_message_is_inflated_ends_the_connection_and_goes_on(
    deflate_link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(wbits: int) -> Any:
        raise KeyboardInterrupt

    deflate_link.send(deflated(TEXT, b"b" * 99))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zlib, "decompressobj", interrupt)
        deflate_link.read()
    # What has been read is lost: nobody knows where in the stream we are.
    assert [type(exc) for (exc,) in deflate_link.told("broken")] == [KeyboardInterrupt]
    assert deflate_link.connection.is_closed


def test_nothing_is_taken_once_we_have_closed(link: Link) -> None:
    link.come("before")
    link.connection.close(1000, "")
    assert link.receive(masked(TEXT, b"x") + masked(CLOSE, b"")) == [Close(1005, "")]


# -- the end --------------------------------------------------------------------------------------


def test_end_of_the_stream(link: Link) -> None:
    link.far.close()
    link.read()
    assert link.told("lost") == [[None]]
    assert link.connection.is_closed
    link.settle()
    assert link.member.calls == [("closed",), ("gone",)]


def test_what_the_system_says(link: Link) -> None:
    link.outbox.write(b"nobody reads this")
    link.far.close()
    link.read()
    (((exc,)),) = link.told("lost")
    assert exc.errno == errno.ECONNRESET
    assert link.connection.is_closed


# -- whatever comes -------------------------------------------------------------------------------

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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(
    frames=st.lists(FRAMES, max_size=8),
    cuts=st.lists(st.integers(0, 100_000), max_size=8),
    window_bits=st.sampled_from([0, 8, 15]),
)
@example(frames=[masked(TEXT, b"x" * 40_000), b"\x81"], cuts=[30_000], window_bits=0)
@settings(deadline=None)
def test_connection_and_engine_take_the_same(
    implementation: str, frames: list[bytes], cuts: list[int], window_bits: int
) -> None:
    wire = b"".join(frames)
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(places) if b > a]
    engine, link = (
        make_engine(window_bits=window_bits),
        Link(twin_of(implementation), window_bits=window_bits),
    )
    with closing(link):
        taken = [event for piece in pieces for event in link.receive(piece)]
    expected = [event for piece in pieces for event in receive_all(engine, piece)]
    assert taken == expected
    assert list(map(type, taken)) == list(map(type, expected))
