"""One WebSocket connection: no greenlet while it is idle, and never two callbacks at once.

The hub reads: a watcher's callback takes what the socket has, parses all complete frames of it, and
hands the messages to a worker greenlet, which runs the callbacks in order and writes their replies
in one `send`. A worker that blocks leaves the rest in the inbox; an inbox past its limit stops the
watcher, and TCP tells the peer.

Who may call what: `send`, `close` and `is_open` from any greenlet and any native thread; everything
else belongs to the thread of the reactor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError
from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.link import RECV_SIZE, Link
from wsmiddleware.net.receiver import NOBODY, TURN, Due, Receiver
from wsmiddleware.net.sender import State
from wsmiddleware.net.throttle import Throttle
from wsmiddleware.net.transport import TcpTransport
from wsmiddleware.protocol.engine import Close, Event, Fail, Ping, Pong
from wsmiddleware.protocol.frames import Wire
from wsmiddleware.speedups import Stream

if TYPE_CHECKING:
    from wsmiddleware._speedups import Stream as _Stream
    from wsmiddleware.net.pool import Worker

__all__ = ["LARGE_RECV_SIZE", "NOBODY", "Connection", "Receiver", "State"]

_READ = 1  # libev's EV_READ
#: Who sends frames of so many bytes gets more read at once: a message of the largest size that is
#: allowed by default comes whole, header and all. It costs its echo a fifth less, sixteen of 64 KiB
#: a twentieth. Not others, for a flood of pings is kept until it has been answered; and not in the
#: middle of a frame, which is still in the processor's caches then when it is unmasked and kept: a
#: tenth of sixteen messages of 1 MiB.
_LARGE_SIZE = 16384
LARGE_RECV_SIZE = 2 * RECV_SIZE
#: Asked for with every message: a member of an `Enum` costs 0.1 µs each time in Python 3.11.
_OPEN, _CLOSED = State.OPEN, State.CLOSED
_FRAMES_PER_TURN = 256
#: Where compression was agreed: frames between two looks at the clock, and seconds of one read. A
#: few bytes may be much work, whatever comes out of them.
_FRAMES_PER_LOOK = 1
_INFLATING = 0.0001
#: What may wait in the inbox behind a callback that blocks, before reading stops.
_INBOX_MESSAGES = 256
_INBOX_BYTES = 262144


class Connection(Link):
    """A live connection over a transport, from the 101 to the last byte."""

    __slots__ = (
        "_bytes_received",
        "_due",
        "_has_told_end",
        "_inbox",
        "_is_discarding",
        "_is_opened",
        "_is_paused",
        "_is_resume_due",
        "_is_told_of_pings",
        "_throttle",
        "stream",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bytes_received = 0
        #: The C extension, where it can serve this connection.
        self.stream = self._make_stream()
        #: Messages that wait for a worker, and in reverse those that one is at. Never replaced.
        self._inbox: list[str | bytes] = []
        self._due: Due = []
        self._has_told_end = False
        self._is_discarding = False
        self._is_opened = False
        #: Input is left where it is for the moment.
        self._is_paused = False
        self._is_resume_due = False
        self._is_told_of_pings = False
        self._throttle: Throttle | None = None
        if self._settings.max_message_rate:
            self._throttle = Throttle(self.reactor.loop, self._settings.max_message_rate)

    def _make_stream(self) -> _Stream | None:
        is_servers = isinstance(self._transport, TcpTransport) and not self._engine.is_client
        # Under a rate messages are counted out one by one; a trace has a line for each.
        is_counted = self._settings.max_message_rate or self.is_traced
        if Stream is None or not is_servers or is_counted:
            return None
        size, mark = self._engine.max_message_size, self._settings.send_queue_size
        return Stream(self._transport.fileno(), size, mark, TURN, self.window_bits)

    @property
    def bytes_received(self) -> int:
        """Bytes that have come."""
        return self._bytes_received + (self.stream.bytes_received if self.stream else 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes that have gone."""
        return self.outbox.bytes_sent + (self.stream.bytes_sent if self.stream else 0)

    # -- reading, in the hub ------------------------------------------------------------------

    def start(self, receiver: Receiver, leftover: bytes) -> None:
        """Call `receiver` from now on; `leftover` is what came behind the handshake."""
        self._receiver = receiver
        self._is_told_of_pings = getattr(receiver, "is_told_of_pings", False)
        reactor = self.reactor
        if self.stream is not None:
            assert reactor.ready is not None  # both are there, or neither
            self.stream.start(
                self, self._inbox, self._due, self.outbox, reactor.ready, self._metrics
            )
        reactor.watch(self, self.keepalive.due())
        self._watcher = reactor.loop.io(self._transport.fileno(), _READ)
        reactor.pool.submit(self._run)
        reactor.loop.run_callback(self._start_reading, leftover)

    def _start_reading(self, leftover: bytes) -> None:
        if self.state is State.CLOSED:
            return
        # Not before: what is on the socket comes behind `leftover`.
        self._start_watcher()
        if leftover:
            self._bytes_received += len(leftover)
            self._receive(leftover)

    def _start_watcher(self) -> None:
        # The extension takes half of an echo's time in user space, of sixteen at once more.
        stream = self.stream
        self._watcher.start(self._on_readable if stream is None else stream.receive)

    def _on_readable(self) -> None:
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
            self._bytes_received += len(data)
            self._receive(data)
        else:
            self.lost(None)

    def _receive(self, data: bytes, is_turn_over: bool = False) -> None:
        """Parse `data`, now or in the next turn, and have run what it brought. Must not raise."""
        try:
            self._take(data, 0 if is_turn_over else _FRAMES_PER_TURN)
            if self.stream is not None:
                # Not in the middle of what the engine has begun.
                self.stream.is_engines = not self._engine.is_idle
            if self._worker is None and (self._inbox or self._ending):
                self.reactor.pool.submit(self._run)
                is_waiting = False
            else:
                is_waiting = bool(self._inbox)
            if self._engine.more or is_waiting or self._throttle is not None:
                self._pause_if_needed()
        except Exception as exc:
            self.broken(exc)

    def forked(self) -> None:
        """In a forked child: nothing comes or goes here any more, and nobody is told."""
        receiver, self._receiver = self._receiver, NOBODY
        self.state, self.slot = State.CLOSED, 0
        self._watcher.stop()
        self._watcher.close()
        self.outbox.abandon()
        self._read_nothing_more()
        self._inbox.clear()
        self._due.clear()
        if self.stream is not None:
            self.stream.is_open = False
            self.stream.take_pending()
            if self._worker is None:
                self.stream.stop()
        self._transport.abandon()
        receiver.forked()

    def broken(self, exc: BaseException) -> None:
        """A fault of ours, or no memory: nobody knows where in the stream we are."""
        _log.error("%s: internal error, please report it", self.name, exc_info=exc)
        self.abort()

    def _take(self, data: bytes, limit: int) -> None:
        """Parse `limit` frames of `data` into the inbox; answer what is not for the listener."""
        keepalive = self.keepalive
        keepalive.last_received = now = self.reactor.now
        throttle = self._throttle
        if throttle is not None:
            limit = max(1, min(limit, throttle.allowance()))
        inbox = self._inbox
        before = len(inbox)
        for event in self._parse(data, limit):
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

    def _control(self, event: Event) -> None:
        if self.is_traced:
            _log.log(TRACE, "%s < %r", self.name, event)
        if isinstance(event, (Ping, Pong)):
            if isinstance(event, Ping):
                self._answer_ping(event.payload)
            if self._is_told_of_pings:
                self._inbox.append(event)  # type: ignore[arg-type]
        elif isinstance(event, (Close, Fail)):
            self._peer_ended(event)

    def _pause_if_needed(self) -> None:
        """Stop reading while what was read cannot be handed on."""
        if self._is_paused or self._ending is not None or self.state is State.CLOSED:
            return
        if self._throttle is not None and not self._throttle.allowance():
            self._metrics.throttled += 1
            self._pause()
            self._throttle.start(self._resume)
        elif self._engine.more:
            self._pause()
            self._resume_soon()
        elif self._is_inbox_full():
            self._pause()

    def _pause(self) -> None:
        self._is_paused = True
        self._watcher.stop()

    def _is_inbox_full(self) -> bool:
        inbox = self._inbox
        return len(inbox) >= _INBOX_MESSAGES or sum(map(len, inbox)) >= _INBOX_BYTES

    def _resume_soon(self) -> None:
        # Once a turn, whoever asks: a second one would hand a flood a second turn.
        if not self._is_resume_due:
            self._is_resume_due = True
            self.reactor.next_turn(self._resume)

    def _resume(self) -> None:
        """Go on reading, if nothing is in the way."""
        self._is_resume_due = False
        if not self._is_paused or self._ending is not None or self.state is State.CLOSED:
            return
        if self._throttle is not None and not self._throttle.allowance():
            self._throttle.start(self._resume)
            return
        if self._worker is not None and self._is_inbox_full():
            return  # the worker will come
        self._is_paused = False
        self.keepalive.last_received = self.reactor.now
        self._start_watcher()
        if self._engine.more:
            self._receive(b"")

    def _discard_input(self) -> None:
        self._is_discarding = True
        self._inbox.clear()
        self._due.clear()
        self._read_nothing_more()
        if self._is_paused:
            self._resume_soon()  # the peer's close frame must be read

    def _read_nothing_more(self) -> None:
        if self._throttle is not None:
            self._throttle.stop()
            self._throttle = None

    def _set_state(self, state: State) -> None:
        if self.stream is not None:
            self._take_pending(self.stream)
            self.stream.is_open = False  # nothing leads back to OPEN
        super()._set_state(state)

    def hold(self, wire: Wire) -> None:
        """Queue what shares a write with its like; the hub flushes it as soon as it gets a turn."""
        if self.stream is not None:
            self._take_pending(self.stream)
        super().hold(wire)

    def _flush_due(self) -> None:
        if self.stream is not None:
            self._take_pending(self.stream)
        super()._flush_due()

    def _take_pending(self, stream: _Stream) -> None:
        """Queue the replies that the extension has, before anything else is queued or sent."""
        pending = stream.take_pending()
        if pending is not None:
            self.outbox.hold(pending)

    def tick(self, now: float) -> float:
        """Act on what is due; when to look again. In the hub."""
        self._run_soon()  # should there have been no memory to ask for it
        if self.state is _CLOSED:
            return now + 1.0
        self._catch_up()
        if not self._is_paused and self._ending is None and not self._watcher.active:
            self._start_watcher()  # gevent stops one whose callback has raised
        keepalive = self.keepalive
        # Not where only the next turn is awaited: so does a flood of pings, and is no message.
        if self._is_paused and not self._is_resume_due:
            keepalive.hold(now)
        elif self._worker is not None or self._receiver.is_busy() or self._is_data_waiting():
            keepalive.last_message = now  # nobody is idle: we are at work, or the peer reads
        return super().tick(now)

    def _catch_up(self) -> None:
        """The keepalive learns what the extension has seen."""
        stream, keepalive = self.stream, self.keepalive
        if stream is not None:
            keepalive.last_received = max(keepalive.last_received, stream.last_received)
            keepalive.last_message = max(keepalive.last_message, stream.last_message)

    def _look(self) -> None:
        super()._look()
        self._catch_up()

    def worked(self) -> None:
        """A callback has ended: from now on the peer may be idle."""
        self.keepalive.last_message = self.reactor.now

    # -- callbacks, in a worker ---------------------------------------------------------------

    def _run(self, worker: Worker, is_turn_over: bool = False) -> None:
        """Run what is due, in order; callbacks may block here."""
        if self._worker is not None:
            return  # another worker is at it and will see what this one was called for
        self._worker = worker
        worker.deadline = math.inf  # but for what the receiver calls
        try:
            if is_turn_over:
                self.reactor.pause()
            elif worker.is_alone():
                self._run_callbacks(worker)
        except Exception as exc:
            self.broken(exc)
        finally:
            self._worker = None
            self.worked()
            if self._is_paused:
                self._resume_soon()
            # By another worker: who has blocked may get a time-out that was left running.
            self._run_soon()

    def _run_soon(self) -> None:
        if self._worker is None and self._is_anything_due():
            self.reactor.pool.submit(self._run)

    def _run_callbacks(self, worker: Worker) -> None:
        """The same, as long as nobody can have kept the worker's greenlet."""
        inbox, due = self._inbox, self._due
        if not self._is_opened:
            self._is_opened = True
            self._receiver.opened(worker)
            self.outbox.flush()
            if not worker.is_alone():
                return
        while inbox or due:
            if not due:
                # Not in a method of its own: 2 % of an echo.
                due += inbox[::-1]
                inbox.clear()
                self._metrics.messages_received += len(due)
                if self._is_paused:
                    self._resume_soon()
            self._receiver.received(due, worker)
            if due:
                self.reactor.pause()  # their turn is over
                return
            if self.outbox.size:
                self.outbox.flush()
            if inbox and not worker.is_alone():
                return
        if self._ending is not None and self.state is _OPEN:
            self._answer_ending(self._ending)
        if self.state is not _OPEN and worker.is_alone():
            self._tell_end(worker)

    def _is_anything_due(self) -> bool:
        if self.state is _CLOSED:
            return self._receiver is not NOBODY
        is_ending = self._ending is not None and not self._has_told_end
        return bool(self._inbox or self._due or is_ending or not self._is_opened)

    def _tell_end(self, worker: Worker) -> None:
        """`closed` as soon as the end is known; `gone` when the socket has ended too."""
        is_known = self._ending is not None or self.state is _CLOSED
        if is_known and not self._has_told_end:
            self._has_told_end = True
            if self.stream is not None:
                self.stream.stop()
            self._tell_lost_replies()
            self._receiver.closed(worker)
        if self.state is _CLOSED:
            receiver, self._receiver = self._receiver, NOBODY
            self.reactor.forget(self)
            receiver.gone()

    def reply(self, wire: Wire) -> None:
        """Send what a callback returned, from its worker. May block for room; raises nothing."""
        if self.state is not _OPEN:
            self.reply_lost()
            return
        if self.outbox.size >= self._settings.send_queue_size:
            try:
                self._make_room(wait=True)
            except (ConnectionClosed, SlowConsumerError):
                self.reply_lost()
                return
        self.keepalive.last_message = self.reactor.now
        self._metrics.messages_sent += 1
        if self.is_traced:
            self._trace_sent(wire)
        if not self._due:
            self.outbox.write(wire)
        elif self._is_flush_due and self.stream is None:
            self.outbox.hold(wire)  # what `hold` would do: 8 % of sixteen at once
        else:
            self.hold(wire)

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
