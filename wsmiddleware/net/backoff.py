"""How long to wait before the next attempt. No I/O; random."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Exponential back-off with jitter, in seconds: half to all of 1, 2, 4 … times `first`.

    The jitter keeps a thousand clients of one server from coming back in the same instant.
    """

    __slots__ = ("_cap", "_dice", "_first", "_last", "_limit", "attempts")

    def __init__(
        self,
        first: float,
        cap: float,
        limit: int | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._cap = cap
        self._limit = limit
        self._dice = dice
        self._last = 0.0
        #: Attempts since the last success.
        self.attempts = 0

    def next(self) -> float | None:
        """The delay before the next attempt; None when `limit` attempts in a row have failed."""
        if self._limit is not None and self.attempts >= self._limit:
            return None
        self.attempts += 1
        self._last = min(self._cap, self._last * 2 or self._first)
        return self._last * (0.5 + self._dice() / 2)

    def succeeded(self, seconds: float) -> None:
        """An attempt succeeded, and what it brought has lasted for `seconds`."""
        self.attempts = 0
        # Only after a while: a server may accept connections and close them at once.
        if seconds >= 2 * self._last:
            self._last = 0.0
