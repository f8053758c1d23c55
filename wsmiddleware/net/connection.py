"""One WebSocket connection: no greenlet while it is idle, and never two callbacks at once.

The hub reads: a watcher's callback takes what the socket has, parses all complete frames of it, and
hands the messages to a worker greenlet, which runs the callbacks in order and writes their replies
in one `send`. A worker that blocks leaves the rest in the inbox; an inbox past its limit stops the
watcher, and TCP tells the peer.

Who may call what: `send`, `close` and `is_open` from any greenlet and any native thread; everything
else belongs to the thread of the reactor.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from _socket import SHUT_WR
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError
from wsmiddleware.log import TRACE
from wsmiddleware.net.keepalive import Keepalive, TokenBucket, Verdict
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping
from wsmiddleware.protocol.frames import CloseCode, Opcode, close_payload

if TYPE_CHECKING:
    import gevent.event

    from wsmiddleware.config import Settings
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.net.transport import Transport

__all__ = ["NOBODY", "Connection", "Receiver", "State"]

_log = logging.getLogger("websocket")

_READ = 1  # libev's EV_READ
_RECV_SIZE = 65536
_FRAMES_PER_TURN = 256
#: What may wait in the inbox behind a callback that blocks, before reading stops.
_INBOX_MESSAGES = 256
_INBOX_BYTES = 262144
#: Callbacks of one connection run for this long before others get a turn, in seconds.
_TURN = 0.005


class State(Enum):
    """Where a connection is between its opening handshake and its end (RFC 6455, section 7)."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Receiver(Protocol):
    """Who gets what a connection receives; all but `unlist` run in a worker and may block."""

    def opened(self, worker: Worker) -> None:
        """The first call."""

    def received(self, message: str | bytes, worker: Worker) -> bytes | None:
        """One message; what it returns goes to the peer as it is."""

    def unlist(self) -> None:
        """The connection is no longer open. From any greenlet; must not block."""

    def closed(self, worker: Worker) -> None:
        """The last call."""


class _Nobody:
    """Takes the receiver's place at the end, so that nothing keeps the two of them alive."""

    def opened(self, worker: Worker) -> None: ...
    def received(self, message: str | bytes, worker: Worker) -> bytes | None: ...
    def unlist(self) -> None: ...
    def closed(self, worker: Worker) -> None: ...


#: A receiver that does nothing.
NOBODY: Receiver = _Nobody()


