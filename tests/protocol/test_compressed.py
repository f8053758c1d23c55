"""Compressed messages through the engine: RFC 7692 section 7.2.

Clients mask with a key of zeros where the payload is to be read on the wire.
"""

from __future__ import annotations

from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Engine, Event, Fail, Ping
from wsmiddleware.protocol.frames import Opcode, encode_frame
from wsmiddleware.protocol.masking import xor_mask

KEY = bytes(4)
HELLO = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"


def receive(*chunks: bytes, max_message_size: int = 1 << 20) -> list[Event]:
    engine = Engine(deflate=Deflate(), max_message_size=max_message_size)
    return [event for chunk in chunks for event in engine.receive(chunk)]


def code_of(*chunks: bytes, max_message_size: int = 1 << 20) -> int:
    (event,) = receive(*chunks, max_message_size=max_message_size)
    assert isinstance(event, Fail)
    return event.code


def compressed_frame(text: str | bytes, first: int = 0xC1) -> bytes:
    payload = compress(text if isinstance(text, bytes) else text.encode(), 15)
    assert payload is not None
    return encode_frame(first & 0x0F, payload, fin=first > 127, rsv1=True, masked=True)


def test_server_receives_compressed_message() -> None:
    assert receive(b"\xc1\x87" + KEY + b"\xf2\x48\xcd\xc9\xc9\x07\x00") == ["Hello"]


def test_server_receives_compressed_message_in_fragments_and_plain_ones_between() -> None:
    wire = b"\x41\x83" + KEY + b"\xf2\x48\xcd" + b"\x89\x80" + KEY + b"\x80\x84" + KEY
    wire += b"\xc9\xc9\x07\x00"
    assert receive(wire + HELLO + wire) == [
        Ping(b""),
        "Hello",
        "Hello",
        Ping(b""),
        "Hello",
    ]


def test_server_receives_compressed_binary_byte_by_byte() -> None:
    data = bytes(range(256)) * 4
    wire = compressed_frame(data, 0xC2)
    assert receive(*(bytes((byte,)) for byte in wire)) == [data]


def test_server_receives_largest_message_though_it_grew_by_compression() -> None:
    data = b"".join(b"\x00\x01\x00\xfe\xff" + bytes((i % 256,)) for i in range(100)) + b"\x00"
    wire = encode_frame(Opcode.BINARY, data, rsv1=True, masked=True)
    expected = bytes(i % 256 for i in range(100))
    assert receive(wire, max_message_size=100) == [expected]


def test_server_refuses_bomb() -> None:
    assert code_of(compressed_frame("x" * 1001), max_message_size=1000) == 1009


def test_server_refuses_bomb_in_fragments() -> None:
    wire = compressed_frame("x" * 1001)
    first, rest = wire[6:8], wire[8:]
    key = wire[2:6]
    chunks = [b"\x41\x82" + key + first, bytes((0x80, 0x80 | len(rest))) + KEY]
    chunks.append(xor_mask(rest, key[2:] + key[:2]))
    assert code_of(*chunks, max_message_size=1000) == 1009


def test_server_refuses_compressed_frame_that_cannot_fit_at_its_header() -> None:
    assert code_of(b"\xc1\xff\x00\x00\x00\x00\x00\x20\x00\x00" + KEY) == 1009


def test_server_fails_on_broken_compressed_data() -> None:
    wire = b"\xc1\x83" + KEY + b"\xff\xff\xff"
    assert receive(wire) == [Fail(1007, "invalid compressed data")]


def test_server_fails_on_wrong_byte_in_compressed_text_before_its_end() -> None:
    wire = compressed_frame(b"\xff" * 300)
    assert code_of(wire[:-1]) == 1007


def test_server_stops_when_few_bytes_have_become_many() -> None:
    engine, size = Engine(deflate=Deflate()), 200_000
    events = engine.receive(compressed_frame("x" * size) * 5 + HELLO)
    assert ([*map(len, events)], engine.more) == ([size, size], True)
    events = engine.receive(b"")
    assert ([*map(len, events)], engine.more) == ([size, size], True)
    assert (engine.receive(b""), engine.more) == (["x" * size, "Hello"], False)
