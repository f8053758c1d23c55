"""A few at each turn of the loop: what keeps a crowd of requests from holding everybody else up.

A hundred handshakes that arrive together are a hundred greenlets that are ready together, and
gevent runs all of them before it looks at a socket again: 0.1 s in which no message is answered.
And a greenlet whose peer sends, or reads, as fast as itself never has to wait for it: it would go
on for as long as that lasts, and nobody else would be served.
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
    """Lets greenlets through, first come, first served: `count` at each turn of the hub's loop.

    And none, but for one, when those who went through have taken `seconds` of that turn. Belongs to
    one hub's thread; made before any fork, it finds the hub at its first use.
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
            # At the next turn, and a turn looks at the sockets before it looks at its timers.
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
            # Stopped while it waited, or when it had just been let through.
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
