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
    """One connection's times, in seconds of its reactor; 0 turns a limit off."""

    __slots__ = (
        "_ping_interval",
        "_ping_sent",
        "_ping_timeout",
        "idle_timeout",
        "last_message",
        "last_received",
    )

    def __init__(
        self, now: float, idle_timeout: float, ping_interval: float, ping_timeout: float
    ) -> None:
        self.idle_timeout = idle_timeout
        self.last_message = now
        self.last_received = now
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._ping_sent = 0.0

    def check(self, now: float) -> Verdict:
        """What is due. Any byte received answers a ping (RFC 6455, 5.5.3, asks for a pong)."""
        if self.idle_timeout and now - self.last_message >= self.idle_timeout:
            return Verdict.IDLE
        if self._ping_sent > self.last_received:
            is_dead = self._ping_timeout and now - self._ping_sent >= self._ping_timeout
            return Verdict.DEAD if is_dead else Verdict.FINE
        if self._ping_interval and now - self.last_received >= self._ping_interval:
            self._ping_sent = now
            return Verdict.PING
        return Verdict.FINE

    def due(self) -> float:
        """When `check` finds something if nothing comes until then; or sooner."""
        at = self.last_message + self.idle_timeout if self.idle_timeout else math.inf
        if self._ping_sent > self.last_received:
            # The answer would be followed by another ping, an interval later.
            wait = min(self._ping_timeout or math.inf, self._ping_interval)
            return min(at, self._ping_sent + wait)
        if self._ping_interval:
            at = min(at, self.last_received + self._ping_interval)
        return at

    def hold(self, now: float) -> None:
        """While we do not read, the peer cannot answer or be heard: its clocks stand still."""
        self.last_received = self.last_message = now
