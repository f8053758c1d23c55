"""One message, several wire forms."""

from __future__ import annotations

import os

import pytest

from wsmiddleware.protocol import prepared
from wsmiddleware.protocol.deflate import compress
from wsmiddleware.protocol.prepared import PreparedMessage


def test_prepared_text_is_a_text_frame() -> None:
    message = PreparedMessage("é")
    assert message.wire(0) == b"\x81\x02\xc3\xa9"
    assert message.size == 2


def test_prepared_binary_is_a_copy() -> None:
    data = bytearray(b"abc")
    message = PreparedMessage(data)
    data[0] = 0
    assert message.wire(15) == b"\x82\x03abc"


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_prepared_message_is_compressed_for_the_window(bits: int) -> None:
    wire = PreparedMessage("x" * 256).wire(bits)
    compressed = compress(b"x" * 256, bits) or b""
    assert wire == b"\xc1" + bytes((len(compressed),)) + compressed


def test_prepared_message_is_compressed_once_for_each_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows: list[int] = []

    def counting(payload: bytes, bits: int) -> bytes | None:
        windows.append(bits)
        return compress(payload, bits)

    monkeypatch.setattr(prepared, "compress", counting)
    message = PreparedMessage(b"x" * 1000)
    wires = [message.wire(bits) for bits in (15, 12, 9, 13, 9, 0, 15)]
    assert windows == [12, 9]
    assert wires[0] is wires[1] is wires[3] is wires[6]


@pytest.mark.parametrize(
    ("data", "compress"),
    [(b"x" * 255, True), (b"x" * 1000, False), (os.urandom(1000), True)],
    ids=["short", "not wanted", "does not shrink"],
)
def test_prepared_message_stays_plain(data: bytes, compress: bool) -> None:
    message = PreparedMessage(data, compress=compress)
    assert message.wire(15) is message.wire(0)
    assert message.wire(0).endswith(data)


def test_prepared_message_stays_plain_for_a_window_of_8_bits() -> None:
    message = PreparedMessage(b"x" * 1000)
    assert message.wire(8) is message.wire(0)


@pytest.mark.parametrize("data", [None, 5, {"a": 1}])
def test_prepared_message_refuses_other_types(data: bytes) -> None:
    with pytest.raises(TypeError, match="str or bytes-like"):
        PreparedMessage(data)
