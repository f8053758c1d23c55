"""How a connection receives through the engine: parsing, pings, and when reading pauses.

With the C extension only input that is not everyday comes this way; without it all input does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.sender import Sender
from wsmiddleware.net.throttle import Throttle
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping, Pong
from wsmiddleware.protocol.frames import Opcode

if TYPE_CHECKING:
    from wsmiddleware.net.transport import Transport

__all__ = ["LARGE_RECV_SIZE", "Reader"]

#: Bytes read at once, so that messages of 64 KiB come whole, header and all. Against half of that
#: size: saves 33 % of 64 KiB.
RECV_SIZE = 526336
#: A peer whose last frame had so many bytes gets twice as much read at once, so that a message of
#: the largest size allowed by default comes whole: saves 20 % of 1 MiB, batch 1, and 5 % of 64 KiB,
#: batch 16. Not in the middle of a frame: the smaller piece is still in the processor's caches when
#: it is unmasked, which saves 10 % of 1 MiB, batch 16. Not for small frames either: what is read of
#: a flood of pings stays in memory until it has been answered.
_LARGE_SIZE = 16384
LARGE_RECV_SIZE = 2 * RECV_SIZE
_FRAMES_PER_SLICE = 256
#: Seconds of parsing one read where compression was agreed: few bytes may be much work.
_INFLATING = 0.0001
#: What may wait in the inbox while a callback blocks, before reading pauses.
_INBOX_MESSAGES = 256
_INBOX_BYTES = 262144


class Reader(Sender):
    """Puts the messages that the engine parses into the inbox; answers pings and close frames."""

    __slots__ = (
        "_controls_end",
        "_engine",
        "_is_discarding",
        "_is_resume_due",
        "_is_told_of_pings",
        "_pong",
        "_throttle",
        "_transport",
        "_watcher",
    )

    if TYPE_CHECKING:
        # What `Connection` adds.
        @property
        def is_closed(self) -> bool: ...
        def broken(self, exc: BaseException) -> None: ...
        def lost(self, exc: OSError | None) -> None: ...
        def peer_ended(self, ending: Close | Fail) -> None: ...

    def __init__(self, *args: Any, transport: Transport, engine: Engine, **options: Any) -> None:
        super().__init__(*args, **options)
        self._transport = transport
        self._engine = engine
        #: The loop's watcher for input; its callback reads what comes.
        self._watcher: Any = None
        self._throttle: Throttle | None = None
        if self.settings.max_message_rate:
            self._throttle = Throttle(self.reactor.loop, self.settings.max_message_rate)
        #: The payload of the ping to answer once the peer reads again.
        self._pong: bytes | None = None
        #: The outbox has nothing but pings and pongs up to this count of its bytes.
        self._controls_end = 0
        self._is_told_of_pings = False
        self._is_resume_due = False
        #: Messages that still come are dropped.
        self._is_discarding = False

    # -- reading ------------------------------------------------------------------------------

    def _start_reading(self, leftover: bytes) -> None:
        if self.is_closed:
            return
        # Not earlier: what is in the socket comes after `leftover`.
        self._watcher.start(self.receive)
        if leftover:
            self.bytes_received += len(leftover)
            self.take(leftover)

    def read(self) -> None:
        """Receive once, without waiting, and have the engine parse it."""
        engine = self._engine
        is_large = engine.last_size >= _LARGE_SIZE and not engine.left
        try:
            data = self._transport.recv(LARGE_RECV_SIZE if is_large else RECV_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.lost(exc)
            return
        if data:
            self.bytes_received += len(data)
            self.take(data)
        else:
            self.lost(None)

    def take(self, data: bytes, is_slice_over: bool = False) -> None:
        """Have the engine parse `data` and ask for a worker for what it brought.

        With `is_slice_over` the engine only keeps it, for the next turn of the loop. Never blocks;
        raises nothing but Ctrl-C.
        """
        try:
            self._take_in(data, 0 if is_slice_over else _FRAMES_PER_SLICE)
            # Not in the middle of what the engine has begun.
            self.is_engines = not self._engine.is_idle
            if self.worker is None and (self.inbox or self.is_ending):
                self.make_ready()
                is_waiting = False
            else:
                is_waiting = bool(self.inbox)
            if self._engine.more or is_waiting or self._throttle is not None:
                self.pause_if_needed()
        except BaseException as exc:
            self.broken(exc)
            if not isinstance(exc, Exception):
                raise  # Ctrl-C belongs to the main greenlet

    def _take_in(self, data: bytes, limit: int) -> None:
        """Parse `limit` frames of `data` into the inbox; answer what is not for the listener."""
        self.last_received = now = self.reactor.now
        throttle = self._throttle
        if throttle is not None:
            limit = max(1, min(limit, throttle.allowance()))
        inbox = self.inbox
        before = len(inbox)
        for event in self._parse(data, limit):
            kind = type(event)
            if kind is str or kind is bytes:
                inbox.append(event)
            else:
                self._control_came(event)
        count = len(inbox) - before
        if count:
            self.last_message = now
            if self.is_traced:
                self._trace_received(inbox[before:])
            if throttle is not None:
                throttle.spend(count)
            if self._is_discarding:
                inbox.clear()

    def _parse(self, data: bytes, limit: int) -> list[Event]:
        """The events of at most `limit` frames; fewer where inflating them takes too long."""
        engine = self._engine
        if engine.deflate is None:
            return engine.receive(data, limit)
        ends = time.perf_counter() + _INFLATING
        events = engine.receive(data, min(limit, 1))
        for _ in range(1, limit):
            if not engine.more or time.perf_counter() > ends:
                break
            events += engine.receive(b"", 1)
        return events

    def _control_came(self, event: Event) -> None:
        if self.is_traced:
            _log.log(TRACE, "%s < %r", self.name, event)
        if isinstance(event, (Ping, Pong)):
            if isinstance(event, Ping):
                self._answer_ping(event.payload)
            if self._is_told_of_pings:
                self.inbox.append(event)
        elif isinstance(event, (Close, Fail)):
            self.peer_ended(event)

    def _trace_received(self, messages: Iterable[object]) -> None:
        for message in messages:
            if not isinstance(message, (str, bytes)):
                continue  # a ping or pong, which has its line
            kind = "text" if isinstance(message, str) else "binary"
            _log.log(TRACE, "%s < %s, %d", self.name, kind, len(message))

    # -- pausing ------------------------------------------------------------------------------

    def pause_if_needed(self) -> None:
        """Pause reading if there is more input than may be handled now. Never blocks."""
        if self.is_paused or self.is_ending or self.is_closed:
            return
        if self._throttle is not None and not self._throttle.allowance():
            self.metrics.throttled += 1
            self._pause()
            self._throttle.start(self._resume)
        elif self._engine.more:
            self._pause()
            self._resume_soon()
        elif self._is_inbox_full():
            self._pause()

    def _pause(self) -> None:
        self.is_paused = True
        self._watcher.stop()

    def _is_inbox_full(self) -> bool:
        inbox = self.inbox
        return len(inbox) >= _INBOX_MESSAGES or sum(map(len, inbox)) >= _INBOX_BYTES

    def _resume_soon(self) -> None:
        # Once in a turn of the loop, or a flood would get two time slices of it.
        if not self._is_resume_due:
            self._is_resume_due = True
            self.reactor.next_turn(self._resume)

    def _resume(self) -> None:
        """Go on reading, if nothing is in the way."""
        self._is_resume_due = False
        if not self.is_paused or self.is_ending or self.is_closed:
            return
        if self._throttle is not None and not self._throttle.allowance():
            self._throttle.start(self._resume)
            return
        if self.worker is not None and self._is_inbox_full():
            return  # the worker will come
        self.is_paused = False
        self.last_received = self.reactor.now
        self._watcher.start(self.receive)
        if self._engine.more:
            self.take(b"")

    def discard_input(self) -> None:
        self._is_discarding = True
        self.inbox.clear()
        self.due.clear()
        self.stop_throttle()
        if self.is_paused:
            self._resume_soon()  # the peer's close frame must be read

    def stop_throttle(self) -> None:
        if self._throttle is not None:
            self._throttle.stop()
            self._throttle = None

    def stop_reading(self) -> None:
        """Read nothing more from the socket."""
        self._watcher.stop()

    # -- pings and pongs ------------------------------------------------------------------------

    def _answer_ping(self, payload: bytes) -> None:
        if not self.is_open:
            return
        if self.outbox.is_stalled:
            # RFC 6455, section 5.5.3: only the most recent ping must be answered. So a peer that
            # pings and does not read costs the memory of one payload.
            self._pong = payload
        else:
            wire = self.control(Opcode.PONG, payload)
            self.enqueue(wire)
            self._note_control(wire)

    def answer_waiting_ping(self) -> None:
        """Send the pong that was put off, now that the peer reads again."""
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self.write_control(Opcode.PONG, payload)

    def control(self, opcode: Opcode, payload: bytes) -> bytes:
        """The bytes of a control frame that is about to be sent; traced."""
        wire = self._engine.control(opcode, payload)
        if self.is_traced:
            self.trace_sent(wire)
        return wire

    def write_control(self, opcode: Opcode, payload: bytes) -> None:
        wire = self.control(opcode, payload)
        self.outbox.write(wire)
        self._note_control(wire)

    def _note_control(self, wire: bytes) -> None:
        """Note that `wire`, a ping or pong, was queued last: it does not count as data."""
        outbox, size = self.outbox, len(wire)
        end = outbox.bytes_sent + outbox.size
        # It follows another one, or nothing else waits.
        if end - size <= self._controls_end or outbox.size <= size:
            self._controls_end = end

    def is_data_waiting(self) -> bool:
        """True while a message waits for the peer to read; pings and pongs alone are none."""
        outbox = self.outbox
        return outbox.size > 0 and outbox.bytes_sent + outbox.size > self._controls_end
