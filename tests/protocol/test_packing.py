"""The wire form of one message: by the engine, and by the C extension where it is in use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wsmiddleware import speedups
from wsmiddleware.protocol.engine import Engine

Pack = Callable[..., Any]
WAYS: dict[str, Pack] = {"wire": lambda *args: Engine().wire(*args)}
if speedups.pack is not None:
    WAYS["pack"] = speedups.pack


@pytest.fixture(params=WAYS)
def pack(request: pytest.FixtureRequest) -> Pack:
    return WAYS[request.param]


def join(wire: Any) -> bytes:
    return b"".join(wire if isinstance(wire, tuple) else [wire])


@pytest.mark.parametrize("size", [0, 125, 126, 16_383, 16_384, 65_535, 65_536])
@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview])
def test_message_is_packed_as_it_is_encoded(pack: Pack, size: int, kind: Any) -> None:
    data = "x" * size if kind is str else kind(b"x" * size)
    wire = pack(data, True)
    assert isinstance(wire, tuple) == (size >= 16_384)
    assert join(wire) == Engine().encode(data)


@pytest.mark.parametrize("text", ["grüße", "ü" * 10_000, "🎉" * 5000])
def test_text_is_encoded(pack: Pack, text: str) -> None:
    assert join(pack(text, False)) == Engine().encode(text)


def test_what_may_change_is_copied(pack: Pack) -> None:
    data = bytearray(b"x" * 20_000)
    _, payload = pack(data, True)
    data[:] = b"y"
    assert payload == b"x" * 20_000


def test_payload_lives_as_long_as_it_is_looked_at(pack: Pack) -> None:
    _, payload = pack("x" * 10_000 + "y" * 10_000, True)
    gc.collect()
    assert bytes(payload[10_000:]) == b"y" * 10_000


def test_what_is_no_message_is_refused(pack: Pack) -> None:
    with pytest.raises(TypeError):
        pack(1, True)
    with pytest.raises(UnicodeEncodeError):
        pack("\ud800", True)
    with pytest.raises(TypeError):
        pack()


def test_packing_leaks_nothing(pack: Pack) -> None:
    def turn() -> None:
        for data in ("ü", "x" * 20_000, b"x" * 20_000):
            pack(data, True)

    turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(200):
        turn()
    gc.collect()
    assert sys.getallocatedblocks() - before < 50
