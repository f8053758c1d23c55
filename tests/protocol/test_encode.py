"""What the engine sends: frames of RFC 6455 section 5, compressed where that was agreed."""

from __future__ import annotations

import os

import pytest

from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Engine, Pong
from wsmiddleware.protocol.frames import Opcode


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        ("", b"\x81\x00"),
        ("é", b"\x81\x02\xc3\xa9"),
        (b"\x00", b"\x82\x01\x00"),
        (bytearray(b"ab"), b"\x82\x02ab"),
        (memoryview(b"abcd")[::2], b"\x82\x02ac"),
        ("x" * 126, b"\x81\x7e\x00\x7e" + b"x" * 126),
    ],
)
def test_server_encodes_message(data: str | bytes, wire: bytes) -> None:
    assert Engine().encode(data) == wire


@pytest.mark.parametrize("data", ["hello", "x" * 126])
def test_client_encodes_masked_message(data: str) -> None:
    wire = Engine(is_client=True).encode(data)
    assert wire[1] > 127
    assert Engine().receive(wire) == [data]


def test_server_compresses_message_from_256_bytes() -> None:
    engine = Engine(deflate=Deflate())
    assert engine.encode("x" * 255) == b"\x81\x7e\x00\xff" + b"x" * 255
    compressed = compress(b"x" * 256, 15) or b""
    assert engine.encode("x" * 256) == b"\xc1" + bytes((len(compressed),)) + compressed


def test_client_compresses_message() -> None:
    wire = Engine(is_client=True, deflate=Deflate()).encode(b"x" * 1000)
    assert (wire[0], len(wire) < 50) == (0xC2, True)
    assert Engine(deflate=Deflate()).receive(wire) == [b"x" * 1000]


def test_server_does_not_compress_what_must_not_be() -> None:
    assert Engine(deflate=Deflate()).encode("x" * 300, compress=False)[0] == 0x81


def test_server_does_not_compress_without_agreement() -> None:
    assert Engine().encode("x" * 300)[0] == 0x81


def test_server_does_not_compress_what_does_not_shrink() -> None:
    assert Engine(deflate=Deflate()).encode(os.urandom(1000))[:4] == b"\x82\x7e\x03\xe8"


def test_server_encodes_control_frame() -> None:
    assert Engine().control(Opcode.PING, b"abc") == b"\x89\x03abc"


def test_client_encodes_masked_control_frame() -> None:
    wire = Engine(is_client=True).control(Opcode.PONG, b"abc")
    assert Engine().receive(wire) == [Pong(b"abc")]


def test_engine_refuses_control_frame_of_126_bytes() -> None:
    with pytest.raises(ValueError, match="126 bytes"):
        Engine().control(Opcode.PING, bytes(126))


def test_engine_refuses_data_frame_as_control_frame() -> None:
    with pytest.raises(ValueError, match="no control frame"):
        Engine().control(Opcode.TEXT, b"")


def test_engine_refuses_message_of_another_type() -> None:
    with pytest.raises(TypeError, match="str or bytes-like, not dict"):
        Engine().encode({})  # type: ignore[arg-type]
