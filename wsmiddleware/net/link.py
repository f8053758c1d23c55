"""A connection's end: the closing handshake, what may go wrong on the way to it, time-outs.

`wsmiddleware.net.sender` is its way out, `wsmiddleware.net.connection` adds the way in.
"""

from __future__ import annotations

import contextlib
import math
from _socket import SHUT_WR
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.keepalive import Verdict
from wsmiddleware.net.receiver import NOBODY, Receiver
from wsmiddleware.net.sender import Sender, State
from wsmiddleware.protocol.engine import Close, Fail
from wsmiddleware.protocol.frames import CloseCode, Opcode, close_payload

if TYPE_CHECKING:
    from wsmiddleware.net.pool import Worker

__all__ = ["RECV_SIZE", "Link"]

#: Bytes read at once. A message of 64 KiB with its header comes whole: a third less than with half.
RECV_SIZE = 526336
#: How many times ``close_timeout`` a peer may take for what is queued when we close, if it reads.
_PATIENCE = 12


class Link(Sender):
    """A transport and what is sent over it, up to its end."""

    __slots__ = (
        "_closed",
        "_deadline",
        "_ending",
        "_last_deadline",
        "_receiver",
        "_watcher",
        "sent_code",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: The code of our own close frame, 0 before it.
        self.sent_code = 0
        #: Set at the end, where somebody waits for it (a parked handler).
        self._closed: Event | None = None
        self._receiver: Receiver = NOBODY
        #: Watches for input; its callback says what the input is for.
        self._watcher: Any = None
        #: The last that came of the peer, once it has.
        self._ending: Close | Fail | None = None
        #: When the closing handshake has taken too long, in the reactor's time.
        self._deadline = math.inf
        #: Up to when the deadline moves on while the peer takes what is queued.
        self._last_deadline = math.inf

    @property
    def failure(self) -> Fail | None:
        """How the peer broke the protocol, if it did."""
        return self._ending if isinstance(self._ending, Fail) else None

    def closed(self) -> Event:
        """An event that is set when the transport has been closed."""
        if self._closed is None:
            self._closed = Event()
            if self.state is State.CLOSED:
                self._closed.set()
        return self._closed

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake after what is queued. Never blocks; once is enough."""
        close_payload(code, reason)  # a mistake is the caller's, whatever the thread
        if not self.reactor.is_here():
            self.reactor.defer(self._start_closing, code, reason)
        elif self.outbox.is_busy:
            self._interrupt(self._start_closing, code, reason)
        else:
            self._start_closing(code, reason)

    def _start_closing(self, code: int, reason: str, patience: int = _PATIENCE) -> None:
        if self.state is State.OPEN:
            # What still comes is for nobody: who closes has stopped listening.
            self._discard_input()
            self._send_close(code, reason, patience)

    def _send_close(self, code: int, reason: str, patience: int = _PATIENCE) -> None:
        """Our close frame, after what is queued; from now on the connection is not open."""
        payload = b"" if code == CloseCode.NO_STATUS_RCVD else close_payload(code, reason)
        self.sent_code = code
        now, timeout = self.reactor.now, self._settings.close_timeout
        self._set_deadline(now + timeout)
        self._last_deadline = now + timeout * patience
        self._set_state(State.CLOSING)
        self.outbox.hold(self._make_control(Opcode.CLOSE, payload))
        self.outbox.flush()
        self.outbox.wake_waiters()
        if not self.outbox.size:
            self._close_frame_sent()

    def drained(self) -> None:
        """The outbox: nothing waits any more."""
        if self.state is State.CLOSING:
            self._close_frame_sent()
        else:
            super().drained()

    def _close_frame_sent(self) -> None:
        """When the peer's has come too, or never will, end TCP; else wait for it."""
        if self.state is not State.CLOSING:
            return
        self._deadline = self.reactor.now + self._settings.close_timeout
        if self._ending is None:
            return
        # Unread input at close() makes the kernel send a reset, which can overtake the close frame
        # on its way to the peer's application: end our direction and read until the peer ends its.
        try:
            self._transport.shutdown(SHUT_WR)
        except OSError as exc:
            self.lost(exc)
            return
        self._watcher.start(self._on_lingering)

    def _on_lingering(self) -> None:
        try:
            data = self._transport.recv(RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._finish()

    def _peer_ended(self, ending: Close | Fail) -> None:
        """The last that comes of the peer: its close frame, or a violation of the protocol."""
        self._watcher.stop()
        self._ending = ending
        if isinstance(ending, Close):
            self.close_code, self.close_reason = ending
        if self.state is State.OPEN:
            # Answered by the worker, for what came before is handled first; or when it is overdue.
            self._set_deadline(self.reactor.now + self._settings.close_timeout)
        elif self.outbox.size:
            return  # our close frame still waits
        elif isinstance(ending, Close):
            self._finish()
        else:
            self._close_frame_sent()

    def _answer_ending(self, ending: Close | Fail) -> None:
        """Our close frame in answer to a close frame, or to a violation (RFC 6455, 7.1.7)."""
        if isinstance(ending, Fail):
            _log.info("%s: failed with %d: %s", self.name, ending.code, ending.reason)
        self._send_close(ending.code, ending.reason)

    def lost(self, exc: OSError | None) -> None:
        """The stream ended (`None`) or broke."""
        if self.is_traced and self.state is not State.CLOSED:
            _log.log(TRACE, "%s: end of stream (%s)", self.name, exc or "EOF")
        self._finish()

    def abort(self) -> None:
        """Drop the connection without a closing handshake, and what it has received."""
        self._discard_input()
        self._finish()

    def _finish(self) -> None:
        if self.state is State.CLOSED:
            return
        try:
            self._set_state(State.CLOSED)
        finally:
            self._deadline = math.inf
            try:
                # Before the descriptor: a watcher that is left on a closed one spins the loop.
                self._watcher.stop()
                self._watcher.close()
                self.outbox.close()
                self._read_nothing_more()
            finally:
                with contextlib.suppress(OSError):
                    self._transport.close()
                # Looked at until `_run` has called the last callback, should that be in vain.
                self.reactor.pool.submit(self._run)
        if self._dropped:
            self._report_dropped()
        if self._closed is not None:
            self._closed.set()

    def _set_state(self, state: State) -> None:
        was_open = self.state is State.OPEN
        if self.is_traced:
            _log.log(TRACE, "%s: %s", self.name, state.value)
        self.state = state
        if was_open:
            self._receiver.unlist()

    # -- time ---------------------------------------------------------------------------------

    def _set_deadline(self, at: float) -> None:
        self._deadline = at
        self.reactor.watch(self, at)

    def moved(self) -> None:
        """The outbox: the peer takes what waits for it, so it is alive, if slow."""
        self.keepalive.last_received = now = self.reactor.now
        if self._is_data_waiting():
            self.keepalive.last_message = now
        if self.state is State.CLOSING:
            deadline = now + self._settings.close_timeout
            self._deadline = min(deadline, self._last_deadline)

    def tick(self, now: float) -> float:
        """Act on what is due; when to look again. In the hub."""
        if self._dropped:
            self._report_dropped()
        if now >= self._deadline:
            self._look()
            if now >= self._deadline:
                self._overdue()
        elif self._is_kept_alive():
            self._keep_alive(now)
        return self.keepalive.due() if self._is_kept_alive() else self._deadline

    def set_idle_timeout(self, seconds: float) -> None:
        """Close when no message has come or gone for so long, 0 for never. From any thread."""
        self.keepalive.idle_timeout = seconds
        self.reactor.defer(self._look_again)

    def _look_again(self) -> None:
        if self.state is State.OPEN:
            self.reactor.watch(self, self.keepalive.due())

    def _is_kept_alive(self) -> bool:
        return self.state is State.OPEN and self._ending is None

    def _keep_alive(self, now: float) -> None:
        verdict = self.keepalive.check(now)
        if verdict in (Verdict.IDLE, Verdict.DEAD):
            self._look()
            if not self._is_kept_alive():
                return
            verdict = self.keepalive.check(now)
        if verdict is Verdict.PING:
            # Where something waits, that is as good as a ping: TCP has to acknowledge it.
            if not self.outbox.is_stalled:
                self._write_control(Opcode.PING, b"")
        elif verdict is Verdict.IDLE:
            self._start_closing(CloseCode.GOING_AWAY, "idle")
        elif verdict is Verdict.DEAD:
            _log.info("%s: no answer to a ping: closing", self.name)
            self._start_closing(CloseCode.INTERNAL_ERROR, "ping timeout")
            self._finish()

    def _overdue(self) -> None:
        if self.state is State.OPEN and self._ending is not None:
            # A callback holds up the answer to the peer's close frame for too long.
            self._answer_ending(self._ending)
        else:
            self._finish()

    def _look(self) -> None:
        """Look at the socket before anything is judged by the clock.

        Where the loop was held up, or the process stopped, what is waited for may have come long
        since.
        """
        self.outbox.push()
        read = self._watcher.callback
        if read is not None:  # else it is not read at the moment, or not any more
            read()

    # -- the way in ---------------------------------------------------------------------------

    @abstractmethod
    def _discard_input(self) -> None:
        """Drop what has come, and what will but the peer's close frame."""

    @abstractmethod
    def _read_nothing_more(self) -> None:
        """Let go of what could make us read again."""

    @abstractmethod
    def _run(self, worker: Worker) -> None:
        """Run the callbacks that are due."""
