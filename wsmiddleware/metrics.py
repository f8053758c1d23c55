"""What this process has done, counted. Plain integers: an increment is all that a hot path pays."""

from __future__ import annotations

from collections import Counter

from wsmiddleware.speedups import Counts

__all__ = ["Metrics"]


class Metrics(Counts):
    """The counters of one middleware. Written in its hub's thread, read from anywhere."""

    __slots__ = (
        "callback_errors",
        "closed",
        "dropped",
        "held",
        "opened",
        "refused",
        "slow_consumers",
        "throttled",
    )

    def __init__(self) -> None:
        #: Connections opened, by channel.
        self.opened: Counter[str] = Counter()
        #: Connections closed, by channel and close code.
        self.closed: Counter[tuple[str, int]] = Counter()
        #: Connections now listed by a channel, until their sockets have ended.
        self.held = 0
        #: Opening handshakes refused, by HTTP status.
        self.refused: Counter[int] = Counter()
        #: Errors that callbacks raised, by channel and callback.
        self.callback_errors: Counter[tuple[str, str]] = Counter()
        self.messages_received = 0
        self.messages_sent = 0
        #: Clients closed because they did not read.
        self.slow_consumers = 0
        #: Messages dropped for a client that did not read (``slow_consumer="drop"``).
        self.dropped = 0
        #: Times that reading paused because of ``max_message_rate``.
        self.throttled = 0

    def progress(self) -> object:
        """What differs once a callback has ended and another has begun, but for a few."""
        opened, closed = sum(self.opened.values()), sum(self.closed.values())
        return self.messages_received, opened, closed
