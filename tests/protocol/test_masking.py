"""Masking, in C and in Python: RFC 6455 section 5.3."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsmiddleware import speedups
from wsmiddleware.protocol import masking

Mask = Callable[[bytes, bytes], bytes]


@pytest.fixture(params=["xor_mask", "apply_mask"])
def mask(request: pytest.FixtureRequest) -> Mask:
    found: Mask = getattr(masking, request.param)
    return found


def test_mask_gives_the_example_of_the_rfc(mask: Mask) -> None:
    assert mask(b"\x7f\x9f\x4d\x51\x58", b"\x37\xfa\x21\x3d") == b"Hello"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 2047, 2048, 2049, 2050, 2051])
def test_mask_xors_each_byte_with_its_byte_of_the_key(mask: Mask, size: int) -> None:
    data, key = bytes(i % 251 for i in range(size)), b"\x01\x80\x00\xff"
    assert mask(data, key) == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [5, 4096])
def test_mask_takes_any_buffer_and_gives_bytes(
    mask: Mask, kind: Callable[[bytes], bytes], size: int
) -> None:
    masked = mask(kind(b"x" * size), b"\x20\x20\x20\x20")
    assert (masked, type(masked)) == (b"X" * size, bytes)


def test_masking_is_the_extensions_where_it_is_in_use() -> None:
    assert masking.apply_mask is (speedups.apply_mask or masking.xor_mask)