class Connection:
    """A live connection over a transport, from the 101 to the last byte.

    More attributes than the house's twelve: each is asked for on the way of every message.
    """

    __slots__ = (
        "_bucket",
        "_deadline",
        "_ending",
        "_engine",
        "_inbox",
        "_is_discarding",
        "_is_flush_due",
        "_is_opened",
        "_is_paused",
        "_metrics",
        "_pong",
        "_receiver",
        "_settings",
        "_transport",
        "_watcher",
        "_worker",
        "bytes_received",
        "close_code",
        "close_reason",
        "closed",
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
        self.bytes_received = 0
        #: What the log calls this connection.
        self.name = name
        #: Set at the end, where somebody waits for it (a parked handler).
        self.closed: gevent.event.Event | None = None
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
        self._receiver: Receiver = NOBODY
        self._watcher: Any = None
        self._worker: Worker | None = None
        self._inbox: list[str | bytes] = []
        self._bucket: TokenBucket | None = None
        self._pong: bytes | None = None
        self._ending: Close | Fail | None = None
        self._deadline = math.inf
        self._is_opened = False
        self._is_paused = False
        self._is_flush_due = False
        self._is_discarding = False
        if settings.max_message_rate:
            self._bucket = TokenBucket(settings.max_message_rate, time.monotonic())

    # -- the way in ---------------------------------------------------------------------------

    def start(self, receiver: Receiver, leftover: bytes) -> None:
        """Read from now on; `leftover` is what came behind the handshake."""
        self._receiver = receiver
        self.reactor.watch(self)
        self._watcher = self.reactor.loop.io(self._transport.fileno(), _READ)
        self._watcher.start(self._on_readable)
        self.reactor.pool.submit(self._run)
        if leftover:
            # Callbacks run in order and before the next look at the socket.
            self.reactor.loop.run_callback(self._receive, leftover)

    def _on_readable(self) -> None:
        try:
            data = self._transport.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.lost(exc)
            return
        if not data:
            self.lost(None)
            return
        self.bytes_received += len(data)
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        """Parse `data` and run what it brought. In the hub: must not raise."""
        if self.state is State.CLOSED:
            return
        try:
            self._take(data)
            if self._worker is None and (self._inbox or self._ending):
                self.reactor.pool.run(self._run)
            if self._engine.more or self._inbox or self._bucket is not None:
                self._pause_if_needed()
        except Exception:
            _log.exception("%s: internal error while reading, please report it", self.name)
            self.abort()

    def _take(self, data: bytes) -> None:
        """Parse `data` into the inbox; answer what is not for the listener."""
        keepalive = self.keepalive
        keepalive.last_received = now = self.reactor.now
        bucket = self._bucket
        limit = _FRAMES_PER_TURN
        if bucket is not None:
            limit = max(1, min(limit, bucket.allowance(time.monotonic())))
        inbox = self._inbox
        before = len(inbox)
        for event in self._engine.receive(data, limit):
            kind = type(event)
            if kind is str or kind is bytes:
                inbox.append(event)  # type: ignore[arg-type]  # mypy does not narrow by `is`
            else:
                self._control(event)
        count = len(inbox) - before
        if count:
            keepalive.last_message = now
            if self.is_traced:
                self._trace_received(inbox[before:])
            if bucket is not None:
                bucket.spend(count)
            if self._is_discarding:
                inbox.clear()

    def _control(self, event: Event) -> None:
        if self.is_traced:
            _log.log(TRACE, "%s < %r", self.name, event)
        if isinstance(event, Ping):
            self._answer_ping(event.payload)
        elif isinstance(event, (Close, Fail)):
            self._watcher.stop()
            if self.state is State.OPEN:
                # Answered by the worker: what came before is handled first.
                self._ending = event
                self._deadline = self.reactor.now + self._settings.close_timeout
            else:
                self._end(event)

    def _answer_ping(self, payload: bytes) -> None:
        if self.state is not State.OPEN:
            return
        if self.outbox.is_stalled:
            # RFC 6455, section 5.5.3: the most recent ping is the one to answer. A peer that pings
            # and does not read costs one payload.
            self._pong = payload
        else:
            self.outbox.write(self._engine.control(Opcode.PONG, payload))

    def _pause_if_needed(self) -> None:
        """Stop reading while what was read cannot be handed on."""
        if self.state is State.CLOSED or self._ending is not None or self._is_paused:
            return
        inbox = self._inbox
        if self._bucket is not None and not self._bucket.allowance(time.monotonic()):
            self._metrics.throttled += 1
            self._pause()
            delay = self.reactor.loop.timer(self._bucket.delay())
            delay.start(self._resume_after, delay)
        elif self._engine.more:
            self._pause()
            if self._worker is None:
                self.reactor.next_turn(self._resume)
        elif len(inbox) >= _INBOX_MESSAGES or sum(map(len, inbox)) >= _INBOX_BYTES:
            self._pause()

    def _pause(self) -> None:
        self._is_paused = True
        self._watcher.stop()

    def _resume_after(self, timer: Any) -> None:
        timer.close()
        self._resume()

    def _resume(self) -> None:
        """Go on reading. Hub only."""
        if not self._is_paused or self.state is State.CLOSED or self._ending is not None:
            return
        bucket = self._bucket
        if bucket is not None and not bucket.allowance(time.monotonic()):
            return  # the timer will come
        self._is_paused = False
        self._watcher.start(self._on_readable)
        if self._engine.more:
            self._receive(b"")

    # -- callbacks ----------------------------------------------------------------------------

    def _run(self, worker: Worker) -> None:
        """Run what is due, in order. In a worker; callbacks may block here."""
        if self._worker is not None:
            return  # another worker is at it and will see what this one was called for
        self._worker = worker
        try:
            if not self._is_opened:
                self._is_opened = True
                self._receiver.opened(worker)
                self.outbox.flush()
            while self._inbox:
                self._run_batch(worker)
            if self._ending is not None and self.state is State.OPEN:
                self._end(self._ending)
            if self.state is State.CLOSED:
                receiver, self._receiver = self._receiver, NOBODY
                receiver.closed(worker)
        finally:
            self._worker = None
        if self._is_paused:
            self.reactor.next_turn(self._resume)

    def _run_batch(self, worker: Worker) -> None:
        batch, self._inbox = self._inbox, []
        if self._is_paused:
            self.reactor.next_turn(self._resume)
        receiver = self._receiver
        last = len(batch) - 1
        self._metrics.messages_received += last + 1
        started = time.perf_counter() if last > 7 else 0.0
        for index, message in enumerate(batch):
            if self._is_discarding:
                return
            wire = receiver.received(message, worker)
            if wire is not None:
                self._reply(wire, is_last=index == last)
            if index & 7 == 7 and time.perf_counter() - started > _TURN:
                self.reactor.pause()
                started = time.perf_counter()
        self.outbox.flush()

    def _reply(self, wire: bytes, *, is_last: bool) -> None:
        if self.state is not State.OPEN:
            return  # nobody is there any more to be answered
        outbox = self.outbox
        if outbox.size >= self._settings.send_queue_size:
            try:
                self._make_room(wait=True)
            except (ConnectionClosed, SlowConsumerError):
                return
        if is_last:
            self.keepalive.last_message = self.reactor.now
            self._metrics.messages_sent += 1
            if self.is_traced:
                self._trace_sent(wire)
            outbox.write(wire)
        else:
            self._put(wire)

    # -- the way out --------------------------------------------------------------------------

    def is_open(self) -> bool:
        """True until the closing handshake starts or the connection is lost."""
        return self.state is State.OPEN

    def send(self, wire: bytes, *, wait: bool = True) -> bool:
        """Queue one encoded message. May block (`wait`) while the outbox is past its mark.

        `False` when it was dropped (`slow_consumer="drop"`). Raises `ConnectionClosed`, or
        `SlowConsumerError` when the peer takes too long and has been closed for it. From a native
        thread it never waits, and what becomes of it is decided in the hub.
        """
        if self.state is not State.OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        if not self.reactor.is_here():
            self.reactor.defer(self.deliver, wire)
            return True
        if self.outbox.size >= self._settings.send_queue_size and not self._make_room(wait=wait):
            return False
        self._put(wire)
        return True

    def deliver(self, wire: bytes) -> None:
        """Queue one encoded message if the peer keeps up. Never blocks or raises."""
        if self.state is not State.OPEN:
            return
        if self.outbox.size >= self._settings.send_queue_size:
            try:
                if not self._make_room(wait=False):
                    return
            except SlowConsumerError:
                return
        self._put(wire)

    def encode(self, data: str | bytes | bytearray | memoryview, compress: bool) -> bytes:
        """The wire form of one message to this peer."""
        return self._engine.encode(data, compress)

    def _put(self, wire: bytes) -> None:
        self.keepalive.last_message = self.reactor.now
        self._metrics.messages_sent += 1
        if self.is_traced:
            self._trace_sent(wire)
        if self._worker is None:
            self.outbox.write(wire)
            return
        # A callback runs: what it sends shares a write, at the latest when it first blocks.
        self.outbox.hold(wire)
        if not self._is_flush_due:
            self._is_flush_due = True
            self.reactor.loop.run_callback(self._flush_due)

    def _flush_due(self) -> None:
        self._is_flush_due = False
        self.outbox.flush()

    def _make_room(self, *, wait: bool) -> bool:
        """See to it that the outbox is below its mark; `False` where the message is dropped."""
        outbox, mark = self.outbox, self._settings.send_queue_size
        outbox.flush()
        deadline = time.monotonic() + self._settings.send_timeout
        while outbox.size >= mark:
            if not wait or self.reactor.is_in_hub():
                if self._settings.slow_consumer == "drop":
                    self._metrics.dropped += 1
                    return False
                self._close_slow_consumer()
            if not outbox.wait_for_room(max(0.0, deadline - time.monotonic())):
                self._close_slow_consumer()
        if self.state is not State.OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def _close_slow_consumer(self) -> None:
        if self.state is State.OPEN:
            self._metrics.slow_consumers += 1
            _log.warning("%s: slow consumer, %d bytes wait: closing", self.name, self.outbox.size)
            self._start_closing(CloseCode.TRY_AGAIN_LATER, "slow consumer")
        raise SlowConsumerError(f"{self.name} does not take what is sent to it")

    def drained(self) -> None:
        """The outbox: nothing waits any more."""
        if self._pong is not None and self.state is State.OPEN:
            payload, self._pong = self._pong, None
            self.outbox.write(self._engine.control(Opcode.PONG, payload))
        elif self.state is State.CLOSING:
            self._finish_sending()

    # -- the end ------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake after what is queued. Never blocks; once is enough."""
        close_payload(code, reason)  # a mistake is the caller's, whatever the thread
        if self.reactor.is_here():
            self._start_closing(code, reason)
        else:
            self.reactor.defer(self._start_closing, code, reason)

    def _start_closing(self, code: int, reason: str) -> None:
        if self.state is not State.OPEN:
            return
        # What still comes is for nobody: who closes has stopped listening.
        self._is_discarding = True
        self._inbox.clear()
        self._send_close(code, reason)
        if self._is_paused:
            self.reactor.next_turn(self._resume)  # the peer's close frame must be read

    def _send_close(self, code: int, reason: str) -> None:
        """Our close frame, after what is queued; from now on the connection is not open."""
        payload = b"" if code == CloseCode.NO_STATUS_RCVD else close_payload(code, reason)
        self.sent_code = code
        self._deadline = self.reactor.now + self._settings.close_timeout
        self._set_state(State.CLOSING)
        wire = self._engine.control(Opcode.CLOSE, payload)
        if self.is_traced:
            self._trace_sent(wire)
        self.outbox.hold(wire)
        self.outbox.flush()
        if not self.outbox.size:
            self._finish_sending()

    def _end(self, ending: Close | Fail) -> None:
        """Do what the peer's close frame, or its violation of the protocol, asks for."""
        self._ending = ending
        if isinstance(ending, Close):
            self.close_code, self.close_reason = ending.code, ending.reason
            if self.state is State.OPEN:
                self._send_close(ending.code, "")
            elif not self.outbox.size:
                self._finish()
        elif self.state is State.OPEN:
            _log.warning("%s: failed with %d: %s", self.name, ending.code, ending.reason)
            self._send_close(ending.code, ending.reason)
        else:
            self._finish()

    def _finish_sending(self) -> None:
        """Our close frame is out; when the peer's has come too, or never will, end TCP."""
        if self._ending is None or self.state is not State.CLOSING:
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
            data = self._transport.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._finish()

    def lost(self, exc: OSError | None) -> None:
        """The stream ended (`None`) or broke."""
        if isinstance(self._ending, Close):
            self.close_code, self.close_reason = self._ending.code, self._ending.reason
        if self.is_traced and self.state is not State.CLOSED:
            _log.log(TRACE, "%s: end of stream (%s)", self.name, exc or "EOF")
        self._finish()

    def abort(self) -> None:
        """Drop the connection without a closing handshake."""
        self._finish()

    def _finish(self) -> None:
        if self.state is State.CLOSED:
            return
        self._set_state(State.CLOSED)
        self._deadline = math.inf
        self._watcher.stop()
        self._watcher.close()
        self.outbox.close()
        self.reactor.forget(self)
        with contextlib.suppress(OSError):
            self._transport.close()
        if self.closed is not None:
            self.closed.set()
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
        if now >= self._deadline:
            self._overdue()
        elif self.state is State.OPEN:
            if self._is_paused or self._ending is not None:
                self.keepalive.hold(now)
            verdict = self.keepalive.check(now)
            if verdict is Verdict.PING and not self.outbox.is_stalled:
                self.outbox.write(self._engine.control(Opcode.PING, b""))
            elif verdict is Verdict.IDLE:
                self._start_closing(CloseCode.GOING_AWAY, "idle")
            elif verdict is Verdict.DEAD:
                _log.info("%s: no answer to a ping: closing", self.name)
                self._is_discarding = True
                self._send_close(CloseCode.INTERNAL_ERROR, "ping timeout")
                self._finish()

    def _overdue(self) -> None:
        if self.state is State.OPEN and self._ending is not None:
            # A callback holds up the answer to the peer's close frame for too long.
            self._end(self._ending)
        else:
            self._finish()

    def _trace_received(self, messages: list[str | bytes]) -> None:
        for message in messages:
            kind = "text" if isinstance(message, str) else "binary"
            _log.log(TRACE, "%s < %s, %d", self.name, kind, len(message))

    def _trace_sent(self, wire: bytes) -> None:
        opcode = Opcode(wire[0] & 15).name.lower()
        _log.log(TRACE, "%s > %s, %d bytes with header", self.name, opcode, len(wire))
