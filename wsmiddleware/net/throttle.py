"""`max_message_rate`: a token bucket of messages, and a timer for when it is empty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Throttle"]


class Throttle:
    """At most `rate` messages a second, with a burst of as many (of at least one)."""

    __slots__ = ("_last", "_loop", "_rate", "_size", "_timer", "_tokens")

    def __init__(self, loop: Any, rate: float) -> None:
        self._loop = loop
        self._rate = rate
        self._size = self._tokens = max(rate, 1.0)
        self._last = time.monotonic()
        self._timer: Any = None

    def allowance(self) -> int:
        """How many messages may come now."""
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._last) * self._rate)
        self._last = now
        return int(self._tokens)

    def spend(self, count: int) -> None:
        """Take `count` messages out of the bucket; it may go below zero."""
        self._tokens -= count

    def start(self, callback: Callable[[], object]) -> None:
        """Call `callback` in the hub when the next message may come, or a little before."""
        self.stop()
        self._timer = self._loop.timer(max(0.0, (1.0 - self._tokens) / self._rate))
        self._timer.start(callback)

    def stop(self) -> None:
        """Do not call back any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
