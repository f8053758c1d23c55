"""One v1 client in one subject: which frames, in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsmiddleware.backplane.engine import Position, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind
from wsmiddleware.node.subject import Entered, Reset
from wsmiddleware.v1.client import MAX_WAITING, MAX_WAITING_SIZE, Follower, Phase
from wsmiddleware.v1.frames import Message, Since

CHAT = Subject("chat")
A, B = "a" * 16, "b" * 16


def message(offset: int, epoch: str = A, excluded: str = "", size: int = 0) -> Message:
    position = Position(epoch, offset) if offset else None
    names = frozenset([excluded] if excluded else ())
    payload = b"%d" % offset + b"x" * size
    return Message(Envelope(CHAT, Kind.TEXT, payload, excluded=names, position=position))


def shown(frames: list[str]) -> list[Any]:
    """A message as its offset, with its epoch where it has one; others as their type and offset."""
    found: list[Any] = []
    for text in frames:
        frame = json.loads(text)
        kind, offset = frame["type"], frame.get("offset", 0)
        place = (offset, frame["epoch"]) if "epoch" in frame else offset
        found.append(place if kind == "message" else (kind, offset))
    return found


def entered(
    top: int | None, *missed: int, since: Since | None = None
) -> tuple[Follower, list[str]]:
    follower = Follower(CHAT, "s2", has_history=True, since=since)
    position = None if top is None else Position(A, top)
    messages = tuple(message(offset).envelope for offset in missed)
    return follower, follower.entered(Entered("me", position, bool(missed), messages))


def following(top: int | None = 5) -> Follower:
    follower, _ = entered(top)
    assert follower.opened() == []
    return follower


def test_hello_comes_first_then_what_was_missed_then_what_on_open_sent_then_live_ones() -> None:
    follower = Follower(CHAT, "s2", has_history=True)
    assert follower.deliver(message(6)) == []
    missed = (message(6).envelope, message(7).envelope)
    frames = follower.entered(Entered("me", Position(A, 5), True, missed))
    assert shown(frames) == [("hello", 5), 6, 7]
    assert follower.deliver(message(8)) == []
    assert shown(follower.opened()) == [8]
    assert shown(follower.deliver(message(9))) == [9]


def test_hello_says_where_it_stands_and_what_else_there_is() -> None:
    follower = Follower(CHAT, "s2", has_history=True, greeting=lambda: {"ping": 25000})
    [frame] = follower.entered(Entered("me", Position(A, 5)))
    assert json.loads(frame) == {
        "type": "hello",
        "session": "s2",
        "ping": 25000,
        "epoch": A,
        "offset": 5,
        "recovered": False,
    }


def test_hello_without_history_tells_no_place() -> None:
    follower = Follower(CHAT, "s2", has_history=False, since=Since(Position(A, 5)))
    assert follower.since is None
    [frame] = follower.entered(Entered("me"))
    assert json.loads(frame) == {"type": "hello", "session": "s2"}


def test_group_is_joined() -> None:
    follower = Follower(Subject("chat", "red"), "s2", has_history=True)
    [frame] = follower.entered(Entered("me", Position(A, 5), True))
    assert json.loads(frame)["type"] == "joined"
    assert follower.entered(Entered("me")) == []


def test_nothing_comes_twice() -> None:
    follower = following(5)
    assert shown(follower.deliver(message(5)) + follower.deliver(message(6))) == [6]


def test_new_epoch_is_told_with_its_first_message() -> None:
    follower = following(5)
    frames = follower.deliver(message(6, B)) + follower.deliver(message(7, B))
    assert shown(frames) == [(6, B), 7]


def test_new_epoch_is_told_also_if_its_first_message_is_not_for_this_client() -> None:
    follower = following(5)
    frames = follower.deliver(message(6, B, excluded="s2")) + follower.deliver(message(7, B))
    assert shown(frames) == [(7, B)]


@pytest.mark.parametrize("session", ["s1", "s2"])
def test_what_excluded_this_session_or_the_one_before_is_kept_back(session: str) -> None:
    follower = Follower(CHAT, "s2", has_history=True, since=Since(Position(A, 5), "s1"))
    missed = (message(6, excluded=session).envelope, message(7).envelope)
    frames = follower.entered(Entered("me", Position(A, 5), True, missed))
    assert shown(frames) == [("hello", 5), 7]
    follower.opened()
    assert follower.deliver(message(8, excluded=session)) == []
    assert follower.position == (A, 8)


def test_reset_is_told_and_the_stream_goes_on_there() -> None:
    follower = following(5)
    assert shown(follower.reset(Reset(Position(B, 3)))) == [("reset", 3)]
    assert shown(follower.deliver(message(4, B))) == [4]


def test_reset_before_hello_is_none() -> None:
    follower = Follower(CHAT, "s2", has_history=True)
    assert follower.reset(Reset(Position(A, 3))) == []


def test_who_could_not_be_told_its_place_is_reset_by_the_first_message() -> None:
    follower = following(None)
    assert follower.position is None
    assert shown(follower.deliver(message(9))) == [("reset", 8), 9]


def test_what_is_in_no_stream_waits_for_hello_too() -> None:
    follower = Follower(CHAT, "s2", has_history=True)
    assert follower.deliver(message(0)) == []
    assert shown(follower.entered(Entered("me", Position(A, 5)))) == [("hello", 5)]
    assert shown(follower.opened()) == [0]


@pytest.mark.parametrize(("count", "size"), [(MAX_WAITING + 1, 0), (2, MAX_WAITING_SIZE // 2)])
def test_what_waits_is_bounded(count: int, size: int) -> None:
    follower, _ = entered(0)
    for offset in range(1, count + 1):
        assert not follower.is_overrun
        follower.deliver(message(offset, size=size))
    assert follower.is_overrun
    assert follower.opened() == []
    assert follower.phase is Phase.FOLLOWING
