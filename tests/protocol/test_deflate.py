"""permessage-deflate: RFC 7692 sections 7.1 (agreement) and 7.2 (messages)."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsmiddleware.protocol.deflate import (
    OFFER,
    Deflate,
    Inflater,
    agree,
    compress,
    decompress,
    negotiate,
)
from wsmiddleware.protocol.frames import ProtocolViolation

RESPONSE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        'permessage-deflate; client_max_window_bits="10"',
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
        OFFER,
    ],
)
def test_server_accepts_offer(header: str) -> None:
    assert negotiate(header) == (Deflate(15), RESPONSE)


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_server_accepts_limit_of_its_window(bits: int) -> None:
    header = f"permessage-deflate; server_max_window_bits={bits}"
    assert negotiate(header) == (Deflate(bits), f"{RESPONSE}; server_max_window_bits={bits}")


@pytest.mark.parametrize(
    "parameters",
    [
        "; foo",
        "; foo=1",
        "; server_no_context_takeover=1",
        "; client_no_context_takeover=true",
        "; server_no_context_takeover; server_no_context_takeover",
        "; server_max_window_bits",
        "; server_max_window_bits=8",
        "; server_max_window_bits=7",
        "; server_max_window_bits=16",
        "; server_max_window_bits=010",
        "; client_max_window_bits=16",
        "; client_max_window_bits=x",
        "; a b",
        "2",
    ],
)
def test_server_declines_offer(parameters: str) -> None:
    assert negotiate(f"permessage-deflate{parameters}") is None


def test_server_takes_the_first_offer_that_it_can() -> None:
    header = "permessage-deflate; foo, permessage-deflate; server_max_window_bits=11, " + OFFER
    assert negotiate(header) == (Deflate(11), f"{RESPONSE}; server_max_window_bits=11")


def test_client_goes_without_compression() -> None:
    assert agree("") is None


@pytest.mark.parametrize(
    ("response", "bits"),
    [
        (RESPONSE, 15),
        ("permessage-deflate; server_no_context_takeover", 15),
        (f"{RESPONSE}; server_max_window_bits=8", 15),
        (f"{RESPONSE}; client_max_window_bits=8", 8),
        (f"{RESPONSE}; client_max_window_bits=10", 10),
    ],
)
def test_client_accepts_response(response: str, bits: int) -> None:
    assert agree(response) == Deflate(bits)


@pytest.mark.parametrize(
    "response",
    [
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover",
        f"{RESPONSE}, {RESPONSE}",
        f"{RESPONSE}; foo",
        f"{RESPONSE}; server_no_context_takeover",
        f"{RESPONSE}; client_max_window_bits",
        f"{RESPONSE}; server_max_window_bits=16",
        "x-foo; server_no_context_takeover",
        "permessage-deflate;",
    ],
)
def test_client_refuses_response(response: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        agree(response)


@pytest.mark.parametrize("bits", range(9, 16))
def test_compressed_message_fits_the_window(bits: int) -> None:
    payload = os.urandom(1700) * 3
    compressed = compress(payload, bits) or b""
    # From 1,700 bytes back a repetition is out of a window of 9 or 10 bits: nothing shrinks.
    assert bool(compressed) == (bits > 10)
    if compressed:
        stream = zlib.decompressobj(wbits=-min(12, bits))
        assert stream.decompress(compressed + b"\x00\x00\xff\xff") == payload


def test_compress_gives_nothing_where_it_does_not_shrink() -> None:
    assert compress(os.urandom(500), 15) is None


def test_compress_gives_nothing_for_a_window_of_8_bits() -> None:
    assert compress(bytes(500), 8) is None


def test_compress_starts_from_an_empty_window_each_time() -> None:
    assert compress(b"hello" * 100, 15) == compress(b"hello" * 100, 15)


@pytest.mark.parametrize(
    "wire",
    [
        # the examples of RFC 7692 section 7.2.3
        b"\xf2\x48\xcd\xc9\xc9\x07\x00",
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        # ends with its final block, without the byte that the RFC adds
        b"\xf3\x48\xcd\xc9\xc9\x07\x00",
    ],
)
def test_inflater_decompresses_example_whole_and_byte_by_byte(wire: bytes) -> None:
    assert Inflater().feed(wire, True, 5) == b"Hello"
    inflater, left = Inflater(), 5
    for pos in range(len(wire)):
        piece = inflater.feed(wire[pos : pos + 1], pos + 1 == len(wire), left)
        left -= len(piece)
    assert left == 0


@pytest.mark.parametrize("wire", [b"", b"\x00"])
def test_inflater_decompresses_empty_message(wire: bytes) -> None:
    assert Inflater().feed(wire, True, 0) == b""


def test_inflater_continues_behind_final_blocks() -> None:
    wire = b"\xf3\x48\xcd\xc9\xc9\x07\x00" * 3 + b"\x00"
    assert Inflater().feed(wire, True, 15) == b"Hello" * 3


def failure(wire: bytes, *, last: bool = True, limit: int = 1 << 20) -> int:
    with pytest.raises(ProtocolViolation) as caught:
        Inflater().feed(wire, last, limit)
    return int(caught.value.code)


def test_inflater_refuses_a_flood_of_final_blocks() -> None:
    assert failure(b"\x03\x00" * 500_000) == 1007


@pytest.mark.parametrize("wire", [b"\x07", b"\xff\xff\xff", b"\x00\x05\x00\xfa\xfe"])
def test_inflater_refuses_broken_data(wire: bytes) -> None:
    assert failure(wire, last=False) == 1007


@pytest.mark.parametrize(
    "wire",
    [
        b"\xf2\x48\xcd",
        b"\x00\x05\x00\xfa\xffHel",
        # the stored block is longer than the data, the tail and what we append
        b"\x00\x10\x00\xef\xffHel",
        b"\x03\x00\x00\x01",
        # the tail becomes the content of a final block, and more is left
        b"\x01\x02\x00\xfd\xff",
    ],
)
def test_inflater_refuses_data_that_end_too_soon(wire: bytes) -> None:
    assert failure(wire) == 1007


@pytest.mark.parametrize("last", [False, True])
def test_inflater_refuses_one_byte_too_many(last: bool) -> None:
    wire = compress(bytes(1000), 15) or b""
    assert len(Inflater().feed(wire, last, 1000)) == 1000
    assert failure(wire, last=last, limit=999) == 1009


def test_inflater_makes_no_more_than_the_limit_of_a_bomb() -> None:
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = deflater.compress(bytes(1 << 24)) + deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert len(bomb) < 20_000
    assert failure(bomb, limit=1000) == 1009


@pytest.mark.parametrize(
    ("wire", "limit"), [(b"\x00\x04\x00\xfb\xff", 3), (b"\x00\x06\x00\xf9\xffab", 5)]
)
def test_inflater_refuses_output_that_only_the_tail_brings_out(wire: bytes, limit: int) -> None:
    # A stored block cut off before its last four bytes: the tail becomes its content.
    assert failure(wire, limit=limit) == 1009


def outcome(read: Callable[[], bytes]) -> bytes | tuple[int, str]:
    try:
        return read()
    except ProtocolViolation as exc:
        return int(exc.code), exc.reason


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Blocks of all kinds, some of them final, cut off or with a byte that is another."""
    deflater = zlib.compressobj(draw(st.integers(0, 9)), wbits=-15)
    wire = b""
    for payload in draw(st.lists(st.binary(max_size=40), max_size=4)):
        wire += deflater.compress(payload * 3) + deflater.flush(zlib.Z_SYNC_FLUSH)
        if draw(st.booleans()):
            wire += deflater.flush(zlib.Z_FINISH)
            deflater = zlib.compressobj(wbits=-15)
    end = draw(st.sampled_from([len(wire), len(wire) - 4, draw(st.integers(0, len(wire)))]))
    broken = bytearray(wire[: max(0, end)])
    if broken and draw(st.booleans()):
        broken[draw(st.integers(0, len(broken) - 1))] = draw(st.integers(0, 255))
    return bytes(broken)


@given(wires(), st.integers(0, 500))
@example(b"", 0)
@example(b"\xf3\x48\xcd\xc9\xc9\x07\x00", 5)
@example(b"\x00\x04\x00\xfb\xff", 4)
@example(b"\x00\x04\x00\xfb\xff", 3)
@settings(deadline=None)
def test_decompress_gives_what_inflater_gives(wire: bytes, limit: int) -> None:
    whole = outcome(lambda: decompress(wire, limit))
    assert whole == outcome(lambda: Inflater().feed(wire, True, limit))


def test_decompress_gives_message_of_just_the_limit() -> None:
    wire = compress(bytes(1000), 15) or b""
    assert decompress(wire, 1000) == bytes(1000)
    assert outcome(lambda: decompress(wire, 999)) == (1009, "message too big")
