"""One WebSocket connection: no greenlet while it is idle, and never two callbacks at once.

The hub reads: a watcher's callback takes what the socket has, parses all complete frames of it, and
hands the messages to a worker greenlet, which runs the callbacks in order and writes their replies
in one `send`. A worker that blocks leaves the rest in the inbox; an inbox past its limit stops the
watcher, and TCP tells the peer.

`net.stream` is what happens with an everyday message, `net.sender` what where the peer does not
read, `net.closing` the end. Who may call what: `send`, `close` and `is_open` from any greenlet and
any native thread; everything else belongs to the thread of the reactor.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gevent.event import Event as Flag

from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.closing import PATIENCE, Closing, State
from wsmiddleware.net.keepalive import Keepalive, Verdict
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.receiver import NOBODY, TURN, Receiver
from wsmiddleware.net.sender import Sender
from wsmiddleware.net.throttle import Throttle
from wsmiddleware.net.transport import TcpTransport, Transport
from wsmiddleware.protocol.engine import Close, Engine, Event, Fail, Ping, Pong
from wsmiddleware.protocol.frames import CloseCode, Opcode, close_payload
from wsmiddleware.speedups import pack

if TYPE_CHECKING:
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.settings import Settings

__all__ = ["LARGE_RECV_SIZE", "NOBODY", "Connection", "Receiver"]

_READ = 1  # libev's EV_READ
#: Bytes read at once. A message of 64 KiB comes whole, header and all: saves a third of it against
#: half of that size.
RECV_SIZE = 526336
#: Who sends frames of so many bytes gets more read at once, so that a message of the largest size
#: allowed by default comes whole: saves 20 % of 1 MiB, batch 1, and 5 % of 64 KiB, batch 16. Only
#: between two frames: one that is under way stays in the processor's caches until it is unmasked,
#: which saves 10 % of 1 MiB, batch 16. And not for small frames, for a flood of pings is kept until
#: it has been answered.
_LARGE_SIZE = 16384
LARGE_RECV_SIZE = 2 * RECV_SIZE
_FRAMES_PER_TURN = 256
#: Where compression was agreed: frames between two looks at the clock, and seconds of one read. A
#: few bytes may be much work, whatever comes out of them.
_FRAMES_PER_LOOK = 1
_INFLATING = 0.0001
#: What may wait in the inbox behind a callback that blocks, before reading stops.
_INBOX_MESSAGES = 256
_INBOX_BYTES = 262144


class Connection(Sender):
    """A live connection over a transport, from the 101 to the last byte.

    More attributes than the house's twelve: each is asked for on the way of every message, or is a
    part that the connection owns.
    """

    __slots__ = (
        "_closed",
        "_controls_end",
        "_engine",
        "_has_told_end",
        "_is_discarding",
        "_is_opened",
        "_is_resume_due",
        "_is_told_of_pings",
        "_lost_replies",
        "_pong",
        "_throttle",
        "_transport",
        "_watcher",
        "closing",
        "encode",
        "keepalive",
        "receiver",
        "slot",
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
        self.is_traced = _log.isEnabledFor(TRACE)
        mark = settings.send_queue_size
        is_everyday = isinstance(transport, TcpTransport) and not engine.is_client
        # Under a rate messages are counted out one by one; a trace has a line for each.
        if settings.max_message_rate or self.is_traced:
            is_everyday = False
        super().__init__(
            reactor,
            Outbox(reactor.loop, transport, self, mark // 4),
            metrics,
            transport.fileno() if is_everyday else -1,
            engine.max_message_size,
            mark,
            TURN,
            window_bits,
            name=name,
            settings=settings,
        )
        self._transport = transport
        self._engine = engine
        #: The wire form of one message to this peer.
        self.encode = pack if pack is not None and engine.is_plain else engine.wire
        self.keepalive = Keepalive(idle_timeout, settings.ping_interval, settings.ping_timeout)
        self.receiver: Receiver = NOBODY
        #: There once the connection has begun to end.
        self.closing: Closing | None = None
        #: When time-outs are looked at next: the reactor's.
        self.slot = 0
        #: Watches for input; its callback says what the input is for.
        self._watcher: Any = None
        self._throttle: Throttle | None = None
        if settings.max_message_rate:
            self._throttle = Throttle(reactor.loop, settings.max_message_rate)
        #: A ping to answer once the peer takes something.
        self._pong: bytes | None = None
        #: Up to which of its bytes the outbox holds nothing but pings and pongs.
        self._controls_end = 0
        #: What callbacks returned for a peer that had gone.
        self._lost_replies = 0
        self._is_opened = False
        self._has_told_end = False
        self._is_told_of_pings = False
        self._is_resume_due = False
        #: What still comes is for nobody.
        self._is_discarding = False
        #: Set at the end, where somebody waits for it (a parked handler).
        self._closed: Flag | None = None

    @property
    def bytes_sent(self) -> int:
        """Bytes that have gone."""
        return self.outbox.bytes_sent + self.bytes_written

    @property
    def sent_code(self) -> int:
        """The code of our own close frame, 0 before it."""
        return self.closing.sent_code if self.closing else 0

    @property
    def failure(self) -> Fail | None:
        """How the peer broke the protocol, if it did."""
        ending = self.closing.ending if self.closing else None
        return ending if isinstance(ending, Fail) else None

    @property
    def is_closed(self) -> bool:
        """True once the transport has been closed."""
        return self.closing is not None and self.closing.state is State.CLOSED

    def closed(self) -> Flag:
        """An event that is set when the transport has been closed."""
        if self._closed is None:
            self._closed = Flag()
            if self.is_closed:
                self._closed.set()
        return self._closed

    # -- reading, in the hub ------------------------------------------------------------------

    def start(self, receiver: Receiver, leftover: bytes) -> None:
        """Call `receiver` from now on; `leftover` is what came behind the handshake."""
        self.receiver = receiver
        self._is_told_of_pings = getattr(receiver, "is_told_of_pings", False)
        reactor = self.reactor
        reactor.watch(self, self._due_at())
        self._watcher = reactor.loop.io(self._transport.fileno(), _READ)
        reactor.pool.submit(self.work)
        reactor.loop.run_callback(self._start_reading, leftover)

    def _start_reading(self, leftover: bytes) -> None:
        if self.is_closed:
            return
        # Not before: what is on the socket comes behind `leftover`.
        self._watcher.start(self.receive)
        if leftover:
            self.bytes_received += len(leftover)
            self.take(leftover)

    def read(self) -> None:
        """Receive once, for the engine."""
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

    def take(self, data: bytes, is_turn_over: bool = False) -> None:
        """Have the engine parse `data`, now or in the next turn, and run what it brought.

        Raises nothing.
        """
        try:
            self._take_in(data, 0 if is_turn_over else _FRAMES_PER_TURN)
            # Not in the middle of what the engine has begun.
            self.is_engines = not self._engine.is_idle
            if self.worker is None and (self.inbox or self.is_ending):
                self.make_ready()
                is_waiting = False
            else:
                is_waiting = bool(self.inbox)
            if self._engine.more or is_waiting or self._throttle is not None:
                self.pause_if_needed()
        except Exception as exc:
            self.broken(exc)

    def broken(self, exc: BaseException) -> None:
        """A fault of ours, or no memory: nobody knows where in the stream we are."""
        _log.error("%s: internal error, please report it", self.name, exc_info=exc)
        self.abort()

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
        """What has come whole, of `limit` frames at most; a part of them is one turn."""
        engine = self._engine
        if engine.deflate is None:
            return engine.receive(data, limit)
        ends = time.perf_counter() + _INFLATING
        events = engine.receive(data, min(limit, _FRAMES_PER_LOOK))
        for _ in range(_FRAMES_PER_LOOK, limit, _FRAMES_PER_LOOK):
            if not engine.more or time.perf_counter() > ends:
                break
            events += engine.receive(b"", _FRAMES_PER_LOOK)
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
            self._begin_to_end().peer_ended(event)

    def _answer_ping(self, payload: bytes) -> None:
        if not self.is_open:
            return
        if self.outbox.is_stalled:
            # RFC 6455, section 5.5.3: the most recent ping is the one to answer. A peer that pings
            # and does not read costs one payload.
            self._pong = payload
        else:
            wire = self.control(Opcode.PONG, payload)
            self.hold(wire)
            self._note_control(wire)

    # -- pausing ------------------------------------------------------------------------------

    def pause_if_needed(self) -> None:
        """Stop reading while what was read cannot be handed on."""
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
        # Once a turn, whoever asks: a second one would hand a flood a second turn.
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

    # -- callbacks, in a worker ---------------------------------------------------------------

    def work(self, worker: Worker, is_turn_over: bool = False) -> None:
        """Run what is to be done, in order; callbacks may block here."""
        if self.worker is not None:
            return  # another worker is at it and will see what this one was called for
        self.worker = worker
        worker.deadline = math.inf  # but for what the receiver calls
        try:
            if is_turn_over:
                self.reactor.pause()
            elif worker.is_alone():
                self._run_callbacks(worker)
        except Exception as exc:
            self.broken(exc)
        finally:
            self.worker = None
            self.worked()
            if self.is_paused:
                self._resume_soon()
            # By another worker: who has blocked may get a time-out that was left running.
            self._work_soon()

    def worked(self) -> None:
        """A callback has ended: from now on the peer may be idle."""
        self.last_message = self.reactor.now

    def _work_soon(self) -> None:
        if self.worker is None and self._is_anything_due():
            self.reactor.pool.submit(self.work)

    def _is_anything_due(self) -> bool:
        if self.is_closed:
            return self.receiver is not NOBODY
        is_untold = self.is_ending and not self._has_told_end
        return bool(self.inbox or self.due or is_untold or not self._is_opened)

    def _run_callbacks(self, worker: Worker) -> None:
        """The same, as long as nobody can have kept the worker's greenlet."""
        inbox, due = self.inbox, self.due
        if not self._is_opened:
            self._is_opened = True
            self.receiver.opened(worker)
            self.outbox.flush()
            if not worker.is_alone():
                return
        while inbox or due:
            if not due:
                # Not in a method of its own: saves 2 % of 32 B, batch 1.
                due += inbox[::-1]
                inbox.clear()
                self.metrics.messages_received += len(due)
                if self.is_paused:
                    self._resume_soon()
            self.receiver.received(due, worker)
            if due:
                self.reactor.pause()  # their turn is over
                return
            if self.outbox.size:
                self.outbox.flush()
            if inbox and not worker.is_alone():
                return
        if self.closing is not None:
            self._go_on_ending(self.closing, worker)

    def _go_on_ending(self, closing: Closing, worker: Worker) -> None:
        if self.is_ending and self.is_open:
            closing.answer()
        if not self.is_open and worker.is_alone():
            self._tell_end(closing, worker)

    def _tell_end(self, closing: Closing, worker: Worker) -> None:
        """`closed` as soon as the end is known; `gone` when the socket has ended too."""
        is_over = closing.state is State.CLOSED
        if (self.is_ending or is_over) and not self._has_told_end:
            self._has_told_end = True
            self.stop()
            self._tell_lost_replies()
            self.receiver.closed(worker)
        if closing.state is State.CLOSED:
            receiver, self.receiver = self.receiver, NOBODY
            self.reactor.forget(self)
            receiver.gone()

    def reply_lost(self) -> None:
        """A callback's reply has nobody to go to any more: at the end one line tells of all."""
        self._lost_replies += 1
        if self._has_told_end:
            self._tell_lost_replies()

    def _tell_lost_replies(self) -> None:
        count, self._lost_replies = self._lost_replies, 0
        if count:
            what = "1 reply" if count == 1 else f"{count} replies"
            _log.info("%s: %s lost: the connection had closed", self.name, what)

    def _trace_received(self, messages: Iterable[object]) -> None:
        for message in messages:
            if not isinstance(message, (str, bytes)):
                continue  # a ping or pong, which has its line
            kind = "text" if isinstance(message, str) else "binary"
            _log.log(TRACE, "%s < %s, %d", self.name, kind, len(message))

    # -- the outbox tells ---------------------------------------------------------------------

    def drained(self) -> None:
        """Nothing waits any more."""
        if self.closing is not None and not self.is_open:
            self.closing.frame_sent()
        elif self._pong is not None:
            payload, self._pong = self._pong, None
            self._write_control(Opcode.PONG, payload)

    def moved(self) -> None:
        """The peer takes what waits for it, so it is alive, if slow."""
        self.last_received = now = self.reactor.now
        if self._is_data_waiting():
            self.last_message = now
        if self.closing is not None:
            self.closing.moved()

    def lost(self, exc: OSError | None) -> None:
        """The stream ended (`None`) or broke."""
        if self.is_traced and not self.is_closed:
            _log.log(TRACE, "%s: end of stream (%s)", self.name, exc or "EOF")
        self.end()

    def control(self, opcode: Opcode, payload: bytes) -> bytes:
        """A control frame that is about to be sent."""
        wire = self._engine.control(opcode, payload)
        if self.is_traced:
            self.trace_sent(wire)
        return wire

    def _write_control(self, opcode: Opcode, payload: bytes) -> None:
        wire = self.control(opcode, payload)
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

    # -- the end ------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake after what is queued. Never blocks; once is enough."""
        close_payload(code, reason)  # a mistake is the caller's, whatever the thread
        if not self.reactor.is_here():
            self.reactor.defer(self.start_closing, code, reason)
        elif self.outbox.is_busy:
            self.interrupt(self.start_closing, code, reason)
        else:
            self.start_closing(code, reason)

    def start_closing(self, code: int, reason: str, patience: int = PATIENCE) -> None:
        """Send a close frame after what is queued; that may take `patience` time-outs at most."""
        if self.is_open:
            # What still comes is for nobody: who closes has stopped listening.
            self._discard_input()
            self._begin_to_end().send(code, reason, patience)

    def _begin_to_end(self) -> Closing:
        if self.closing is None:
            self.closing = Closing(self)
        return self.closing

    def abort(self) -> None:
        """Drop the connection without a closing handshake, and what it has received."""
        self._discard_input()
        self.end()

    def _discard_input(self) -> None:
        self._is_discarding = True
        self.inbox.clear()
        self.due.clear()
        self._stop_throttle()
        if self.is_paused:
            self._resume_soon()  # the peer's close frame must be read

    def _stop_throttle(self) -> None:
        if self._throttle is not None:
            self._throttle.stop()
            self._throttle = None

    def stop_reading(self) -> None:
        """Leave what comes where it is."""
        self._watcher.stop()

    def shut_down(self, how: int, on_input: Callable[[], object]) -> None:
        """Shut one direction of TCP down; call `on_input` for what still comes."""
        try:
            self._transport.shutdown(how)
        except OSError as exc:
            self.lost(exc)
        else:
            self._watcher.start(on_input)

    def discard(self, size: int) -> bool:
        """Read `size` bytes at most and forget them; `False` at the end of the stream."""
        try:
            return bool(self._transport.recv(size))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def end(self) -> None:
        """Drop TCP; what is left of the callbacks runs in a worker. Once is enough."""
        closing = self._begin_to_end()
        if closing.state is State.CLOSED:
            return
        try:
            closing.set_state(State.CLOSED)
        finally:
            self._let_go()
        self.report_dropped()
        if self._closed is not None:
            self._closed.set()

    def _let_go(self) -> None:
        try:
            # Before the descriptor: a watcher that is left on a closed one spins the loop.
            self._watcher.stop()
            self._watcher.close()
            self.outbox.close()
            self._stop_throttle()
        finally:
            with contextlib.suppress(OSError):
                self._transport.close()
            # Looked at until `work` has called the last callback, should that be in vain.
            self.reactor.pool.submit(self.work)

    def forked(self) -> None:
        """In a forked child: nothing comes or goes here any more, and nobody is told."""
        receiver, self.receiver = self.receiver, NOBODY
        self._begin_to_end().forked()
        self.slot = 0
        self._watcher.stop()
        self._watcher.close()
        self.outbox.abandon()
        self._stop_throttle()
        self.inbox.clear()
        self.due.clear()
        self.is_open = False
        if self.worker is None:
            self.stop()
        self._transport.abandon()
        receiver.forked()

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Act on what is due; when to look again. In the hub."""
        self._work_soon()  # should there have been no memory to ask for it
        if self.is_closed:
            return now + 1.0
        if not self.is_paused and not self.is_ending and not self._watcher.active:
            self._watcher.start(self.receive)  # gevent stops one whose callback has raised
        # Not where only the next turn is awaited: so does a flood of pings, and is no message.
        if self.is_paused and not self._is_resume_due:
            self.last_received = self.last_message = now
        elif self.worker is not None or self.receiver.is_busy() or self._is_data_waiting():
            self.last_message = now  # nobody is idle: we are at work, or the peer reads
        self.report_dropped()
        if self.closing is None:
            self._keep_alive(now)
        elif now >= self.closing.deadline:
            self._look()
            self.closing.end_if_due(now)
        return self._due_at()

    def _due_at(self) -> float:
        if self.closing is None:
            return self.keepalive.due(self.last_received, self.last_message)
        return self.closing.deadline

    def _look(self) -> None:
        """Look at the socket before anything is judged by the clock.

        Where the loop was held up, or the process stopped, what is waited for may have come long
        since.
        """
        self.outbox.push()
        read = self._watcher.callback
        if read is not None:  # else it is not read at the moment, or not any more
            read()

    def set_idle_timeout(self, seconds: float) -> None:
        """Close when no message has come or gone for so long, 0 for never. From any thread."""
        self.keepalive.idle_timeout = seconds
        self.reactor.defer(self._look_again)

    def _look_again(self) -> None:
        if self.closing is None:
            self.reactor.watch(self, self._due_at())

    def _keep_alive(self, now: float) -> None:
        verdict = self._judge(now)
        if verdict in (Verdict.IDLE, Verdict.DEAD):
            self._look()
            if self.closing is not None:
                return
            verdict = self._judge(now)
        if verdict is Verdict.PING:
            # Where something waits, that is as good as a ping: TCP has to acknowledge it.
            if not self.outbox.is_stalled:
                self._write_control(Opcode.PING, b"")
        elif verdict is Verdict.IDLE:
            self.start_closing(CloseCode.GOING_AWAY, "idle")
        elif verdict is Verdict.DEAD:
            _log.info("%s: no answer to a ping: closing", self.name)
            self.start_closing(CloseCode.INTERNAL_ERROR, "ping timeout")
            self.end()

    def _judge(self, now: float) -> Verdict:
        return self.keepalive.check(now, self.last_received, self.last_message)
