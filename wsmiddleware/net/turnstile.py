"""Lets a few greenlets go on in each turn of the loop, so that a crowd does not hold it up.

A hundred handshakes that arrive together are a hundred greenlets that are ready together, and
gevent runs all of them before it looks at a socket again: 0.1 s in which no message is answered.
And a greenlet whose peer sends, or reads, as fast as it does never has to wait for the peer: it
would run on, and nobody else would be served.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import gevent
from gevent.hub import Waiter

__all__ = ["Turnstile"]


class Turnstile:
    """Lets greenlets through, first come, first served: `count` in each turn of the hub's loop.

    Fewer, but at least one, where those that went through take more than `seconds` of the turn.
    Belongs to one hub's thread. It may be made before a fork: it finds the hub at its first use.
    """

    __slots__ = ("_count", "_end", "_hub", "_left", "_seconds", "_timer", "_waiting")

    def __init__(self, seconds: float, count: int = sys.maxsize) -> None:
        self._seconds = seconds
        self._count = self._left = count
        self._end = 0.0
        self._waiting: deque[Any] = deque()
        self._hub: Any = None
        self._timer: Any = None

    def go_through(self) -> None:
        """Return at once, or block the calling greenlet until its turn has come."""
        if self._timer is None:
            self._hub = gevent.get_hub()
            # In the next turn: a turn looks at the sockets before it looks at the timers.
            self._timer = self._hub.loop.timer(0)
            self._timer.start(self._turn)
            self._end = time.monotonic() + self._seconds
        if self._left and not self._waiting and time.monotonic() < self._end:
            self._left -= 1
            return
        waiter = Waiter(self._hub)
        self._waiting.append(waiter)
        try:
            waiter.get()
        except BaseException:
            # It was stopped while it waited, or after it had been let through.
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _turn(self) -> None:
        self._timer.close()
        self._timer = None
        self._left = self._count
        if self._waiting:
            self._timer = self._hub.loop.timer(0)
            self._timer.start(self._turn)
        self._end = time.monotonic() + self._seconds
        while self._waiting and self._left and time.monotonic() < self._end:
            self._left -= 1
            self._waiting.popleft().switch(None)
