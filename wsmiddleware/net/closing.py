"""The end of a connection: the closing handshake from either side, its time-outs, the end of TCP.

A connection has no `Closing` until it begins to end.
"""

from __future__ import annotations

import math
from _socket import SHUT_WR
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.protocol.engine import Close, Fail
from wsmiddleware.protocol.frames import CloseCode, Opcode, close_payload

if TYPE_CHECKING:
    from wsmiddleware.net.outbox import Outbox
    from wsmiddleware.net.receiver import Receiver
    from wsmiddleware.settings import Settings

__all__ = ["PATIENCE", "Closing", "State"]

#: When we close, a peer that reads may take this many ``close_timeout`` for what is queued.
PATIENCE = 12
#: Bytes read at once, and dropped, of what comes after the end.
_LINGER_SIZE = 65536


class State(Enum):
    """How far the end has come (RFC 6455, section 7). Before it there is no state."""

    #: The peer's close frame, or a violation, has come and is not answered: still open.
    ENDING = "ending"
    #: Our close frame is queued or sent.
    CLOSING = "closing"
    CLOSED = "closed"


class Line(Protocol):
    """What `Closing` needs of its connection."""

    name: str
    settings: Settings
    reactor: Any
    outbox: Outbox
    receiver: Receiver
    is_traced: bool
    is_open: bool
    is_ending: bool
    close_code: int
    close_reason: str

    def control(self, opcode: Opcode, payload: bytes) -> bytes:
        """The bytes of a control frame that is about to be sent."""

    def enqueue_pending(self) -> None:
        """Move replies that share a write to the outbox."""

    def stop_reading(self) -> None:
        """Read nothing more."""

    def shut_down(self, how: int, on_input: Callable[[], object]) -> None:
        """Shut one direction of TCP down; call `on_input` when input comes afterwards."""

    def discard(self, size: int) -> bool:
        """Read `size` bytes at most and forget them; `False` at the end of the stream."""

    def end(self) -> None:
        """Drop TCP."""


class Closing:
    """The end of one connection. Belongs to the thread of its reactor; nothing here blocks."""

    __slots__ = ("_connection", "_last_deadline", "deadline", "ending", "sent_code", "state")

    def __init__(self, connection: Line) -> None:
        #: Dropped at the end: a cycle would keep both objects until the collector runs.
        self._connection = connection
        self.state = State.ENDING
        #: The peer's close frame or its violation of the protocol; `None` until one comes.
        self.ending: Close | Fail | None = None
        #: The code of our own close frame, 0 before it.
        self.sent_code = 0
        #: When the present state has lasted too long, in the reactor's time.
        self.deadline = math.inf
        #: The deadline moves on while the peer reads what is queued, but never past this.
        self._last_deadline = math.inf

    # -- the peer's part ----------------------------------------------------------------------

    def peer_ended(self, ending: Close | Fail) -> None:
        """Take the peer's close frame, or its violation of the protocol."""
        if self.state is State.CLOSED:
            return  # a finalizer has dropped it while the input was parsed
        connection = self._connection
        connection.stop_reading()
        connection.is_ending = True
        self.ending = ending
        if isinstance(ending, Close):
            connection.close_code, connection.close_reason = ending
        if self.state is State.ENDING:
            # The worker answers, after the messages that came first; `end_if_due` if it is late.
            self._set_deadline(connection.reactor.now + connection.settings.close_timeout)
        elif connection.outbox.size:
            return  # our close frame still waits
        elif isinstance(ending, Close):
            connection.end()
        else:
            self.frame_sent()

    def answer(self) -> None:
        """Send our close frame in answer to theirs, or to a violation (RFC 6455, 7.1.7)."""
        ending = self.ending
        assert ending is not None
        if isinstance(ending, Fail):
            _log.info("%s: failed with %d: %s", self._connection.name, ending.code, ending.reason)
        self.send(ending.code, ending.reason)

    # -- our part -----------------------------------------------------------------------------

    def send(self, code: int, reason: str, patience: int = PATIENCE) -> None:
        """Send our close frame, after what is queued; from now on the connection is not open.

        The peer may take `patience` time-outs at most for what is queued.
        """
        connection = self._connection
        payload = b"" if code == CloseCode.NO_STATUS_RCVD else close_payload(code, reason)
        self.sent_code = code
        now, timeout = connection.reactor.now, connection.settings.close_timeout
        self._set_deadline(now + timeout)
        self._last_deadline = now + timeout * patience
        self.set_state(State.CLOSING)
        outbox = connection.outbox
        outbox.enqueue(connection.control(Opcode.CLOSE, payload))
        outbox.flush()
        outbox.wake_waiters()
        if not outbox.size:
            self.frame_sent()

    def frame_sent(self) -> None:
        """Our close frame has gone: wait for theirs, or end TCP if none is to come."""
        if self.state is not State.CLOSING:
            return
        connection = self._connection
        self.deadline = connection.reactor.now + connection.settings.close_timeout
        if self.ending is not None:
            # Not close(): with unread input the kernel sends a reset, which can overtake our close
            # frame. So shut our direction down and read until the peer shuts its own.
            connection.shut_down(SHUT_WR, self._on_lingering)

    def _on_lingering(self) -> None:
        if not self._connection.discard(_LINGER_SIZE):
            self._connection.end()

    # -- both ---------------------------------------------------------------------------------

    def set_state(self, state: State) -> None:
        """Go on to `state`; the connection is not open from `CLOSING` on."""
        connection = self._connection
        self.state = state
        if connection.is_traced:
            _log.log(TRACE, "%s: %s", connection.name, state.value)
        if connection.is_open and state is not State.ENDING:
            connection.enqueue_pending()
            connection.is_open = False
            connection.receiver.unlist()
        if state is State.CLOSED:
            self.deadline = math.inf
            del self._connection

    def forked(self) -> None:
        """In a forked child: it is over here, and nobody is told."""
        self.state = State.CLOSED
        self.deadline = math.inf
        del self._connection

    def moved(self) -> None:
        """The peer reads what waits for it: move the deadline."""
        if self.state is State.CLOSING:
            connection = self._connection
            deadline = connection.reactor.now + connection.settings.close_timeout
            self.deadline = min(deadline, self._last_deadline)

    def end_if_due(self, now: float) -> None:
        """Act when the deadline has passed: answer the peer, or drop TCP."""
        if now >= self.deadline:
            if self.state is State.ENDING:
                # A callback runs for so long that the peer's close frame was not answered.
                self.answer()
            else:
                self._connection.end()

    def _set_deadline(self, at: float) -> None:
        self.deadline = at
        self._connection.reactor.watch(self._connection, at)
