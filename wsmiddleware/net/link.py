"""A connection's way out and its end: sending under marks, the closing handshake, time-outs.

`wsmiddleware.net.connection` adds the way in. Who may call what stands there too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from _socket import SHUT_WR
from enum import Enum
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError
from wsmiddleware.log import TRACE
from wsmiddleware.net.keepalive import Keepalive, Verdict
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.receiver import NOBODY, Receiver
from wsmiddleware.protocol.engine import Close, Engine, Fail
from wsmiddleware.protocol.frames import CloseCode, Opcode, Wire, close_payload
from wsmiddleware.speedups import pack

if TYPE_CHECKING:
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.net.transport import Transport
    from wsmiddleware.settings import Settings

__all__ = ["RECV_SIZE", "Link", "State"]

_log = logging.getLogger("websocket")

#: Bytes read at once. A message of 64 KiB with its header comes whole: a third less than with half.
RECV_SIZE = 262144
#: How many times ``close_timeout`` a peer may take for what is queued when we close, if it reads.
_CLOSING_PATIENCE = 12


class State(Enum):
    """Where a connection is between its opening handshake and its end (RFC 6455, section 7)."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


#: Asked for with every message: a member of an `Enum` costs 0.1 µs each time in Python 3.11.
_OPEN = State.OPEN


