"""However TCP cuts the bytes, the events are the same; whatever they are, nothing is raised."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail
from wsmiddleware.protocol.frames import Opcode, encode_frame

MAX_SIZE = 2000

cuts = st.lists(st.integers(0, 3000), max_size=20)
texts = st.text(max_size=60) | st.text(min_size=1, max_size=8).map(lambda text: text * 50)
messages = st.lists(texts | st.binary(max_size=300), max_size=5)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(bounds)] or [b""]


def encode_fragments(message: str | bytes, cuts: list[int], is_compressed: bool) -> bytes:
    """Encode a message as a client may: in fragments, a ping behind each but the last."""
    opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
    payload = message.encode() if isinstance(message, str) else message
    compressed = compress(payload, 15) if is_compressed else None
    rsv1 = compressed is not None
    *fragments, last = split(compressed or payload, cuts)
    wire = b""
    for fragment in fragments:
        wire += encode_frame(opcode, fragment, fin=False, rsv1=rsv1, masked=True)
        wire += encode_frame(Opcode.PING, b"p", masked=True)
        opcode, rsv1 = Opcode.CONTINUATION, False
    return wire + encode_frame(opcode, last, rsv1=rsv1, masked=True)


def receive(
    chunks: list[bytes], max_events: int = 256, deflate: Deflate | None = None
) -> list[Event]:
    engine = Engine(max_message_size=MAX_SIZE, deflate=deflate)
    events: list[Event] = []
    for chunk in chunks:
        events += engine.receive(chunk, max_events)
        while engine.more:
            events += engine.receive(b"", max_events)
    assert engine.is_done == any(isinstance(event, Close | Fail) for event in events)
    return events


@given(messages, cuts, cuts, st.booleans(), st.integers(1, 5))
@settings(deadline=None)
def test_engine_receives_valid_messages_in_any_chunks(
    sent: list[str | bytes],
    fragment_cuts: list[int],
    chunk_cuts: list[int],
    is_compressed: bool,
    max_events: int,
) -> None:
    wire = b"".join(encode_fragments(message, fragment_cuts, is_compressed) for message in sent)
    events = receive([wire], deflate=Deflate())
    assert [event for event in events if isinstance(event, str | bytes)] == sent
    assert receive(split(wire, chunk_cuts), max_events, Deflate()) == events


@given(messages, cuts, cuts, st.integers(0, 3000), st.integers(0, 255))
@settings(deadline=None)
def test_engine_receives_damaged_messages_alike_in_any_chunks(
    sent: list[str | bytes], fragment_cuts: list[int], chunk_cuts: list[int], place: int, byte: int
) -> None:
    wire = bytearray().join(encode_fragments(message, fragment_cuts, False) for message in sent)
    if wire:
        wire[place % len(wire)] = byte
    assert receive(split(bytes(wire), chunk_cuts), 1) == receive([bytes(wire)])


@given(st.binary(max_size=300), cuts, st.booleans())
@settings(deadline=None)
def test_engine_never_raises(data: bytes, chunk_cuts: list[int], is_compressed: bool) -> None:
    # The first two bytes make a frame likely, the rest is what came.
    wire = bytes((0xC1 if is_compressed else 0x01, 0x80 | len(data) % 126)) + data
    events = receive(split(wire, chunk_cuts), deflate=Deflate() if is_compressed else None)
    for event in events:
        assert isinstance(event, str | bytes | tuple)
