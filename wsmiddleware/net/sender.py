"""A connection's way out: straight to the socket, else queued under marks that end a slow peer.

`wsmiddleware.net.link` adds the end and its time-outs, `wsmiddleware.net.connection` the way in,
where stands too who may call what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from gevent import getcurrent, monkey

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError
from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.keepalive import Keepalive
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.underway import OVERHEAD, Underway
from wsmiddleware.protocol.engine import Engine
from wsmiddleware.protocol.frames import CloseCode, Opcode, Wire
from wsmiddleware.speedups import pack

if TYPE_CHECKING:
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.net.transport import Transport
    from wsmiddleware.settings import Settings

__all__ = ["Sender", "State"]


class State(Enum):
    """Where a connection is between its opening handshake and its end (RFC 6455, section 7)."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


#: Asked for with every message: a member of an `Enum` costs 0.1 µs each time in Python 3.11.
_OPEN = State.OPEN
#: Held while an `Underway` is made: two threads may be the first ones. Reentrant as its own is.
_making: Any = monkey.get_original("_thread", "RLock")()
#: Seconds between two lines of the log on what one peer's queue had no room for.
_REPORT_INTERVAL = 1.0


class Sender(ABC):
    """What a connection sends, in order, and what becomes of it where the peer does not read.

    More attributes than the house's twelve: each is asked for on the way of every message.
    """

    __slots__ = (
        "_controls_end",
        "_dropped",
        "_engine",
        "_is_flush_due",
        "_lost_replies",
        "_metrics",
        "_pong",
        "_settings",
        "_transport",
        "_underway",
        "_worker",
        "close_code",
        "close_reason",
        "encode",
        "is_traced",
        "keepalive",
        "name",
        "outbox",
        "reactor",
        "slot",
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
        #: What the log calls this connection.
        self.name = name
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
        #: Who runs a callback of this connection now.
        self._worker: Worker | None = None
        #: A ping to answer once the peer takes something.
        self._pong: bytes | None = None
        #: When time-outs are looked at next: the reactor's.
        self.slot = 0
        #: Messages dropped and not reported yet.
        self._dropped = 0
        #: What native threads have sent and the hub has not taken; made for the first.
        self._underway: Underway | None = None
        #: What callbacks returned for a peer that had gone.
        self._lost_replies = 0
        #: Up to which of its bytes the outbox holds nothing but pings and pongs.
        self._controls_end = 0
        self._is_flush_due = False

    def is_open(self) -> bool:
        """True until the closing handshake starts or the connection is lost."""
        return self.state is State.OPEN

    def send(self, wire: Wire, *, wait: bool = True) -> bool:
        """Queue one encoded message. May block (`wait`) while the outbox is past its mark.

        `False` when it was dropped (`slow_consumer="drop"`). Raises `ConnectionClosed`, or
        `SlowConsumerError` when the peer takes too long and has been closed for it. From a native
        thread it does not wait: `True` while the threads have less than the mark on their way to
        the hub, where the rest is decided; past that it is as with ``wait=False``.
        """
        if self.state is not _OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        if not self.reactor.is_here():
            return self._hand_over(wire)
        if self.outbox.is_busy:
            self._interrupt(self.deliver, wire)
            return True
        if self.outbox.size >= self._settings.send_queue_size and not self._make_room(wait=wait):
            return False
        if not self._put(wire):
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def _hand_over(self, wire: Wire) -> bool:
        """What `send` does in a native thread."""
        with _making:
            if self._underway is None:
                self._underway = Underway(self._settings.send_queue_size)
        size = OVERHEAD + (sum(map(len, wire)) if isinstance(wire, tuple) else len(wire))
        if self._underway.add_soon(size):
            self.reactor.defer(self._take_over, wire, size, self._underway)
            return True
        if self._underway.miss():
            self.reactor.defer(self._take_missed, self._underway)
        if self._settings.slow_consumer == "drop":
            return False
        raise SlowConsumerError(f"{self.name}: the loop does not take what this thread sends")

    def _take_over(self, wire: Wire, size: int, underway: Underway) -> None:
        underway.taken(size)
        self.deliver(wire)

    def _take_missed(self, underway: Underway) -> None:
        self.overrun(underway.missed())

    def overrun(self, count: int) -> None:
        """Native threads had so many messages more for it than the mark allows. Hub's thread."""
        if self.state is not _OPEN:
            return
        if self._settings.slow_consumer == "drop":
            self._drop(count)
        else:
            self._close_slow_consumer("a native thread sends faster than the loop takes it")

    def deliver(self, wire: Wire) -> None:
        """Queue one encoded message if the peer keeps up. Never blocks or raises."""
        if self.state is not _OPEN:
            return
        if self.outbox.is_busy:
            self._interrupt(self.deliver, wire)
            return
        if self.outbox.size >= self._settings.send_queue_size:
            try:
                if not self._make_room(wait=False):
                    return
            except (ConnectionClosed, SlowConsumerError):
                return
        self._put(wire)

    def _interrupt(self, function: Callable[..., object], *args: object) -> None:
        """Call it soon: we are a signal handler's or finalizer's, in the middle of a write."""
        self.reactor.order(self._call_behind_write, function, args)

    def _call_behind_write(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        while self.outbox.is_busy:  # who has interrupted it has blocked
            self.reactor.pause()
        function(*args)

    def _put(self, wire: Wire) -> bool:
        """Queue it; `False` if a signal handler has closed the connection just now."""
        outbox = self.outbox
        was_busy, outbox.is_busy = outbox.is_busy, True
        try:
            if self.state is not _OPEN:
                return False
            self.keepalive.last_message = self.reactor.now
            self._metrics.messages_sent += 1
            if self.is_traced:
                self._trace_sent(wire)
            if self._worker is None:
                outbox.write(wire)
            else:
                self.hold(wire)
                if self._worker.greenlet is not getcurrent():
                    # Its like comes from the callback that runs, not from whoever sends this.
                    outbox.flush()
        finally:
            outbox.is_busy = was_busy
        return True

    def hold(self, wire: Wire) -> None:
        """Queue what shares a write with its like; the hub flushes it as soon as it gets a turn."""
        self.outbox.hold(wire)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have the hub send what is held when it gets a turn."""
        if not self._is_flush_due:
            self.reactor.loop.run_callback(self._flush_due)
            self._is_flush_due = True

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
            wire = self._make_control(Opcode.PONG, payload)
            self.hold(wire)
            self._note_control(wire)

    def _make_room(self, *, wait: bool) -> bool:
        """See to it that the outbox is below its mark; `False` where the message is dropped."""
        outbox, mark = self.outbox, self._settings.send_queue_size
        outbox.push()
        # By the reactor's time: while the loop is held up, nobody hears that the peer reads.
        deadline = self.reactor.now + self._settings.send_timeout
        while self.state is State.OPEN and outbox.size >= mark:
            if not wait or self.reactor.is_in_hub():
                if self._settings.slow_consumer == "drop":
                    self._drop(1)
                    return False
                raise self._close_slow_consumer()
            left = deadline - self.reactor.now
            if left <= 0:
                raise self._close_slow_consumer()
            if not outbox.wait_for_room(left):
                outbox.push()
        if self.state is not State.OPEN:
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def _drop(self, count: int) -> None:
        self._metrics.dropped += count
        self._dropped += count
        self.reactor.watch(self, self.reactor.now + _REPORT_INTERVAL)

    def _close_slow_consumer(self, why: str = "") -> SlowConsumerError:
        if self.state is State.OPEN:
            self._metrics.slow_consumers += 1
            why = why or f"{self.outbox.size} bytes wait"
            _log.warning("%s: slow consumer, %s: closing", self.name, why)
            # It has had its time: nobody's queue lives on by a byte a second.
            self._start_closing(CloseCode.TRY_AGAIN_LATER, "slow consumer", patience=1)
        return SlowConsumerError(f"{self.name} does not take what is sent to it")

    def _report_dropped(self) -> None:
        """Log what was dropped since the last time: one line a second, however much it was."""
        count, self._dropped = self._dropped, 0
        _log.warning("%s: slow consumer, %d messages dropped for it", self.name, count)

    def drained(self) -> None:
        """The outbox: nothing waits any more."""
        if self._pong is not None and self.state is State.OPEN:
            payload, self._pong = self._pong, None
            self._write_control(Opcode.PONG, payload)

    def _write_control(self, opcode: Opcode, payload: bytes) -> None:
        wire = self._make_control(opcode, payload)
        self.outbox.write(wire)
        self._note_control(wire)

    def _note_control(self, wire: bytes) -> None:
        """That was queued last: a ping or pong, which is no data of ours."""
        outbox, size = self.outbox, len(wire)
        end = outbox.bytes_sent + outbox.size
        # Right behind another one, or nothing else waits.
        if end - size <= self._controls_end or outbox.size <= size:
            self._controls_end = end

    def _is_data_waiting(self) -> bool:
        """True while a message waits for the peer to read; pings and pongs alone are none."""
        outbox = self.outbox
        return outbox.size > 0 and outbox.bytes_sent + outbox.size > self._controls_end

    def _make_control(self, opcode: Opcode, payload: bytes) -> bytes:
        """A control frame that is about to be sent."""
        wire = self._engine.control(opcode, payload)
        if self.is_traced:
            self._trace_sent(wire)
        return wire

    def _trace_sent(self, wire: Wire) -> None:
        parts = wire if isinstance(wire, tuple) else (wire,)
        opcode = Opcode(parts[0][0] & 15).name.lower()
        _log.log(TRACE, "%s > %s, %d bytes with header", self.name, opcode, sum(map(len, parts)))

    @abstractmethod
    def tick(self, now: float) -> float:
        """Act on what is due; when to look again. In the hub."""

    @abstractmethod
    def forked(self) -> None:
        """This is a forked child, and the connection its parent's."""

    @abstractmethod
    def moved(self) -> None:
        """The peer takes something again, after a stall."""

    @abstractmethod
    def lost(self, exc: OSError | None) -> None:
        """The stream ended (`None`) or broke."""

    @abstractmethod
    def _start_closing(self, code: int, reason: str, patience: int = ...) -> None:
        """Send a close frame after what is queued; that may take `patience` time-outs at most."""
