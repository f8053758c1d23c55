"""When a quiet connection is pinged, found dead, or closed as idle.

Pure rules: the caller brings the time. A busy connection only stores the time, no timer is touched.
"""

from __future__ import annotations

import math
from enum import Enum

__all__ = ["Keepalive", "Verdict"]


class Verdict(Enum):
    """What `Keepalive.check` asks for."""

    FINE = "fine"
    PING = "ping"
    DEAD = "no answer to a ping"
    IDLE = "idle"


class Keepalive:
    """One connection's limits, in seconds of its reactor; 0 turns one off."""

    __slots__ = ("_ping_interval", "_ping_sent", "_ping_timeout", "idle_timeout")

    def __init__(self, idle_timeout: float, ping_interval: float, ping_timeout: float) -> None:
        self.idle_timeout = idle_timeout
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._ping_sent = 0.0

    def check(self, now: float, last_received: float, last_message: float) -> Verdict:
        """What is due. Any byte received answers a ping (RFC 6455, 5.5.3, asks for a pong)."""
        if self.idle_timeout and now - last_message >= self.idle_timeout:
            return Verdict.IDLE
        if self._ping_sent > last_received:
            is_dead = self._ping_timeout and now - self._ping_sent >= self._ping_timeout
            return Verdict.DEAD if is_dead else Verdict.FINE
        if self._ping_interval and now - last_received >= self._ping_interval:
            self._ping_sent = now
            return Verdict.PING
        return Verdict.FINE

    def due(self, last_received: float, last_message: float) -> float:
        """When to call `check` next: by then something may be due, if nothing comes before."""
        at = last_message + self.idle_timeout if self.idle_timeout else math.inf
        if self._ping_sent > last_received:
            # The answer would be followed by another ping, an interval later.
            wait = min(self._ping_timeout or math.inf, self._ping_interval)
            return min(at, self._ping_sent + wait)
        if self._ping_interval:
            at = min(at, last_received + self._ping_interval)
        return at
