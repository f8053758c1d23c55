"""The node: what a process publishes goes up here, what it has to deliver comes down.

It owns the engine, the queue of what goes out and a feed for each subject. It has neither greenlet
nor clock of its own: three pieces of work (`Task`) are called again and again by whoever runs them,
one caller each, and say when they want to be called next. `on_work` is called when one of them has
something to do before that.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from enum import Enum

from wsmiddleware.backplane.engine import (
    Engine,
    History,
    Link,
    Outcome,
    Position,
    Publication,
    Status,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, Kind, encode
from wsmiddleware.log import log as _log
from wsmiddleware.node.following import Following
from wsmiddleware.node.inbox import Inbox, name_of
from wsmiddleware.node.outgoing import KEPT, Outgoing, Ticket
from wsmiddleware.node.subject import Entered, Event, Reset, StreamFeed

__all__ = ["WAIT", "Node", "Task"]

#: Seconds that `publish` waits for a position at most.
WAIT = 1.0
#: Arrivals that go down before others get their turn.
_SLICE = 100
#: Seconds before the next try where the other side cannot; it doubles up to the second one.
_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


class Task(Enum):
    """A piece of the node's work."""

    #: `Node.send`: publishes what waits. Blocks as the engine does.
    SEND = "send"
    #: `Node.tend`: subscribes, reads, looks. Blocks as the engine does.
    TEND = "tend"
    #: `Node.deliver`: hands down what arrived. Blocks as whoever takes it does.
    DELIVER = "deliver"


