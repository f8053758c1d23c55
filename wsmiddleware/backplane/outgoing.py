"""What waits to be published: a bounded queue, in order. A state machine; the time is an argument.

With history a publication is tried until its time is over, whatever was answered meanwhile; without
it is tried until it has been sent once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .engine import Outcome, Publication, Status

__all__ = ["Limits", "Outgoing", "Waiting"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait: publications, bytes, and each for how many seconds."""

    count: int
    size: int
    seconds: float


@dataclass(slots=True, eq=False)
class Waiting:
    """One publication on its way; `outcome` once it is known what became of it.

    `tell`, where somebody waits for that, is called by whoever has asked for the outcome.
    """

    publication: Publication
    until: float
    tell: Callable[[], None] | None = None
    outcome: Outcome | None = None


class Outgoing:
    """Two queues, of what has history and what has none; each subject is in one of them."""

    __slots__ = ("_kinds", "_limits", "_sizes")

    def __init__(self, kept: Limits, plain: Limits) -> None:
        self._limits = (plain, kept)
        self._kinds: tuple[deque[Waiting], deque[Waiting]] = (deque(), deque())
        self._sizes = [0, 0]

    def __len__(self) -> int:
        return sum(map(len, self._kinds))

    def add(
        self, publication: Publication, now: float, tell: Callable[[], None] | None = None
    ) -> Waiting:
        """Queue one; where there is no room it has an `outcome` at once."""
        kind = publication.history is not None
        limits, size = self._limits[kind], len(publication.data)
        waiting = Waiting(publication, now + limits.seconds, tell)
        queue = self._kinds[kind]
        if len(queue) >= limits.count or (queue and self._sizes[kind] + size > limits.size):
            waiting.outcome = Outcome(
                Status.FAILED, None, f"{len(queue):,} publications wait already"
            )
        else:
            queue.append(waiting)
            self._sizes[kind] += size
        return waiting

    def batch(self) -> list[Waiting]:
        """All that waits, in order."""
        return [*self._kinds[True], *self._kinds[False]]

    def tried(
        self, batch: Sequence[Waiting], outcomes: Iterable[Outcome], now: float
    ) -> list[Waiting]:
        """What came of a batch; gives those that are done with, whose `outcome` is set."""
        done = []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            has_history = waiting.publication.history is not None
            is_open = outcome.status is Status.AGAIN or (
                has_history and outcome.status is Status.UNKNOWN
            )
            if not is_open or now >= waiting.until:
                waiting.outcome = outcome
                done.append(waiting)
        for kind in (False, True):
            queue = self._kinds[kind]
            left = [waiting for waiting in queue if waiting.outcome is None]
            if len(left) < len(queue):
                queue.clear()
                queue.extend(left)
                self._sizes[kind] = sum(len(waiting.publication.data) for waiting in left)
        return done
