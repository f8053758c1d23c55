"""One WebSocket connection: no greenlet while it is idle, and never two callbacks at once.

The hub reads: a watcher's callback receives once, parses all complete frames, and hands the
messages to a worker greenlet. The worker runs the callbacks in order and sends their replies in one
write. While a callback blocks, further messages wait in the inbox. When that is full reading
pauses, and TCP slows the peer down.

`net.stream` handles everyday messages, `net.sender` peers that read slowly, `net.reader` input that
the engine parses, `net.closing` the end.

Who may call what: `send`, `close` and `is_open` from any greenlet and any native thread; everything
else belongs to the thread of the reactor.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent.event import Event as Flag

from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.closing import PATIENCE, Closing, State
from wsmiddleware.net.keepalive import Keepalive, Verdict
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.reader import Reader
from wsmiddleware.net.receiver import NOBODY, TIME_SLICE, Receiver
from wsmiddleware.net.transport import TcpTransport, Transport
from wsmiddleware.protocol.engine import Close, Engine, Fail
from wsmiddleware.protocol.frames import CloseCode, Opcode, close_payload
from wsmiddleware.speedups import pack

if TYPE_CHECKING:
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.settings import Settings

__all__ = ["NOBODY", "Connection", "Receiver"]

_READ = 1  # libev's EV_READ
#: The close code of a connection whose time is over (`Connection.expires_at`).
EXPIRED = 4401


class Connection(Reader):
    """A live connection over a transport, from the 101 to the last byte.

    It has more than twelve attributes: each is used for every message, or is a part that the
    connection owns.
    """

    __slots__ = (
        "_closed",
        "_has_told_end",
        "_is_opened",
        "_lost_replies",
        "closing",
        "due_step",
        "encode",
        "expires_at",
        "keepalive",
        "receiver",
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
            TIME_SLICE,
            window_bits,
            name=name,
            settings=settings,
            transport=transport,
            engine=engine,
        )
        #: The wire form of one message to this peer.
        self.encode = pack if pack is not None and engine.is_plain else engine.wire
        self.keepalive = Keepalive(idle_timeout, settings.ping_interval, settings.ping_timeout)
        #: When it is closed with `EXPIRED`, in Unix seconds.
        self.expires_at = math.inf
        self.receiver: Receiver = NOBODY
        #: The end of the connection; `None` until it begins.
        self.closing: Closing | None = None
        #: Set by the reactor: the step of its clock at which `tick` is called next.
        self.due_step = 0
        #: Replies of callbacks that came after the connection had closed.
        self._lost_replies = 0
        self._is_opened = False
        self._has_told_end = False
        #: Set at the end. Made when somebody (a parked handler) wants to wait for it.
        self._closed: Flag | None = None

    @property
    def bytes_sent(self) -> int:
        """Bytes sent so far."""
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

    def start(self, receiver: Receiver, leftover: bytes) -> None:
        """Start reading, and calling `receiver`; `leftover` is what came after the handshake."""
        self.receiver = receiver
        self._is_told_of_pings = getattr(receiver, "is_told_of_pings", False)
        reactor = self.reactor
        reactor.watch(self, self._due_at())
        self._watcher = reactor.loop.io(self._transport.fileno(), _READ)
        reactor.pool.submit(self.work)
        reactor.loop.run_callback(self._start_reading, leftover)

    # -- callbacks, in a worker ---------------------------------------------------------------

    def work(self, worker: Worker, is_slice_over: bool = False) -> None:
        """Run the callbacks that are due, in order. In a worker; may block.

        With `is_slice_over` (from C) first wait for a turn of the loop: the time slice was used up.
        """
        if self.worker is not None:
            return  # another worker runs and will do what this one was called for
        self.worker = worker
        worker.deadline = math.inf  # only the receiver's callbacks have a deadline
        try:
            if is_slice_over:
                self.reactor.wait_for_turn()
            elif worker.is_alone():
                self._run_callbacks(worker)
        except Exception as exc:
            self.broken(exc)
        finally:
            self.worker = None
            self.worked()
            if self.is_paused:
                self._resume_soon()
            # In another worker: a time-out that a callback has left running may hit this one.
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
        """Run the callbacks, as long as nobody else can have kept the worker's greenlet."""
        inbox, due = self.inbox, self.due
        if not self._is_opened:
            self._is_opened = True
            self.receiver.opened(worker)
            self.outbox.flush()
            if not worker.is_alone():
                return
        while inbox or due:
            if not due:
                # Not a method of its own: saves 2 % of 32 B, batch 1.
                due += inbox[::-1]
                inbox.clear()
                self.metrics.messages_received += len(due)
                if self.is_paused:
                    self._resume_soon()
            self.receiver.received(due, worker)
            if due:
                self.reactor.wait_for_turn()  # the time slice is over
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
        """Count a reply that came too late to be sent; one line of the log tells of all of them."""
        self._lost_replies += 1
        if self._has_told_end:
            self._tell_lost_replies()

    def _tell_lost_replies(self) -> None:
        count, self._lost_replies = self._lost_replies, 0
        if count:
            what = "1 reply" if count == 1 else f"{count} replies"
            _log.info("%s: %s lost: the connection had closed", self.name, what)

    # -- the outbox tells ---------------------------------------------------------------------

    def drained(self) -> None:
        """The outbox is empty again, after a stall."""
        if self.closing is not None and not self.is_open:
            self.closing.frame_sent()
        else:
            self.answer_waiting_ping()

    def moved(self) -> None:
        """The peer reads what waits for it: it is alive, if slow."""
        self.last_received = now = self.reactor.now
        if self.is_data_waiting():
            self.last_message = now
        if self.closing is not None:
            self.closing.moved()

    def lost(self, exc: OSError | None) -> None:
        """The stream ended (`None`) or broke."""
        if self.is_traced and not self.is_closed:
            _log.log(TRACE, "%s: end of stream (%s)", self.name, exc or "EOF")
        self.end()

    # -- the end ------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake, after what is queued. A second call does nothing.

        From any greenlet and any native thread; never blocks. Raises `ValueError` for a code or
        reason that may not be sent.
        """
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
            # Whoever closes has stopped listening: input is dropped from now on.
            self.discard_input()
            self._begin_to_end().send(code, reason, patience)

    def peer_ended(self, ending: Close | Fail) -> None:
        """Begin to end: `ending` is the peer's close frame, or its violation of the protocol."""
        self._begin_to_end().peer_ended(ending)

    def _begin_to_end(self) -> Closing:
        if self.closing is None:
            self.closing = Closing(self)
        return self.closing

    def broken(self, exc: BaseException) -> None:
        """Log an error of ours, or a lack of memory, and abort: our place in the stream is lost."""
        _log.error("%s: internal error, please report it", self.name, exc_info=exc)
        self.abort()

    def abort(self) -> None:
        """Drop the connection without a closing handshake, and what it has received."""
        self.discard_input()
        self.end()

    def shut_down(self, how: int, on_input: Callable[[], object]) -> None:
        """Shut one direction of TCP down; call `on_input` when input comes afterwards."""
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
        """Drop TCP; a worker runs the callbacks that are left. A second call does nothing."""
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
            # Before the descriptor is closed: a watcher on a closed one makes the loop spin.
            self._watcher.stop()
            self._watcher.close()
            self.outbox.close()
            self.stop_throttle()
        finally:
            with contextlib.suppress(OSError):
                self._transport.close()
            # Should this fail, `tick` asks again until `work` has called the last callback.
            self.reactor.pool.submit(self.work)

    def forked(self) -> None:
        """Let go of the connection in a forked child; no callback is called."""
        receiver, self.receiver = self.receiver, NOBODY
        self._begin_to_end().forked()
        self.is_open = False
        self.due_step = 0
        self._watcher.stop()
        self._watcher.close()
        self.enqueue_pending()
        self.outbox.abandon()
        self.stop_throttle()
        self.inbox.clear()
        self.due.clear()
        if self.worker is None:
            self.stop()
        self._transport.abandon()
        receiver.forked()

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Act on what is due; give the time of the next look. In the hub; must not block."""
        self._work_soon()  # asking earlier may have failed for lack of memory
        if self.is_closed:
            return now + 1.0
        if not self.is_paused and not self.is_ending and not self._watcher.active:
            self._watcher.start(self.receive)  # gevent stops one whose callback has raised
        # Not where reading only waits for the next turn: a flood of pings makes it do so, too.
        if self.is_paused and not self._is_resume_due:
            self.last_received = self.last_message = now
        elif self.worker is not None or self.receiver.is_busy() or self.is_data_waiting():
            self.last_message = now  # not idle: a callback runs, or the peer reads
        self.report_dropped()
        if self.closing is None:
            self._keep_alive(now)
        elif now >= self.closing.deadline:
            self._look()
            self.closing.end_if_due(now)
        return self._due_at()

    def _due_at(self) -> float:
        if self.closing is not None:
            return self.closing.deadline
        at = self.keepalive.due(self.last_received, self.last_message)
        left: float = self.expires_at - time.time()
        # By half of it: our own time stands still while the loop is held up.
        wait = left / 2 if left > 1.0 else max(0.0, left)
        return min(at, float(self.reactor.now + wait))

    def _look(self) -> None:
        """Read and write once before the clock decides that the peer is late.

        Where the loop was held up, or the process stopped, its bytes may have come long ago.
        """
        self.outbox.retry()
        read = self._watcher.callback
        if read is not None:  # else reading has paused or ended
            read()

    def set_idle_timeout(self, seconds: float) -> None:
        """Close when no message has come or gone for so long, 0 for never. From any thread."""
        self.keepalive.idle_timeout = seconds
        self.reactor.defer(self._look_again)

    def set_expiry(self, at: float) -> None:
        """Close with `EXPIRED` at that time, in Unix seconds. From any thread."""
        self.expires_at = at
        self.reactor.defer(self._look_again)

    def _look_again(self) -> None:
        if self.closing is None:
            self.reactor.watch(self, self._due_at())

    def _keep_alive(self, now: float) -> None:
        if self.expires_at <= time.time():
            self.start_closing(EXPIRED, "expired")
            return
        verdict = self._judge(now)
        if verdict in (Verdict.IDLE, Verdict.DEAD):
            self._look()
            if self.closing is not None:
                return
            verdict = self._judge(now)
        if verdict is Verdict.PING:
            # Data that waits does what a ping does: TCP has to acknowledge it.
            if not self.outbox.is_stalled:
                self.write_control(Opcode.PING, b"")
        elif verdict is Verdict.IDLE:
            self.start_closing(CloseCode.GOING_AWAY, "idle")
        elif verdict is Verdict.DEAD:
            _log.info("%s: no answer to a ping: closing", self.name)
            self.start_closing(CloseCode.INTERNAL_ERROR, "ping timeout")
            self.end()

    def _judge(self, now: float) -> Verdict:
        return self.keepalive.check(now, self.last_received, self.last_message)
