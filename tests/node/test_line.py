"""Lines of history: where a position stands, how much two lines share, what memory keeps."""

from __future__ import annotations

import pytest

from wsmiddleware.backplane.engine import MAX_FORKS, Fork, Position, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind
from wsmiddleware.node.line import Line, Tail, offset_of, unbroken

A, B, C, D = "a" * 16, "b" * 16, "c" * 16, "d" * 16


@pytest.mark.parametrize(
    ("position", "offset"),
    [
        (Position(C, 9), 9),
        (Position(C, 10), None),
        (Position(B, 5), 5),
        (Position(B, 6), None),
        (Position(A, 5), 5),
        (Position(A, 6), None),  # A shared 7 with B, but B only 5 with C
        (Position(D, 0), None),
    ],
)
def test_where_a_position_stands(position: Position, offset: int | None) -> None:
    line = Line(C, (Fork(A, 7), Fork(B, 5)))
    assert line.offset_of(position, 9) == offset


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (Line(A), Line(B, (Fork(A, 5),)), 5),
        (Line(B, (Fork(A, 5),)), Line(C, (Fork(A, 6),)), 5),
        (Line(B, (Fork(A, 6),)), Line(C, (Fork(A, 5),)), 5),
        (Line(B, (Fork(A, 7),)), Line(D, (Fork(A, 7), Fork(B, 9), Fork(C, 4))), 4),
        (Line(C, (Fork(A, 7), Fork(B, 3))), Line(D, (Fork(A, 6),)), 3),
        (Line(A), Line(B), None),
    ],
)
def test_what_two_lines_share(one: Line, other: Line, shared: int | None) -> None:
    assert one.shared_with(other) == other.shared_with(one) == shared


def test_line_with_forgotten_forks_is_not_whole() -> None:
    forks = tuple(Fork(f"{number:016x}", 1) for number in range(MAX_FORKS))
    assert Line(A, forks[1:]).is_whole
    assert not Line(A, forks).is_whole


def message(offset: int, size: int = 1) -> Envelope:
    return Envelope(Subject("chat"), Kind.TEXT, bytes(size), position=Position(A, offset))


def test_tail_keeps_so_many_of_so_many_bytes() -> None:
    tail = Tail(3, 100)
    for offset in range(1, 6):
        tail.add(message(offset, 10))
    assert list(tail.messages) == [3, 4, 5]
    tail.add(message(6, 85))
    assert list(tail.messages) == [5, 6]
    tail.cut(5)
    assert list(tail.messages) == [5]
    tail.add(message(6, 85))
    assert list(tail.messages) == [5, 6]
    tail.clear()
    assert tail.messages == {}


def test_unbroken_run_ends_at_the_top() -> None:
    messages = {offset: message(offset) for offset in (1, 2, 4, 5)}
    assert [offset_of(one) for one in unbroken(messages, 5)] == [4, 5]
    assert unbroken(messages, 6) == []
    assert offset_of(message(1)._replace(position=None)) == 0
