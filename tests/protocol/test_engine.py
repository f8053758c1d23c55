"""The engine rule by rule, in bytes: RFC 6455 sections 5 to 8.

Clients mask with a key of zeros here, so that the payload can be read on the wire.
"""

from __future__ import annotations

import os
import tracemalloc

import pytest

from wsmiddleware.protocol.deflate import Deflate
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping, Pong
from wsmiddleware.protocol.frames import Opcode, encode_frame
from wsmiddleware.protocol.masking import xor_mask

KEY = bytes(4)
HELLO = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"


def receive(*chunks: bytes, **options: object) -> list[Event]:
    engine = Engine(**options)  # type: ignore[arg-type]
    return [event for chunk in chunks for event in engine.receive(chunk)]


def code_of(*chunks: bytes, **options: object) -> int:
    (event,) = receive(*chunks, **options)
    assert isinstance(event, Fail)
    return event.code


# Messages


def test_server_receives_example_of_the_rfc() -> None:
    assert receive(HELLO) == ["Hello"]


def test_client_receives_example_of_the_rfc() -> None:
    assert receive(b"\x81\x05\x48\x65\x6c\x6c\x6f", is_client=True) == ["Hello"]


def test_server_receives_binary() -> None:
    assert receive(b"\x82\x83" + KEY + b"\x00\xff\x80") == [b"\x00\xff\x80"]


def test_client_receives_binary() -> None:
    assert receive(b"\x82\x02\xff\x00", is_client=True) == [b"\xff\x00"]


def test_server_receives_empty_messages() -> None:
    assert receive(b"\x81\x80" + KEY + b"\x82\x80" + KEY) == ["", b""]


@pytest.mark.parametrize("step", [1000, 4095, 4096, 7001, 30_000])
@pytest.mark.parametrize("text", ["x", "x" * 20_000 + "é€😀", "é" + "x" * 20_000, "xé€😀" * 6000])
def test_server_receives_large_text_in_pieces(text: str, step: int) -> None:
    wire = encode_frame(Opcode.TEXT, (text * 2).encode(), masked=True)
    chunks = [wire[start : start + step] for start in range(0, len(wire), step)]
    assert receive(*chunks) == [text * 2]


@pytest.mark.parametrize("size", [125, 126, 127, 4095, 4096, 65535, 65536, 100_000])
@pytest.mark.parametrize("is_client", [False, True])
def test_engine_receives_every_form_of_length(size: int, is_client: bool) -> None:
    payload = os.urandom(size)
    wire = encode_frame(Opcode.BINARY, payload, masked=not is_client)
    assert receive(wire, is_client=is_client) == [payload]


def test_server_receives_many_messages_at_once() -> None:
    assert receive(HELLO * 100) == ["Hello"] * 100


def test_server_receives_byte_by_byte() -> None:
    wire = HELLO + b"\x89\x81" + KEY + b"p" + encode_frame(Opcode.BINARY, b"x" * 200, masked=True)
    assert receive(*(bytes((byte,)) for byte in wire)) == ["Hello", Ping(b"p"), b"x" * 200]


def test_server_unmasks_pieces_of_a_frame_with_the_right_bytes_of_the_key() -> None:
    payload, key = os.urandom(1000), b"\x01\x02\x03\x04"
    wire = b"\x82\xfe\x03\xe8" + key + xor_mask(payload, key)
    for cut in range(8, 20):
        assert receive(wire[:cut], wire[cut : cut + 7], wire[cut + 7 :]) == [payload]


def test_server_joins_fragments() -> None:
    wire = b"\x01\x83" + KEY + b"\xe2\x82\xac" + b"\x00\x80" + KEY + b"\x80\x81" + KEY + b"x"
    assert receive(wire) == ["€x"]


def test_client_joins_fragments() -> None:
    assert receive(b"\x02\x01a\x00\x01b\x80\x01c", is_client=True) == [b"abc"]


def test_server_joins_character_cut_by_fragments() -> None:
    wire = b"\x01\x81" + KEY + b"\xe2\x00\x81" + KEY + b"\x82\x80\x81" + KEY + b"\xac"
    assert receive(wire) == ["€"]


def test_server_receives_control_frames_between_fragments() -> None:
    wire = b"\x01\x81" + KEY + b"a\x89\x81" + KEY + b"p\x8a\x80" + KEY + b"\x80\x81" + KEY + b"b"
    assert receive(wire + HELLO) == [Ping(b"p"), Pong(b""), "ab", "Hello"]


def test_server_receives_ping_of_125_bytes() -> None:
    assert receive(b"\x89\xfd" + KEY + b"p" * 125) == [Ping(b"p" * 125)]


# Closing


def test_server_receives_close() -> None:
    assert receive(b"\x88\x85" + KEY + b"\x03\xe8bye") == [Close(1000, "bye")]


