"""What this process has published and the backplane has not confirmed yet: two bounded queues.

What has no history is sent at most once and waits for a link only for moments; what has one is
tried again, in order, until it is confirmed or its time is over. Pure: the clock is an argument.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from wsmiddleware.backplane.engine import Outcome, Publication, Status

__all__ = ["Limits", "Outgoing", "Ticket"]

#: Publications and bytes of one batch.
_BATCH_COUNT, _BATCH_SIZE = 500, 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait: so many publications, bytes, and each for so many seconds."""

    count: int
    size: int
    seconds: float


#: Without history.
PLAIN = Limits(1_000, 4 * 1024 * 1024, 5.0)
#: With history; its seconds are the setting ``publish_retry``.
KEPT = Limits(10_000, 16 * 1024 * 1024, 10.0)


class Ticket:
    """One publication, until its `outcome` is known; then `on_settled` is called, once."""

    __slots__ = ("created", "on_settled", "outcome", "publication")

    def __init__(self, publication: Publication, now: float) -> None:
        self.publication = publication
        self.created = now
        self.outcome: Outcome | None = None
        self.on_settled: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        """True when it was published."""
        return self.outcome is not None and self.outcome.status is Status.PUBLISHED

    def settle(self, outcome: Outcome) -> None:
        """It is known what became of it."""
        self.outcome = outcome
        on_settled, self.on_settled = self.on_settled, None
        if on_settled is not None:
            on_settled()


class _Queue:
    """One of the two."""

    def __init__(self, limits: Limits, dropped: Counter[str], *, is_kept: bool) -> None:
        self.tickets: deque[Ticket] = deque()
        self._limits = limits
        self._dropped = dropped
        self._is_kept = is_kept
        #: With what is under way.
        self._count = 0
        self._size = 0

    def add(self, ticket: Ticket) -> None:
        size = len(ticket.publication.data)
        if self._count >= self._limits.count or self._size + size > self._limits.size:
            self._drop(ticket, "full", Outcome(Status.FAILED, reason="too much waits"))
            return
        self._count += 1
        self._size += size
        self.tickets.append(ticket)

    def expire(self, now: float) -> None:
        """Drop what has waited too long: the oldest stand first."""
        while self.tickets and now - self.tickets[0].created >= self._limits.seconds:
            ticket = self.tickets.popleft()
            self._drop(ticket, "late", Outcome(Status.FAILED, reason="not confirmed in time"))
            self._left(ticket)

    def settle(self, ticket: Ticket, outcome: Outcome) -> bool:
        """Take an answer; false when it has to be tried again."""
        status = outcome.status
        if status is Status.AGAIN or (status is Status.UNKNOWN and self._is_kept):
            return False
        if status is Status.PUBLISHED:
            ticket.settle(outcome)
        else:
            self._drop(ticket, status.value, outcome)
        self._left(ticket)
        return True

    def close(self) -> None:
        while self.tickets:
            ticket = self.tickets.popleft()
            self._drop(ticket, "closed", Outcome(Status.FAILED, reason="closed"))
            self._left(ticket)

    def _drop(self, ticket: Ticket, reason: str, outcome: Outcome) -> None:
        self._dropped[reason] += 1
        ticket.settle(outcome)

    def _left(self, ticket: Ticket) -> None:
        self._count -= 1
        self._size -= len(ticket.publication.data)


class Outgoing:
    """Both queues. `dropped` counts what was not published, by reason."""

    def __init__(self, publish_retry: float = KEPT.seconds) -> None:
        self.dropped: Counter[str] = Counter()
        self._plain = _Queue(PLAIN, self.dropped, is_kept=False)
        kept = replace(KEPT, seconds=publish_retry)
        self._kept = _Queue(kept, self.dropped, is_kept=True)
        self._underway: list[Ticket] = []

    def add(self, ticket: Ticket) -> None:
        """One more; dropped, and settled so, where too much waits already."""
        self._of(ticket).add(ticket)

    def batch(self, now: float) -> list[Ticket]:
        """Take what is to be sent now, in order; `settle` gives the answers to it."""
        batch: list[Ticket] = []
        size = 0
        for queue in (self._kept, self._plain):
            queue.expire(now)
            count = 0
            while queue.tickets and count < _BATCH_COUNT // 2 and size < _BATCH_SIZE:
                ticket = queue.tickets.popleft()
                size += len(ticket.publication.data)
                count += 1
                batch.append(ticket)
            size //= 2
        self._underway = batch
        return batch

    def settle(self, outcomes: Sequence[Outcome]) -> bool:
        """The answers to the batch. False when some has to be tried again: that stands first."""
        batch, self._underway = self._underway, []
        answered = zip(batch, outcomes, strict=True)
        again = [one for one, outcome in answered if not self._of(one).settle(one, outcome)]
        for ticket in reversed(again):
            self._of(ticket).tickets.appendleft(ticket)
        return not again

    def expire(self, now: float) -> float | None:
        """Drop what has waited too long; seconds until the next look, `None` with nothing."""
        for queue in (self._kept, self._plain):
            queue.expire(now)
        return 1.0 if self._kept.tickets or self._plain.tickets else None

    def oldest_kept(self) -> float | None:
        """When the oldest publication with history came that is not confirmed."""
        kept = [ticket for ticket in self._underway[:1] if ticket.publication.history]
        first = kept or [*islice(self._kept.tickets, 1)]
        return first[0].created if first else None

    def close(self) -> None:
        """Drop everything."""
        for queue in (self._kept, self._plain):
            queue.close()

    def _of(self, ticket: Ticket) -> _Queue:
        return self._plain if ticket.publication.history is None else self._kept
