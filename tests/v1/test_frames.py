"""Frames of wsmiddleware.v1."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.engine import Position, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind
from wsmiddleware.v1.frames import Message, Since, hello, joined, parse_since, reset

EPOCH = "0123456789abcdef"
HERE = Position(EPOCH, 7)
CHAT = Subject("chat")


def message(payload: bytes, kind: Kind = Kind.TEXT, **more: Any) -> Any:
    envelope = Envelope(more.pop("subject", CHAT), kind, payload, **more)
    return json.loads(Message(envelope).frame())


def test_hello_with_history() -> None:
    assert json.loads(hello("s1", HERE, is_recovered=True, ping=25000)) == {
        "type": "hello",
        "session": "s1",
        "ping": 25000,
        "epoch": EPOCH,
        "offset": 7,
        "recovered": True,
    }


def test_hello_without_history() -> None:
    assert json.loads(hello("s1", None)) == {"type": "hello", "session": "s1"}


def test_joined_and_reset_name_the_group() -> None:
    place = {"group": "red", "epoch": EPOCH, "offset": 7}
    assert json.loads(reset("red", HERE)) == {"type": "reset", **place}
    frame = json.loads(joined("red", HERE, is_recovered=False))
    assert frame == {"type": "joined", **place, "recovered": False}


def test_message_is_real_json_where_json_was_sent() -> None:
    assert message(b'{"a": [1, "\xc3\xbc"]}', Kind.JSON) == {
        "type": "message",
        "data": {"a": [1, "ü"]},
    }


def test_message_of_bytes() -> None:
    assert message(b"\x00\xff", Kind.BYTES) == {"type": "message", "base64": "AP8="}


def test_message_of_a_group_with_its_place() -> None:
    frame = message(b"hi", subject=Subject("chat", "red"), position=HERE)
    assert frame == {"type": "message", "group": "red", "offset": 7, "data": "hi"}


@given(st.text(st.characters(codec="utf-8")))
def test_message_of_any_text(text: str) -> None:
    assert message(text.encode())["data"] == text


def test_each_form_is_encoded_once() -> None:
    both = Message(Envelope(CHAT, Kind.TEXT, b"hi", position=HERE))
    assert both.frame() is both.frame()
    assert both.frame(EPOCH) is both.frame(EPOCH)
    assert json.loads(both.frame(EPOCH))["epoch"] == EPOCH


@pytest.mark.parametrize(
    ("text", "since"),
    [
        (f"{EPOCH}:7", Since(HERE)),
        (f"{EPOCH}:7:s1", Since(HERE, "s1")),
        (f"{EPOCH}:7:", Since(HERE)),
        (f"{EPOCH}:7:{'s' * 65}", None),
        (f"{EPOCH}:7:\u00fc", None),
        ("", None),
        ("::", None),
        (f"{EPOCH}:x:s1", None),
        ("x" * 100_000, None),
        (f"{EPOCH}:7:{'s' * 100_000}", None),
    ],
)
def test_since_is_read_or_nothing(text: str, since: Since | None) -> None:
    assert parse_since(text) == since


@given(st.text(max_size=200))
def test_since_of_anything_never_raises(text: str) -> None:
    parse_since(text)