def test_server_receives_close_without_code() -> None:
    assert receive(b"\x88\x80" + KEY) == [Close(1005, "")]


def test_server_gives_messages_before_close_and_ignores_what_follows() -> None:
    engine = Engine()
    assert engine.receive(HELLO + b"\x88\x80" + KEY + HELLO) == ["Hello", Close(1005, "")]
    assert engine.is_done
    assert not engine.more
    assert engine.receive(HELLO) == []


def test_server_gives_messages_before_failure_and_ignores_what_follows() -> None:
    engine = Engine()
    assert engine.receive(HELLO + b"\x83\x80" + KEY + HELLO) == [
        "Hello",
        Fail(1002, "unknown opcode 3"),
    ]
    assert engine.is_done
    assert engine.receive(HELLO) == []


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_server_fails_on_invalid_close_code(code: int) -> None:
    assert code_of(b"\x88\x82" + KEY + code.to_bytes(2, "big")) == 1002


def test_server_fails_on_close_with_half_a_code() -> None:
    assert code_of(b"\x88\x81" + KEY + b"\x03") == 1002


def test_server_fails_on_close_reason_that_is_no_utf8() -> None:
    assert code_of(b"\x88\x83" + KEY + b"\x03\xe8\xff") == 1007


# What breaks the protocol: 1002, as early as the first two bytes tell


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (0x91, "reserved bits set"),
        (0xA1, "reserved bits set"),
        (0xC1, "reserved bits set"),
        (0xC9, "reserved bits set"),
        (0x83, "unknown opcode 3"),
        (0x8B, "unknown opcode 11"),
        (0x8F, "unknown opcode 15"),
        (0x09, "fragmented control frame"),
        (0x08, "fragmented control frame"),
        (0x00, "continuation without a message"),
        (0x80, "continuation without a message"),
    ],
)
def test_server_fails_on_first_byte(first: int, reason: str) -> None:
    assert receive(bytes((first, 0x80))) == [Fail(1002, reason)]


@pytest.mark.parametrize("first", [0x01, 0x81, 0x02, 0x82])
def test_server_fails_on_new_message_inside_a_fragmented_one(first: int) -> None:
    wire = b"\x01\x80" + KEY + bytes((first, 0x80)) + KEY
    assert receive(wire) == [Fail(1002, "new message inside a fragmented one")]


def test_server_fails_on_unmasked_frame() -> None:
    assert receive(b"\x81\x05Hello") == [Fail(1002, "unmasked frame from the client")]


def test_client_fails_on_masked_frame() -> None:
    assert receive(HELLO, is_client=True) == [Fail(1002, "masked frame from the server")]


@pytest.mark.parametrize("first", [0x88, 0x89, 0x8A])
def test_server_fails_on_long_control_frame(first: int) -> None:
    assert receive(bytes((first, 0xFE))) == [Fail(1002, "control frame too long")]


@pytest.mark.parametrize(
    "wire", [b"\x82\xfe\x00\x7d", b"\x82\xff" + bytes(6) + b"\xff\xff"], ids=["16 bit", "64 bit"]
)
def test_server_fails_on_length_that_is_not_minimal(wire: bytes) -> None:
    assert receive(wire) == [Fail(1002, "length not in its shortest form")]
    assert receive(wire + KEY + bytes(125)) == [Fail(1002, "length not in its shortest form")]


def test_server_fails_on_length_with_the_highest_bit() -> None:
    assert code_of(b"\x82\xff\x80" + bytes(7)) == 1002


@pytest.mark.parametrize("first", [0xC0, 0x40, 0xC9, 0xD1])
def test_server_fails_on_reserved_bits_where_deflate_has_no_place_for_them(first: int) -> None:
    assert code_of(bytes((first, 0x80)), deflate=Deflate()) == 1002


def test_server_fails_on_compression_bit_inside_a_message() -> None:
    wire = b"\x41\x80" + KEY + b"\xc0\x80" + KEY
    assert receive(wire, deflate=Deflate()) == [Fail(1002, "reserved bits set")]


# Text that is no UTF-8: 1007 at the first byte that proves it


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2"]
)
@pytest.mark.parametrize("padding", [0, 200, 5000])
def test_server_fails_on_text_that_is_no_utf8(text: bytes, padding: int) -> None:
    wire = encode_frame(Opcode.TEXT, b"x" * padding + text, masked=True)
    assert receive(HELLO + wire + HELLO) == ["Hello", Fail(1007, "invalid UTF-8")]


@pytest.mark.parametrize("text", [b"\xff", b"\xc0", b"\xed\xa0", b"\xf4\x90", b"\xe2\x82\x41"])
def test_server_fails_on_first_wrong_byte_of_an_incomplete_frame(text: bytes) -> None:
    engine = Engine()
    header = b"\x81\xfe\x40\x00" + KEY + b"x"
    assert engine.receive(header + text[:-1]) == []
    assert engine.receive(text[-1:]) == [Fail(1007, "invalid UTF-8")]


