"""Which subjects this process follows: one feed for each that somebody is in, a little longer.

Pure: it says what to subscribe to and what no longer, the node does it.
"""

from __future__ import annotations

from collections.abc import Iterable

from wsmiddleware.backplane.engine import History, Subject
from wsmiddleware.node.subject import PlainFeed, StreamFeed

__all__ = ["LINGER", "Feed", "Subscriptions"]

#: Seconds that a subject is followed after its last member left.
LINGER = 10.0

Feed = PlainFeed | StreamFeed


class Subscriptions:
    """The feeds, and how many members each has."""

    def __init__(self) -> None:
        self.feeds: dict[Subject, Feed] = {}
        self._members: dict[Subject, int] = {}
        #: Without members, and since when; the longest stand first.
        self._idle: dict[Subject, float] = {}
        #: To be subscribed to.
        self._wanted: dict[Subject, None] = {}
        #: Not followed any more, and subscribed to.
        self._unwanted: dict[Subject, None] = {}

    def join(self, subject: Subject, history: History | None) -> bool:
        """One more member; true when the subject is a new one, which has to be subscribed to."""
        self._members[subject] = self._members.get(subject, 0) + 1
        self._idle.pop(subject, None)
        if subject in self.feeds:
            return False
        self.feeds[subject] = StreamFeed(subject, history) if history else PlainFeed(subject)
        self._unwanted.pop(subject, None)
        self._wanted[subject] = None
        return True

    def leave(self, subject: Subject, now: float) -> bool:
        """One member less; true when it was the last one."""
        count = self._members[subject] - 1
        if count:
            self._members[subject] = count
            return False
        del self._members[subject]
        self._idle[subject] = now
        return True

    def expire(self, now: float) -> float | None:
        """Let go of what nobody has been in for a while; seconds until the next one's time."""
        while self._idle:
            subject, since = next(iter(self._idle.items()))
            left = since + LINGER - now
            if left > 0:
                return left
            del self._idle[subject]
            del self.feeds[subject]
            if self._wanted.pop(subject, 0) == 0:
                self._unwanted[subject] = None
        return None

    def take_changes(self, most: int) -> tuple[list[Subject], list[Subject]]:
        """What to subscribe to now, at most so many, and what no longer; `put_back` undoes it."""
        add = list(self._wanted)[:most]
        for subject in add:
            del self._wanted[subject]
        drop = list(self._unwanted)
        self._unwanted.clear()
        return add, drop

    def put_back(self, add: Iterable[Subject], drop: Iterable[Subject]) -> None:
        """It could not be done."""
        self._wanted.update(dict.fromkeys(one for one in add if one in self.feeds))
        self._unwanted.update(dict.fromkeys(one for one in drop if one not in self.feeds))

    def lost(self) -> None:
        """The reading link is gone, and every subscription with it."""
        self._unwanted.clear()
        self._wanted = dict.fromkeys(self.feeds)
        for feed in self.feeds.values():
            feed.lost()

    @property
    def are_due(self) -> bool:
        """True when something is to be subscribed to, or no longer."""
        return bool(self._wanted or self._unwanted)
