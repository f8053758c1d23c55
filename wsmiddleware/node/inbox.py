"""What has arrived and not gone down yet: bounded, and quick enough for whoever reads the link."""

from __future__ import annotations

from collections import Counter, deque

from wsmiddleware.backplane.engine import Subject
from wsmiddleware.backplane.envelope import Envelope, ForeignEnvelope, decode, decode_head
from wsmiddleware.log import log as _log

__all__ = ["MAX_SIZE", "Inbox", "name_of"]

#: Bytes that wait.
MAX_SIZE = 4 * 1024 * 1024


def name_of(subject: Subject) -> str:
    """A subject, for the log."""
    channel, group = subject
    return f"channel {channel!r}, group {group!r}" if group else f"channel {channel!r}"


class Inbox:
    """Arrivals in their order. `node` is the id whose own messages without history are left out."""

    def __init__(self, node: bytes, counts: Counter[str]) -> None:
        self._node = node
        self._counts = counts
        self._arrivals: deque[tuple[Subject, bytes]] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._arrivals)

    def add(self, subject: Subject, data: bytes) -> bool:
        """One more, after a look at its head. False for one of a stream that has no room.

        What is in no stream is dropped then, as is what is not ours; both are counted.
        """
        try:
            head = decode_head(data)
        except ForeignEnvelope as exc:
            self._foreign(subject, exc)
            return True
        if not head.epoch and head.node == self._node:
            return True  # it went down here when it was published
        if self._size + len(data) > MAX_SIZE:
            if not head.epoch:
                self._overflow(subject)
            return not head.epoch
        self._arrivals.append((subject, data))
        self._size += len(data)
        return True

    def take(self) -> tuple[Subject, Envelope | None]:
        """The oldest; without a message where it turns out to be none of ours."""
        subject, data = self._arrivals.popleft()
        self._size -= len(data)
        try:
            message = decode(data)
        except ForeignEnvelope as exc:
            self._foreign(subject, exc)
            return subject, None
        if message.subject != subject:
            self._foreign(subject, "it names another subject")
            return subject, None
        return subject, message

    def _foreign(self, subject: Subject, what: object) -> None:
        self._counts["foreign"] += 1
        if self._counts["foreign"] == 1:
            _log.warning(
                "backplane: something that is none of our messages was published on %s, and is "
                "ignored: %s (told once, counted)",
                name_of(subject),
                what,
            )

    def _overflow(self, subject: Subject) -> None:
        self._counts["overflowed"] += 1
        if self._counts["overflowed"] == 1:
            _log.warning(
                "backplane: messages come faster than they are delivered; some of %s, which keeps "
                "no history, were dropped (told once, counted)",
                name_of(subject),
            )
