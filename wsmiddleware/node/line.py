"""Where two lines of history part, and what is left of one in memory. Pure values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from wsmiddleware.backplane.engine import MAX_FORKS, Fork, Position, Reading
from wsmiddleware.backplane.envelope import Envelope

__all__ = ["Line", "Tail", "offset_of", "unbroken"]


class Line(NamedTuple):
    """An epoch, and those that it came from, oldest first."""

    epoch: str
    forks: tuple[Fork, ...] = ()

    @classmethod
    def of(cls, reading: Reading) -> Line:
        """The line of a stream."""
        return cls(reading.epoch, reading.forks)

    def offset_of(self, position: Position, top: int) -> int | None:
        """The offset of a position on this line; `None` where it stands on none or on another."""
        shared = top
        if position.epoch == self.epoch:
            return position.offset if position.offset <= shared else None
        for fork in reversed(self.forks):
            shared = min(shared, fork.shared)
            if fork.epoch == position.epoch:
                return position.offset if position.offset <= shared else None
        return None

    def shared_with(self, other: Line) -> int | None:
        """Up to which offset both are the same; `None` where they have no epoch in common."""
        theirs = dict(other._reaches())
        for epoch, reach in self._reaches():
            if epoch in theirs:
                return int(min(reach, theirs[epoch]))
        return None

    @property
    def is_whole(self) -> bool:
        """True when it is known from its first entry on: no fork has been forgotten."""
        return len(self.forks) < MAX_FORKS

    def _reaches(self) -> Iterable[tuple[str, float]]:
        """Each epoch, newest first, and up to where the line is that epoch's."""
        reach = float("inf")
        yield self.epoch, reach
        for fork in reversed(self.forks):
            reach = min(reach, fork.shared)
            yield fork.epoch, reach


class Tail:
    """The last messages that went down, without a hole: at most so many, of so many bytes."""

    __slots__ = ("_count", "_max_size", "_messages", "_size")

    def __init__(self, count: int, size: int) -> None:
        self._count, self._max_size = count, size
        self._messages: deque[tuple[int, Envelope]] = deque()
        self._size = 0

    def add(self, message: Envelope) -> None:
        """The next one went down."""
        messages = self._messages
        messages.append((offset_of(message), message))
        self._size += len(message.payload)
        while len(messages) > self._count or self._size > self._max_size:
            self._size -= len(messages.popleft()[1].payload)

    def cut(self, offset: int) -> None:
        """What came behind an offset is no longer on the line."""
        while self._messages and self._messages[-1][0] > offset:
            self._size -= len(self._messages.pop()[1].payload)

    def clear(self) -> None:
        """There is a hole behind all of it."""
        self._messages.clear()
        self._size = 0

    @property
    def messages(self) -> dict[int, Envelope]:
        """By offset, rising."""
        return dict(self._messages)


def offset_of(message: Envelope) -> int:
    """Where it stands; 0 for what is in no stream."""
    return message.position.offset if message.position else 0


def unbroken(messages: dict[int, Envelope], top: int) -> list[Envelope]:
    """The messages up to `top` that have no hole between them."""
    run = []
    while top in messages:
        run.append(messages[top])
        top -= 1
    run.reverse()
    return run
