"""The subjects that this process follows: it subscribes, reads, and looks whether all is in step.

What it does with the engine is one task, `Following.tend`; what then has to go down stands in
`ready`.
"""

from __future__ import annotations

from collections.abc import Callable

from wsmiddleware.backplane.engine import (
    Engine,
    History,
    LinkDown,
    Position,
    ReadRequest,
    Subject,
)
from wsmiddleware.log import log as _log
from wsmiddleware.node.subject import Entered, StreamFeed
from wsmiddleware.node.subscriptions import Feed, Subscriptions

__all__ = ["ENTER_TIMEOUT", "Following"]

#: Seconds that a client waits for being told where it stands.
ENTER_TIMEOUT = 2.0
#: Subjects in one command, readings in one batch.
_SUBSCRIBE_COUNT, _READ_COUNT = 1000, 500
#: Seconds between two looks at quiet subjects.
_CHECKS = 5.0
#: Seconds before the next try where the other side cannot; it doubles up to the second one.
_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


class Following:
    """Feeds, who is in them, and who wants to enter.

    `on_wanted` is called when `tend` has something to do, `on_ready` when something is `ready`.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        on_wanted: Callable[[], None],
        on_ready: Callable[[], None],
    ) -> None:
        #: Subjects whose feeds have events.
        self.ready: dict[Subject, None] = {}
        self._engine = engine
        self._clock = clock
        self._on_wanted = on_wanted
        self._on_ready = on_ready
        self._subscriptions = Subscriptions()
        self._is_linked = False
        #: Subjects whose feeds want a reading.
        self._wanting: dict[Subject, None] = {}
        #: Who waits to enter, where, and until when; the oldest stand first.
        self._entering: dict[object, tuple[Subject, float]] = {}
        self._next_check = 0.0
        #: After what could not be done.
        self._pause = 0.0
        self._not_before = 0.0

    # -- who is there -------------------------------------------------------------------------

    def feed(self, subject: Subject) -> Feed | None:
        """The feed of a subject, where it is followed."""
        return self._subscriptions.feeds.get(subject)

    def join(self, subject: Subject, history: History | None = None) -> None:
        """One more of this process follows a subject."""
        if self._subscriptions.join(subject, history):
            self._on_wanted()

    def leave(self, subject: Subject) -> None:
        """One less."""
        if self._subscriptions.leave(subject, self._clock()):
            self._on_wanted()

    def enter(self, subject: Subject, token: object, since: Position | None = None) -> None:
        """Ask where who has joined stands, and for what came after `since`.

        `Entered` goes down, within `ENTER_TIMEOUT` seconds.
        """
        feed = self._subscriptions.feeds[subject]
        feed.enter(token, since)
        self._entering[token] = (subject, self._clock() + ENTER_TIMEOUT)
        self.look_at(feed)
        self._on_wanted()

    def withdraw(self, token: object) -> None:
        """It has gone."""
        subject, _ = self._entering.pop(token, (None, 0.0))
        feed = self._subscriptions.feeds.get(subject) if subject else None
        if feed is not None:
            feed.withdraw(token)

    def entered(self, token: object) -> None:
        """It has been answered."""
        self._entering.pop(token, None)

    # -- the link -----------------------------------------------------------------------------

    def opened(self) -> None:
        """The reading link works: nothing is subscribed to."""
        self._is_linked = True
        self._not_before = 0.0
        self._subscriptions.lost()
        self._on_wanted()

    def lost(self) -> None:
        """The reading link is gone."""
        self._is_linked = False
        self._subscriptions.lost()

    def subscribed(self, subject: Subject) -> None:
        """A subscription is confirmed."""
        feed = self.feed(subject)
        if feed is not None:
            feed.subscribed()
            self.look_at(feed)

    # -- the task -----------------------------------------------------------------------------

    def tend(self) -> float | None:
        """Subscribe, read, look. It blocks as the engine's verbs do."""
        now = self._clock()
        delays = [self._give_up(now), self._subscriptions.expire(now)]
        if self._is_linked and now < self._not_before:
            delays.append(self._not_before - now)
        elif self._is_linked:
            delays.append(self._tend_links(now))
        return min((delay for delay in delays if delay is not None), default=None)

    def _tend_links(self, now: float) -> float | None:
        try:
            self._subscribe()
            self._read(now)
        except LinkDown as exc:
            self._pause = min(_LONGEST_PAUSE, self._pause * 2 or _PAUSE)
            self._not_before = self._clock() + self._pause
            _log.debug("backplane: %s; next try in %.1f s", exc, self._pause)
            return self._pause
        self._pause = 0.0
        if self._subscriptions.are_due or self._wanting:
            return 0.0
        feeds = self._subscriptions.feeds
        return (
            max(0.0, self._next_check - now)
            if any(feed.history for feed in feeds.values())
            else None
        )

    def _subscribe(self) -> None:
        if not self._subscriptions.are_due:
            return
        add, drop = self._subscriptions.take_changes(_SUBSCRIBE_COUNT)
        try:
            self._engine.subscribe(add, drop)
        except LinkDown:
            self._subscriptions.put_back(add, drop)
            raise

    def _read(self, now: float) -> None:
        """One batch of the readings that feeds want."""
        feeds = self._subscriptions.feeds
        if now >= self._next_check:
            self._next_check = now + _CHECKS
            self._wanting.update(dict.fromkeys(feeds))
        asked: list[tuple[StreamFeed, ReadRequest]] = []
        while self._wanting and len(asked) < _READ_COUNT:
            subject = next(iter(self._wanting))
            del self._wanting[subject]
            feed = feeds.get(subject)
            if isinstance(feed, StreamFeed) and feed.is_wanted(now):
                asked.append((feed, feed.request(now)))
        if not asked:
            return
        try:
            readings = self._engine.read([request for _, request in asked])
        except LinkDown:
            for feed, request in asked:
                feed.unread(request)
                self._wanting[feed.subject] = None
            raise
        for (feed, request), reading in zip(asked, readings, strict=True):
            feed.reading(request, reading)
            self.look_at(feed)

    def _give_up(self, now: float) -> float | None:
        """Let those in who have waited long enough; seconds until the next one's time."""
        for token, (subject, deadline) in tuple(self._entering.items()):
            if deadline > now:
                return deadline - now
            self.withdraw(token)
            feed = self._subscriptions.feeds.get(subject)
            if feed is not None:
                feed.events.append(Entered(token))
                self.look_at(feed)
        return None

    def look_at(self, feed: Feed) -> None:
        """Something happened to a feed: there may be work."""
        if feed.events:
            self.ready[feed.subject] = None
            self._on_ready()
        if isinstance(feed, StreamFeed) and feed.is_wanted(self._clock()):
            self._wanting[feed.subject] = None
            self._on_wanted()
