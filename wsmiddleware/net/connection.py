"""One WebSocket connection: no greenlet while it is idle, and never two callbacks at once.

The hub reads: a watcher's callback takes what the socket has, parses all complete frames of it, and
hands the messages to a worker greenlet, which runs the callbacks in order and writes their replies
in one `send`. A worker that blocks leaves the rest in the inbox; an inbox past its limit stops the
watcher, and TCP tells the peer.

`net.stream` is what happens with an everyday message, `net.sender` what where the peer does not
read, `net.reader` how the engine reads, `net.closing` the end.

Who may call what: `send`, `close` and `is_open` from any greenlet and any native thread; everything
else belongs to the thread of the reactor.
"""

from __future__ import annotations

import contextlib
import math
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


class Connection(Reader):
    """A live connection over a transport, from the 101 to the last byte.

    More attributes than the house's twelve: each is asked for on the way of every message, or is a
    part that the connection owns.
    """

    __slots__ = (
        "_closed",
        "_has_told_end",
        "_is_opened",
        "_lost_replies",
        "closing",
        "due_step",
        "encode",
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
        self.receiver: Receiver = NOBODY
        #: There once the connection has begun to end.
        self.closing: Closing | None = None
        #: When time-outs are looked at next: the reactor's.
        self.due_step = 0
        #: What callbacks returned for a peer that had gone.
        self._lost_replies = 0
        self._is_opened = False
        self._has_told_end = False
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

    def start(self, receiver: Receiver, leftover: bytes) -> None:
        """Call `receiver` from now on; `leftover` is what came behind the handshake."""
        self.receiver = receiver
        self._is_told_of_pings = getattr(receiver, "is_told_of_pings", False)
        reactor = self.reactor
        reactor.watch(self, self._due_at())
        self._watcher = reactor.loop.io(self._transport.fileno(), _READ)
        reactor.pool.submit(self.work)
        reactor.loop.run_callback(self._start_reading, leftover)

    # -- callbacks, in a worker ---------------------------------------------------------------

    def work(self, worker: Worker, is_slice_over: bool = False) -> None:
        """Run what is to be done, in order; callbacks may block here."""
        if self.worker is not None:
            return  # another worker is at it and will see what this one was called for
        self.worker = worker
        worker.deadline = math.inf  # but for what the receiver calls
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
                self.reactor.wait_for_turn()  # their turn is over
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

    # -- the outbox tells ---------------------------------------------------------------------

    def drained(self) -> None:
        """Nothing waits any more."""
        if self.closing is not None and not self.is_open:
            self.closing.frame_sent()
        else:
            self.answer_waiting_ping()

    def moved(self) -> None:
        """The peer takes what waits for it, so it is alive, if slow."""
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
            self.discard_input()
            self._begin_to_end().send(code, reason, patience)

    def peer_ended(self, ending: Close | Fail) -> None:
        """The last that comes of the peer: its close frame, or a violation of the protocol."""
        self._begin_to_end().peer_ended(ending)

    def _begin_to_end(self) -> Closing:
        if self.closing is None:
            self.closing = Closing(self)
        return self.closing

    def broken(self, exc: BaseException) -> None:
        """A fault of ours, or no memory: nobody knows where in the stream we are."""
        _log.error("%s: internal error, please report it", self.name, exc_info=exc)
        self.abort()

    def abort(self) -> None:
        """Drop the connection without a closing handshake, and what it has received."""
        self.discard_input()
        self.end()

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
            self.stop_throttle()
        finally:
            with contextlib.suppress(OSError):
                self._transport.close()
            # Looked at until `work` has called the last callback, should that be in vain.
            self.reactor.pool.submit(self.work)

    def forked(self) -> None:
        """In a forked child: nothing comes or goes here any more, and nobody is told."""
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
        """Act on what is due; when to look again. In the hub."""
        self._work_soon()  # should there have been no memory to ask for it
        if self.is_closed:
            return now + 1.0
        if not self.is_paused and not self.is_ending and not self._watcher.active:
            self._watcher.start(self.receive)  # gevent stops one whose callback has raised
        # Not where only the next turn is awaited: so does a flood of pings, and is no message.
        if self.is_paused and not self._is_resume_due:
            self.last_received = self.last_message = now
        elif self.worker is not None or self.receiver.is_busy() or self.is_data_waiting():
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
        self.outbox.retry()
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
                self.write_control(Opcode.PING, b"")
        elif verdict is Verdict.IDLE:
            self.start_closing(CloseCode.GOING_AWAY, "idle")
        elif verdict is Verdict.DEAD:
            _log.info("%s: no answer to a ping: closing", self.name)
            self.start_closing(CloseCode.INTERNAL_ERROR, "ping timeout")
            self.end()

    def _judge(self, now: float) -> Verdict:
        return self.keepalive.check(now, self.last_received, self.last_message)
