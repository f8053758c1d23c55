"""Envelopes: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsmiddleware.backplane.engine import MAX_OFFSET, Position, Subject
from wsmiddleware.backplane.envelope import (
    HEAD_SIZE,
    MAX_EXCLUDED,
    MAX_NAME_SIZE,
    STAMP,
    Envelope,
    ForeignEnvelope,
    Kind,
    NewerEnvelope,
    decode,
    decode_head,
    encode,
    stamp,
)

PLAIN = Envelope(Subject("chat"), Kind.TEXT, b"hi")
PLACE = Position("0123456789abcdef", 7)

texts = st.text(st.characters(), max_size=20)  # halves of surrogate pairs too
positions = st.builds(
    Position, st.text("0123456789abcdef", min_size=16, max_size=16), st.integers(1, MAX_OFFSET)
)
places = st.tuples(positions, st.just(0)) | st.tuples(st.none(), st.integers(0, MAX_OFFSET))
envelopes = st.builds(
    lambda place, *rest: Envelope(*rest, *place),
    places,
    st.builds(Subject, texts, texts),
    st.sampled_from(Kind),
    st.binary(max_size=200),
    st.binary(min_size=8, max_size=8),
    st.none() | texts,
    st.frozensets(texts, max_size=5),
)


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    data = encode(envelope)
    assert decode(data) == envelope
    head = decode_head(data)
    place = envelope.position or Position("", envelope.number)
    assert (head.node, head.epoch, head.offset) == (envelope.node, *place)


@given(envelopes, positions)
def test_stamp_changes_the_place_and_nothing_else(envelope: Envelope, position: Position) -> None:
    data = encode(envelope)
    stamped = stamp(data, position)
    assert decode(stamped) == envelope._replace(position=position, number=0)
    assert stamped[: STAMP.start] == data[: STAMP.start]
    assert stamped[STAMP.stop :] == data[STAMP.stop :]


def test_nobody_and_the_empty_key_are_told_apart() -> None:
    assert decode(encode(PLAIN)).user is None
    assert decode(encode(PLAIN._replace(user=""))).user == ""


def refused(data: bytes) -> ForeignEnvelope:
    with pytest.raises(ForeignEnvelope) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize(
    "data", [b"", b"hello", b'{"a": 1}', b"\x00" * 99, pickle.dumps(PLAIN), "ü".encode() * 50]
)
def test_what_other_tools_publish_is_foreign(data: bytes) -> None:
    assert not isinstance(refused(data), NewerEnvelope)
    with pytest.raises(ForeignEnvelope):
        decode_head(data)


def test_later_version_is_told_apart() -> None:
    data = b"\xb2" + encode(PLAIN)[1:]
    assert isinstance(refused(data), NewerEnvelope)
    with pytest.raises(NewerEnvelope, match="version 2"):
        decode_head(data)


@given(envelopes, st.data())
def test_what_is_cut_or_changed_is_refused_or_is_an_envelope(
    envelope: Envelope, data: st.DataObject
) -> None:
    wire = bytearray(encode(envelope))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    del wire[data.draw(st.integers(0, len(wire))) :]
    try:
        decoded = decode(bytes(wire))
    except ForeignEnvelope:
        return
    again = decode(encode(decoded))
    assert again == decoded


@given(st.binary(max_size=200))
@example(b"\xb1" + bytes(200))
@example(b"\xb1\x01" + bytes(HEAD_SIZE - 6) + b"\xff" * 4)
def test_bytes_of_any_kind_raise_one_error(data: bytes) -> None:
    for wire in (data, b"\xb1" + data):
        for read in (decode, decode_head):
            try:
                read(wire)
            except ForeignEnvelope as exc:
                assert str(exc)


@pytest.mark.parametrize("place", [b"0123456789abcdeX" + bytes(7) + b"\1", bytes(16) + b"\xff" * 8])
def test_impossible_place_is_refused(place: bytes) -> None:
    data = encode(PLAIN)
    wire = data[: STAMP.start] + place + data[STAMP.stop :]
    refused(wire)
    with pytest.raises(ForeignEnvelope):
        decode_head(wire)


@pytest.mark.parametrize("offset", [0, MAX_OFFSET + 1])
def test_offset_out_of_bounds_is_refused(offset: int) -> None:
    refused(stamp(encode(PLAIN), Position(PLACE.epoch, offset)))


LONG = "x" * (MAX_NAME_SIZE + 1)


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        (PLAIN._replace(subject=Subject(LONG)), "a channel's name"),
        (PLAIN._replace(subject=Subject("chat", LONG)), "a group's name"),
        (PLAIN._replace(user=LONG), "a user's key"),
        (PLAIN._replace(excluded=frozenset(["x" * 256])), "a session id"),
        (PLAIN._replace(excluded=frozenset(map(str, range(MAX_EXCLUDED + 1)))), "at most 10,000"),
    ],
)
def test_what_is_past_a_limit_is_a_mistake(envelope: Envelope, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode(envelope)


def test_more_sessions_than_can_be_excluded_are_refused() -> None:
    many = encode(PLAIN._replace(payload=b"", excluded=frozenset(map(str, range(MAX_EXCLUDED)))))
    size = len(many) - HEAD_SIZE - len("chat") + 6
    wire = many[: HEAD_SIZE - 4] + size.to_bytes(4, "big") + many[HEAD_SIZE:] + b"\x05extra"
    assert "excluded" in str(refused(wire))