@pytest.mark.parametrize("pieces", [["x" * 5000], ["x" * 5000, "é" * 5000], ["é" * 5000, "x" * 10]])
def test_server_fails_on_first_wrong_byte_of_large_text(pieces: list[str]) -> None:
    engine = Engine()
    assert engine.receive(b"\x81\xff" + (500_000).to_bytes(8, "big") + KEY) == []
    for piece in pieces:
        assert engine.receive(piece.encode()) == []
    for byte in "é".encode() + b"\xe2":
        assert engine.receive(bytes([byte])) == []
    assert engine.receive(b"\x41") == [Fail(1007, "invalid UTF-8")]


def test_server_fails_on_wrong_byte_of_a_fragment() -> None:
    assert code_of(b"\x01\x82" + KEY + b"a\xff") == 1007


def test_server_fails_on_text_that_ends_inside_a_character() -> None:
    assert code_of(b"\x01\x81" + KEY + b"\xe2\x80\x81" + KEY + b"\x82") == 1007


def test_server_leaves_binary_alone() -> None:
    assert receive(b"\x02\x81" + KEY + b"\xff\x80\x81" + KEY + b"\xfe") == [b"\xff\xfe"]


# Limits: 1009


@pytest.mark.parametrize("size", [0, 10, 125, 126, 4000, 70_000])
def test_server_receives_message_of_the_largest_size(size: int) -> None:
    wire = encode_frame(Opcode.BINARY, b"x" * size, masked=True)
    assert receive(wire, max_message_size=size) == [b"x" * size]
    assert receive(wire[:-1], wire[-1:], max_message_size=size) == [b"x" * size]


@pytest.mark.parametrize("size", [10, 126, 4000, 70_000])
def test_server_refuses_larger_message_at_its_header(size: int) -> None:
    wire = encode_frame(Opcode.BINARY, b"x" * size, masked=True)
    for end in (-1, -size, -size - 4, len(wire)):
        assert receive(wire[:end], max_message_size=size - 1) == [Fail(1009, "message too big")]


def test_server_refuses_fragments_that_become_too_big() -> None:
    assert code_of(b"\x02\x86" + KEY + b"123456\x00\x85" + KEY, max_message_size=10) == 1009


def test_server_allocates_nothing_for_a_length_that_is_only_announced() -> None:
    engine = Engine(max_message_size=1 << 40)
    tracemalloc.start()
    try:
        assert engine.receive(b"\x82\xff" + (1 << 39).to_bytes(8, "big") + KEY + b"x") == []
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def test_server_refuses_a_flood_of_fragments() -> None:
    wire = b"\x02\x80" + KEY + (b"\x00\x80" + KEY) * 1023
    engine = Engine(max_message_size=1000)
    assert engine.receive(wire, max_events=2000) == []
    assert engine.receive(b"\x00\x80" + KEY) == [Fail(1009, "too many fragments")]


# A turn for the others: max_events


def test_server_stops_after_max_events_and_goes_on_later() -> None:
    engine = Engine()
    assert engine.receive(HELLO * 5, max_events=2) == ["Hello"] * 2
    assert engine.more
    assert engine.receive(b"", max_events=2) == ["Hello"] * 2
    assert engine.more
    assert engine.receive(b"", max_events=2) == ["Hello"]
    assert not engine.more


def test_server_has_no_more_when_max_events_took_everything() -> None:
    engine = Engine()
    assert engine.receive(HELLO * 2, max_events=2) == ["Hello"] * 2
    assert not engine.more


def test_server_counts_fragments_and_control_frames_as_events() -> None:
    engine = Engine()
    wire = b"\x01\x80" + KEY + b"\x00\x80" + KEY + b"\x89\x80" + KEY + b"\x80\x80" + KEY
    assert engine.receive(wire, max_events=3) == [Ping(b"")]
    assert engine.more
    assert engine.receive(b"") == [""]


def test_server_puts_new_bytes_behind_those_that_it_keeps() -> None:
    engine = Engine()
    assert engine.receive(HELLO + HELLO[:7], max_events=1) == ["Hello"]
    assert engine.receive(HELLO[7:] + b"\x89") == ["Hello"]
    assert engine.receive(b"\x80" + KEY) == [Ping(b"")]


def test_server_has_no_more_once_it_is_done() -> None:
    engine = Engine()
    engine.receive(HELLO + b"\x88\x80" + KEY + HELLO, max_events=1)
    assert engine.receive(b"", max_events=1) == [Close(1005, "")]
    assert not engine.more
    assert engine.receive(b"") == []
