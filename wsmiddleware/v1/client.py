"""One subject as one v1 client follows it: which frames go out, in which order. Sans-I/O.

::

    ENTERING --entered--> OPENING --opened--> FOLLOWING

Until `entered` nothing of the stream goes out: the answer includes it. Until `opened` (`on_open`
has ended) what comes waits, bounded. Every method gives the frames that are to be sent now.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from wsmiddleware.backplane.engine import Position, Subject
from wsmiddleware.backplane.envelope import Envelope
from wsmiddleware.node.subject import Entered, Reset

from .frames import Message, Since, hello, joined, reset

__all__ = ["MAX_WAITING", "MAX_WAITING_SIZE", "Follower", "Phase"]

#: Frames and characters that wait for `on_open` to end.
MAX_WAITING, MAX_WAITING_SIZE = 1000, 1024 * 1024


class Phase(Enum):
    """How far the client is."""

    ENTERING = "entering"
    OPENING = "opening"
    FOLLOWING = "following"


class Follower:
    """A client's place in one subject.

    `session` is its id; what excluded it, or the session it had before (`since`), is not for it.
    `greeting` are the further fields of ``hello``. When `is_overrun` it has to be closed (1013): it
    comes back and recovers by its position.
    """

    def __init__(
        self,
        subject: Subject,
        session: str,
        *,
        has_history: bool,
        since: Since | None = None,
        greeting: Callable[[], dict[str, object]] = dict,
    ) -> None:
        self.subject = subject
        self.phase = Phase.ENTERING
        #: Up to where it has everything; `None` while nobody could say.
        self.position: Position | None = None
        self.since = since.position if since and has_history else None
        self.is_overrun = False
        self._session = session
        self._sessions = {session, since.session or session} if since else {session}
        self._has_history = has_history
        self._greeting = greeting
        #: The epoch that it has been told.
        self._epoch = ""
        self._waiting: list[str] = []
        self._waiting_size = 0

    def entered(self, event: Entered) -> list[str]:
        """Where it stands is known: ``hello`` or ``joined``, and what it missed."""
        if self.phase is not Phase.ENTERING:
            return []
        self.phase = Phase.OPENING
        self.position = event.position
        self._epoch = event.position.epoch if event.position else ""
        frames = [self._greet(event)]
        for envelope in event.messages:
            frames += self._following(Message(envelope), is_missed=True)
        return frames

    def opened(self) -> list[str]:
        """What waited for `on_open` to end."""
        self.phase = Phase.FOLLOWING
        waiting, self._waiting = self._waiting, []
        return waiting

    def deliver(self, message: Message) -> list[str]:
        """A message came down."""
        if self.phase is Phase.ENTERING and message.envelope.position is not None:
            return []
        return self._later(self._following(message))

    def reset(self, event: Reset) -> list[str]:
        """The stream is another one than was followed so far."""
        if self.phase is Phase.ENTERING:
            return []
        return self._later(self._reset(event.position))

    def _greet(self, event: Entered) -> str:
        recovered = event.is_recovered if self._has_history else None
        if self.subject.group:
            return joined(self.subject.group, event.position, is_recovered=recovered)
        more = self._greeting()
        return hello(self._session, event.position, is_recovered=recovered, **more)

    def _following(self, message: Message, *, is_missed: bool = False) -> list[str]:
        envelope: Envelope = message.envelope
        position = envelope.position
        frames = []
        epoch = ""
        if position is not None:
            if is_missed:
                position = Position(self._epoch, position.offset)
            if self.position is None:
                frames = self._reset(Position(position.epoch, position.offset - 1))
            elif self._has(position):
                return []
            self.position = position
        if envelope.excluded and not self._sessions.isdisjoint(envelope.excluded):
            return frames
        if position is not None and position.epoch != self._epoch:
            epoch = self._epoch = position.epoch
        return [*frames, message.frame(epoch)]

    def _has(self, position: Position) -> bool:
        mine = self.position
        return mine is not None and mine.epoch == position.epoch and position.offset <= mine.offset

    def _reset(self, position: Position) -> list[str]:
        self.position = position
        self._epoch = position.epoch
        return [reset(self.subject.group, position)]

    def _later(self, frames: list[str]) -> list[str]:
        """Now, or when `on_open` has ended."""
        if self.phase is Phase.FOLLOWING:
            return frames
        self._waiting += frames
        self._waiting_size += sum(map(len, frames))
        if len(self._waiting) > MAX_WAITING or self._waiting_size > MAX_WAITING_SIZE:
            self.is_overrun = True
            self._waiting.clear()
        return []