class Node:
    """One process's user of an engine; everything but the tasks returns at once.

    `down(subject, event)` takes what has to be delivered here: an `Envelope`, a `Reset`, an
    `Entered`. For a subject with history it is called by `deliver` only, in order; what has none
    goes down in `publish`, too. One thread.
    """

    def __init__(
        self,
        engine: Engine,
        down: Callable[[Subject, Event], None],
        *,
        clock: Callable[[], float],
        on_work: Callable[[Task], None] = lambda _: None,
        publish_retry: float = KEPT.seconds,
    ) -> None:
        self.id = secrets.token_bytes(8)
        self.engine = engine
        #: What was lost or could not be used, by reason.
        self.counts: Counter[str] = Counter()
        self._down = down
        self._clock = clock
        self._on_work = on_work
        self._outgoing = Outgoing(publish_retry)
        self._following = Following(
            engine, clock, lambda: on_work(Task.TEND), lambda: on_work(Task.DELIVER)
        )
        self._inbox = Inbox(self.id, self.counts)
        self._number = 0
        self._links: set[Link] = set()
        #: After what was answered with "not now".
        self._pause = 0.0
        self._not_before = 0.0

    def open(self) -> None:
        """Begin, after the fork."""
        self.engine.open(self.id, self)

    def close(self) -> None:
        """End: what was not confirmed is dropped, nobody is told anything any more."""
        self.engine.close()
        self._links.clear()
        self._outgoing.close()

    @property
    def dropped(self) -> Counter[str]:
        """Publications that were not published, by reason."""
        return self._outgoing.dropped

    @property
    def is_connected(self) -> bool:
        """True while both links are there."""
        return len(self._links) == len(Link)

    # -- up -----------------------------------------------------------------------------------

    def publish(
        self,
        subject: Subject,
        kind: Kind,
        payload: bytes,
        *,
        history: History | None = None,
        user: str | None = None,
        excluded: frozenset[str] = frozenset(),
    ) -> Ticket:
        """Publish to everyone, on every node. What is for one `user` is never kept.

        Without history it goes down here at once, and out when the link allows; its ticket is
        settled when it has been sent. With history it goes down when it comes back.

        Raises `ValueError` for a name or a number of sessions that is too long.
        """
        now = self._clock()
        kept = history if user is None else None
        self._number += 1
        number = self._number
        own = number if kept is None else 0  # in a stream it has an offset instead
        message = Envelope(subject, kind, payload, self.id, user, excluded, None, own)
        data = encode(message)
        ticket = Ticket(Publication(subject, data, kept, self.id.hex(), number), now)
        if kept is None:
            self._down(subject, message)
            if not self.engine.has_others:
                ticket.settle(Outcome(Status.PUBLISHED))
                return ticket
        self._outgoing.add(ticket)
        self._on_work(Task.SEND)
        return ticket

    @property
    def is_worth_waiting(self) -> bool:
        """False while no answer is to be expected within a second: nobody waits for one then."""
        oldest = self._outgoing.oldest_kept()
        is_slow = oldest is not None and self._clock() - oldest > WAIT
        return Link.WRITING in self._links and not is_slow

    def send(self) -> float | None:
        """Publish a batch of what waits. The task `SEND`; blocks as `Engine.publish` does."""
        now = self._clock()
        if Link.WRITING not in self._links or now < self._not_before:
            return self._outgoing.expire(now)
        batch = self._outgoing.batch(now)
        if not batch:
            return None
        # Should it fail, nothing of the batch is forgotten.
        outcomes = [Outcome(Status.UNKNOWN, reason="the engine failed")] * len(batch)
        try:
            outcomes = self.engine.publish([ticket.publication for ticket in batch])
        finally:
            is_done = self._outgoing.settle(outcomes)
        if is_done:
            self._pause = 0.0
            return 0.0
        self._pause = min(_LONGEST_PAUSE, self._pause * 2 or _PAUSE)
        self._not_before = self._clock() + self._pause
        return self._pause

    # -- who is there -------------------------------------------------------------------------

    def join(self, subject: Subject, history: History | None = None) -> None:
        """One more of this process follows a subject."""
        self._following.join(subject, history)

    def leave(self, subject: Subject) -> None:
        """One less."""
        self._following.leave(subject)

    def enter(self, subject: Subject, token: object, since: Position | None = None) -> None:
        """Ask where who has joined stands, and for what came after `since`.

        `Entered` goes down, within `ENTER_TIMEOUT` seconds.
        """
        self._following.enter(subject, token, since)

    def withdraw(self, token: object) -> None:
        """Who asked has gone."""
        self._following.withdraw(token)

    def tend(self) -> float | None:
        """Subscribe, read, look. The task `TEND`; blocks as the engine's verbs do."""
        return self._following.tend()

    # -- down ---------------------------------------------------------------------------------

    def deliver(self) -> float | None:
        """Hand down some of what arrived, in order. The task `DELIVER`."""
        following = self._following
        for _ in range(_SLICE):
            if following.ready:
                self._hand_down(next(iter(following.ready)))
            elif self._inbox:
                subject, message = self._inbox.take()
                feed = following.feed(subject)
                if feed is not None and message is not None:
                    feed.arrived(message, self._clock())
                    following.look_at(feed)
            else:
                return None
        return 0.0

    def _hand_down(self, subject: Subject) -> None:
        """All events of a feed. Those that come meanwhile too: `down` may let others run."""
        self._following.ready.pop(subject)
        feed = self._following.feed(subject)
        while feed is not None and feed.events:
            event = feed.events.popleft()
            if isinstance(event, Entered):
                self._following.entered(event.token)
            elif isinstance(event, Reset):
                self._tell(subject, event)
            self._down(subject, event)

    def _tell(self, subject: Subject, event: Reset) -> None:
        self.counts["resets"] += 1
        if event.gap:
            self.counts["missed"] += event.gap.last - event.gap.first + 1
        what = f"{event.gap.first} to {event.gap.last} are kept no more" if event.gap else "a fork"
        _log.warning(
            "backplane: %s went on at %d: %s", name_of(subject), event.position.offset, what
        )

    # -- the engine's receiver ----------------------------------------------------------------

    def opened(self, link: Link) -> None:
        """See `Receiver`."""
        self._links.add(link)
        if link is Link.READING:
            self._following.opened()
        else:
            self._not_before = 0.0
            self._on_work(Task.SEND)

    def lost(self, link: Link, reason: str) -> None:
        """See `Receiver`."""
        self._links.discard(link)
        self.counts["links lost"] += 1
        if link is Link.READING:
            self._following.lost()

    def subscribed(self, subject: Subject) -> None:
        """See `Receiver`."""
        self._following.subscribed(subject)

    def arrived(self, subject: Subject, data: bytes) -> None:
        """See `Receiver`. Looks at the head only: it may have to keep up with all the others."""
        feed = self._following.feed(subject)
        if feed is None:
            return
        if self._inbox.add(subject, data):
            self._on_work(Task.DELIVER)
        elif isinstance(feed, StreamFeed):
            feed.missed()
            self._following.look_at(feed)

    def asked(self, question: bytes) -> bytes | None:
        """See `Receiver`. No question is known yet."""
        return None
