"""What native threads have handed over and the loop has not taken yet: bounded in bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent import monkey

__all__ = ["OVERHEAD", "Underway", "nap"]

#: Bytes that a message counts beside its own: else empty ones would have no bound.
OVERHEAD = 256
#: Seconds that a thread waits for a loop that is about to take what waits: a thread can hand over
#: 1 MiB of small messages before the loop's thread gets the GIL once.
_MOMENT = 0.05

# Native ones: the calling thread has no hub. Reentrant: the garbage collector may run a finalizer
# that sends.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_make_lock: Callable[[], Any] = monkey.get_original("_thread", "RLock")


def nap() -> None:
    """Let the loop's thread go on, 2 ms. For native threads."""
    _sleep(0.002)


class Underway:
    """Counts bytes. Below `limit` one more message, of any size, is let in. For any thread."""

    __slots__ = ("_is_full", "_limit", "_lock", "_missed", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = _make_lock()
        #: `_MOMENT` has passed in vain, and the loop has taken nothing since.
        self._is_full = False
        self._missed = 0
        #: Bytes that are under way.
        self.size = 0

    def add(self, size: int) -> bool:
        """Count `size` bytes; `False` when the limit is reached. A size of 0 is always let in."""
        with self._lock:
            if size and self.size >= self._limit:
                return False
            self.size += size
            return True

    def add_soon(self, size: int) -> bool:
        """As `add`, but at the limit block the native thread for a moment, once."""
        deadline = time.monotonic() + _MOMENT
        while not self.add(size):
            if self._is_full or time.monotonic() > deadline:
                self._is_full = True
                return False
            nap()
        return True

    def taken(self, size: int) -> None:
        """The loop has taken `size` bytes."""
        with self._lock:
            self.size -= size
        self._is_full = False

    def miss(self) -> bool:
        """Count a message that found no room; `True` for the first one since `missed`."""
        with self._lock:
            self._missed += 1
            return self._missed == 1

    def missed(self) -> int:
        """How many messages found no room since the last call."""
        with self._lock:
            count, self._missed = self._missed, 0
            return count
