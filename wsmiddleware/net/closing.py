"""The end of a connection: the closing handshake, either way, its time-outs, the end of TCP.

Nothing of it is there while a connection is open and nobody has begun to close it.
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

#: How many times ``close_timeout`` a peer may take for what is queued when we close, if it reads.
PATIENCE = 12
#: Bytes read at once of what comes behind the end.
_LINGER_SIZE = 65536


class State(Enum):
    """How far the end has come (RFC 6455, section 7)."""

    #: The peer's last has come and is not answered yet: still open.
    ENDING = "ending"
    #: Our close frame is queued or sent.
    CLOSING = "closing"
    CLOSED = "closed"


class Line(Protocol):
    """What the end asks of its connection."""

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
        """A control frame that is about to be sent."""

    def enqueue_pending(self) -> None:
        """Queue the replies that were to share a write."""

    def stop_reading(self) -> None:
        """Leave what comes where it is."""

    def shut_down(self, how: int, on_input: Callable[[], object]) -> None:
        """Shut one direction of TCP down; call `on_input` for what still comes."""

    def discard(self, size: int) -> bool:
        """Read `size` bytes at most and forget them; `False` at the end of the stream."""

    def end(self) -> None:
        """Drop TCP."""


class Closing:
    """The end of one connection. Belongs to the thread of its reactor; nothing here blocks."""

    __slots__ = ("_connection", "_last_deadline", "deadline", "ending", "sent_code", "state")

    def __init__(self, connection: Line) -> None:
        #: Let go of with the end, so that nothing keeps the two of them alive.
        self._connection = connection
        self.state = State.ENDING
        #: The last that came of the peer, once it has come: its close frame, or a violation.
        self.ending: Close | Fail | None = None
        #: The code of our own close frame, 0 before it.
        self.sent_code = 0
        #: When this has taken too long, in the reactor's time.
        self.deadline = math.inf
        #: Up to when the deadline moves on while the peer takes what is queued.
        self._last_deadline = math.inf

    # -- the peer's part ----------------------------------------------------------------------

    def peer_ended(self, ending: Close | Fail) -> None:
        """The last that comes of the peer: its close frame, or a violation of the protocol."""
        if self.state is State.CLOSED:
            return  # dropped by a finalizer, while the peer's bytes were parsed
        connection = self._connection
        connection.stop_reading()
        connection.is_ending = True
        self.ending = ending
        if isinstance(ending, Close):
            connection.close_code, connection.close_reason = ending
        if self.state is State.ENDING:
            # Answered by the worker, for what came before is handled first; or when it is overdue.
            self._set_deadline(connection.reactor.now + connection.settings.close_timeout)
        elif connection.outbox.size:
            return  # our close frame still waits
        elif isinstance(ending, Close):
            connection.end()
        else:
            self.frame_sent()

    def answer(self) -> None:
        """Our close frame in answer to a close frame, or to a violation (RFC 6455, 7.1.7)."""
        ending = self.ending
        assert ending is not None
        if isinstance(ending, Fail):
            _log.info("%s: failed with %d: %s", self._connection.name, ending.code, ending.reason)
        self.send(ending.code, ending.reason)

    # -- our part -----------------------------------------------------------------------------

    def send(self, code: int, reason: str, patience: int = PATIENCE) -> None:
        """Our close frame, after what is queued; from now on the connection is not open.

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
        """When the peer's has come too, or never will, end TCP; else wait for it."""
        if self.state is not State.CLOSING:
            return
        connection = self._connection
        self.deadline = connection.reactor.now + connection.settings.close_timeout
        if self.ending is not None:
            # Unread input at close() makes the kernel send a reset, which can overtake the close
            # frame on its way to the peer's application: end our direction and read until the
            # peer ends its own.
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
        """The peer takes what waits for it, so it is alive, if slow."""
        if self.state is State.CLOSING:
            connection = self._connection
            deadline = connection.reactor.now + connection.settings.close_timeout
            self.deadline = min(deadline, self._last_deadline)

    def end_if_due(self, now: float) -> None:
        """End what has taken too long."""
        if now >= self.deadline:
            if self.state is State.ENDING:
                # A callback holds up the answer to the peer's close frame for too long.
                self.answer()
            else:
                self._connection.end()

    def _set_deadline(self, at: float) -> None:
        self.deadline = at
        self._connection.reactor.watch(self._connection, at)