class Link:
    """A transport, what waits to be sent over it, and how it ends.

    `_discard_input`, `_read_nothing_more` and `_run` are the way in's to fill. More attributes than
    the house's twelve: each is asked for on the way of every message.
    """

    __slots__ = (
        "_closed",
        "_deadline",
        "_dropped",
        "_ending",
        "_engine",
        "_is_flush_due",
        "_is_paused",
        "_last_deadline",
        "_metrics",
        "_pong",
        "_receiver",
        "_settings",
        "_transport",
        "_watcher",
        "_worker",
        "close_code",
        "close_reason",
        "encode",
        "is_traced",
        "keepalive",
        "name",
        "outbox",
        "reactor",
        "sent_code",
        "state",
        "window_bits",
    )

    def __init__(
        self,
        reactor: Reactor,
        transport: Transport,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        *,
        name: str,
        idle_timeout: float,
        window_bits: int = 0,
    ) -> None:
        self.state = State.OPEN
        #: The code and reason of the peer's close frame; 1006 until one comes.
        self.close_code = int(CloseCode.ABNORMAL_CLOSURE)
        self.close_reason = ""
        #: The code of our own close frame, 0 before it.
        self.sent_code = 0
        #: What the log calls this connection.
        self.name = name
        #: Set at the end, where somebody waits for it (a parked handler).
        self._closed: Event | None = None
        #: LZ77 window of the agreed compression; 0 where none was agreed.
        self.window_bits = window_bits
        self.keepalive = Keepalive(
            reactor.now, idle_timeout, settings.ping_interval, settings.ping_timeout
        )
        self.outbox = Outbox(reactor.loop, transport, self, settings.send_queue_size // 4)
        self.is_traced = _log.isEnabledFor(TRACE)
        self.reactor = reactor
        self._transport = transport
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        #: The wire form of one message to this peer.
        self.encode = pack if pack is not None and engine.is_plain else engine.wire
        self._receiver: Receiver = NOBODY
        #: Watches for input; its callback says what the input is for.
        self._watcher: Any = None
        #: Who runs a callback of this connection now.
        self._worker: Worker | None = None
        #: The last that came of the peer, once it has.
        self._ending: Close | Fail | None = None
        #: When the closing handshake has taken too long, in the reactor's time.
        self._deadline = math.inf
        #: Up to when the deadline moves on while the peer takes what is queued.
        self._last_deadline = math.inf
        #: A ping to answer once the peer takes something.
        self._pong: bytes | None = None
        #: Messages dropped and not reported yet.
        self._dropped = 0
        #: Input is left where it is for the moment.
        self._is_paused = False
        self._is_flush_due = False

    # -- sending ------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """True until the closing handshake starts or the connection is lost."""
        return self.state is State.OPEN

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

    def send(self, wire: Wire, *, wait: bool = True) -> bool:
        """Queue one encoded message. May block (`wait`) while the outbox is past its mark.

        `False` when it was dropped (`slow_consumer="drop"`). Raises `ConnectionClosed`, or
        `SlowConsumerError` when the peer takes too long and has been closed for it. From a native
        thread it never waits, and what becomes of it is decided in the hub.
        """
        if self.state is not _OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        if not self.reactor.is_here():
            self.reactor.defer(self.deliver, wire)
            return True
        if self.outbox.size >= self._settings.send_queue_size and not self._make_room(wait=wait):
            return False
        self._put(wire)
        return True

    def deliver(self, wire: Wire) -> None:
        """Queue one encoded message if the peer keeps up. Never blocks or raises."""
        if self.state is not _OPEN:
            return
        if self.outbox.size >= self._settings.send_queue_size:
            try:
                if not self._make_room(wait=False):
                    return
            except (ConnectionClosed, SlowConsumerError):
                return
        self._put(wire)

    def _put(self, wire: Wire) -> None:
        self.keepalive.last_message = self.reactor.now
        self._metrics.messages_sent += 1
        if self.is_traced:
            self._trace_sent(wire)
        if self._worker is None:
            self.outbox.write(wire)
        else:
            self.hold(wire)

    def hold(self, wire: Wire) -> None:
        """Queue what shares a write with its like; the hub flushes it as soon as it gets a turn."""
        self.outbox.hold(wire)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have the hub send what is held when it gets a turn."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self.reactor.loop.run_callback(self._flush_due)

    def _flush_due(self) -> None:
        self._is_flush_due = False
        self.outbox.flush()

    def _answer_ping(self, payload: bytes) -> None:
        if self.state is not State.OPEN:
            return
        if self.outbox.is_stalled:
            # RFC 6455, section 5.5.3: the most recent ping is the one to answer. A peer that pings
            # and does not read costs one payload.
            self._pong = payload
        else:
            self.hold(self._engine.control(Opcode.PONG, payload))

    def _make_room(self, *, wait: bool) -> bool:
        """See to it that the outbox is below its mark; `False` where the message is dropped."""
        outbox, mark = self.outbox, self._settings.send_queue_size
        outbox.flush()
        deadline = time.monotonic() + self._settings.send_timeout
        while self.state is State.OPEN and outbox.size >= mark:
            if not wait or self.reactor.is_in_hub():
                if self._settings.slow_consumer == "drop":
                    self._metrics.dropped += 1
                    self._dropped += 1
                    return False
                raise self._close_slow_consumer()
            if not outbox.wait_for_room(max(0.0, deadline - time.monotonic())):
                raise self._close_slow_consumer()
        if self.state is not State.OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def _close_slow_consumer(self) -> SlowConsumerError:
        if self.state is State.OPEN:
            self._metrics.slow_consumers += 1
            _log.warning("%s: slow consumer, %d bytes wait: closing", self.name, self.outbox.size)
            self._start_closing(CloseCode.TRY_AGAIN_LATER, "slow consumer")
        return SlowConsumerError(f"{self.name} does not take what is sent to it")

    def _report_dropped(self) -> None:
        """Log what was dropped since the last time: one line a tick, however much it was."""
        count, self._dropped = self._dropped, 0
        _log.warning("%s: slow consumer, %d messages dropped for it", self.name, count)

    def drained(self) -> None:
        """The outbox: nothing waits any more."""
        if self._pong is not None and self.state is State.OPEN:
            payload, self._pong = self._pong, None
            self.outbox.write(self._engine.control(Opcode.PONG, payload))
        elif self.state is State.CLOSING:
            self._close_frame_sent()

    # -- the end ------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake after what is queued. Never blocks; once is enough."""
        close_payload(code, reason)  # a mistake is the caller's, whatever the thread
        if self.reactor.is_here():
            self._start_closing(code, reason)
        else:
            self.reactor.defer(self._start_closing, code, reason)

    def _start_closing(self, code: int, reason: str) -> None:
        if self.state is State.OPEN:
            # What still comes is for nobody: who closes has stopped listening.
            self._discard_input()
            self._send_close(code, reason)

    def _send_close(self, code: int, reason: str) -> None:
        """Our close frame, after what is queued; from now on the connection is not open."""
        payload = b"" if code == CloseCode.NO_STATUS_RCVD else close_payload(code, reason)
        self.sent_code = code
        now, timeout = self.reactor.now, self._settings.close_timeout
        self._deadline = now + timeout
        # A slow consumer has had its time; nobody's queue lives on by a byte a second.
        is_slow = code == CloseCode.TRY_AGAIN_LATER
        self._last_deadline = now + timeout * (1 if is_slow else _CLOSING_PATIENCE)
        self._set_state(State.CLOSING)
        wire = self._engine.control(Opcode.CLOSE, payload)
        if self.is_traced:
            self._trace_sent(wire)
        self.outbox.hold(wire)
        self.outbox.flush()
        self.outbox.wake_waiters()
        if not self.outbox.size:
            self._close_frame_sent()

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
            self._deadline = self.reactor.now + self._settings.close_timeout
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
        self._set_state(State.CLOSED)
        self._deadline = math.inf
        # Before the descriptor: a watcher that is left on a closed one spins the loop.
        self._watcher.stop()
        self._watcher.close()
        self.outbox.close()
        self._read_nothing_more()
        self.reactor.forget(self)
        with contextlib.suppress(OSError):
            self._transport.close()
        if self._dropped:
            self._report_dropped()
        if self._closed is not None:
            self._closed.set()
        self.reactor.pool.submit(self._run)

    def _set_state(self, state: State) -> None:
        was_open = self.state is State.OPEN
        if self.is_traced:
            _log.log(TRACE, "%s: %s", self.name, state.value)
        self.state = state
        if was_open:
            self._receiver.unlist()

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Act on what is due. In the hub, about once a second."""
        if self._dropped:
            self._report_dropped()
        if self.outbox.has_moved:
            self.outbox.has_moved = False
            # The peer takes what waits for it: it is alive, if slow.
            self.keepalive.last_received = now
            if self.state is State.CLOSING:
                deadline = now + self._settings.close_timeout
                self._deadline = min(deadline, self._last_deadline)
        if now >= self._deadline:
            self._overdue()
        elif self.state is State.OPEN and self._ending is None:
            self._keep_alive(now)

    def _keep_alive(self, now: float) -> None:
        if self._is_paused:
            self.keepalive.hold(now)
        verdict = self.keepalive.check(now)
        if verdict is Verdict.PING:
            # Where something waits, that is as good as a ping: TCP has to acknowledge it.
            if not self.outbox.is_stalled:
                self.outbox.write(self._engine.control(Opcode.PING, b""))
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

    def _trace_sent(self, wire: Wire) -> None:
        parts = wire if isinstance(wire, tuple) else (wire,)
        opcode = Opcode(parts[0][0] & 15).name.lower()
        _log.log(TRACE, "%s > %s, %d bytes with header", self.name, opcode, sum(map(len, parts)))

    # -- the way in ---------------------------------------------------------------------------

    def _discard_input(self) -> None:
        """Drop what has come, and what will but the peer's close frame."""
        raise NotImplementedError

    def _read_nothing_more(self) -> None:
        """Let go of what could make us read again."""
        raise NotImplementedError

    def _run(self, worker: Worker) -> None:
        """Run the callbacks that are due."""
        raise NotImplementedError
