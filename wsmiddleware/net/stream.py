"""The everyday of a connection: a message is read, handed to its callback, and answered.

`Stream` and `Ready` are written twice: here, to be read, and in the C extension (`_extension/`).
Where the extension is in use its types replace these. Names and behaviour are the same; one set of
tests runs over both. `Connection` derives from `Stream` and does what is not everyday; `Reactor`
derives from `Ready`.

The extension does itself what these classes leave to others: it reads whole frames (all rules are
in `protocol.engine`), sends replies that are `str` or `bytes` (here `Connection.reply`), and runs
many streams in one task of the pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from wsmiddleware import speedups

if TYPE_CHECKING:
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.outbox import Outbox
    from wsmiddleware.net.pool import Worker, WorkerPool
    from wsmiddleware.net.receiver import Due
    from wsmiddleware.protocol.frames import Wire
    from wsmiddleware.protocol.prepared import PreparedMessage

__all__ = ["Answering", "Ready", "Stream", "deliver"]


class Answering(Protocol):
    """Handles what is not everyday about a callback that `Stream.serve` has run."""

    def answer(self, reply: object, worker: Worker, name: str) -> None:
        """Send `reply`, which callback `name` returned: not `None`, `str` or `bytes`. May block."""

    def failed(self, exc: BaseException, worker: Worker, name: str) -> None:
        """Report what callback `name` raised. May block."""


class Ready:
    """What all streams of one loop share: the pool of workers, and `now`, the time in seconds."""

    __slots__ = ("now", "pool")

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.now = 0.0

    def resubmit(self) -> None:
        """Ask again for a worker where asking failed for lack of memory. Called by the clock."""


class Stream:
    """One connection: reading, serving and sending everyday messages. For its reactor's thread.

    `fd` is the socket's descriptor, or -1 where the extension may neither read nor write it: TLS, a
    trace, a message rate, clients. `max_size` bounds a message, `mark` the outbox, both in bytes.
    `time_slice`, in seconds, is how long callbacks of one connection run before others are served.
    `window_bits` is the window of the agreed compression, 0 without one.
    """

    __slots__ = (
        "_callbacks",
        "_time_slice",
        "_timeout",
        "bytes_received",
        "bytes_written",
        "due",
        "inbox",
        "is_ending",
        "is_engines",
        "is_flush_due",
        "is_open",
        "is_paused",
        "last_message",
        "last_received",
        "metrics",
        "outbox",
        "reactor",
        "window_bits",
        "worker",
    )

    if TYPE_CHECKING:
        # What `Connection` adds.
        encode: Callable[[Any, bool], Wire]

        def read(self) -> None: ...
        def reply(self, wire: Wire) -> None: ...
        def work(self, worker: Worker) -> None: ...

    def __init__(
        self,
        reactor: Ready,
        outbox: Outbox,
        metrics: Metrics,
        fd: int,
        max_size: int,
        mark: int,
        time_slice: float,
        window_bits: int,
    ) -> None:
        self.reactor: Any = reactor
        #: What waits to be sent.
        self.outbox = outbox
        self.metrics = metrics
        #: Messages that wait for a worker; and, in reverse order, those that the worker is at.
        self.inbox: list[Any] = []
        self.due: Due = []
        #: The worker that runs this connection's callbacks now.
        self.worker: Worker | None = None
        self.window_bits = window_bits
        #: Bytes received, and bytes sent without the outbox.
        self.bytes_received = self.bytes_written = 0
        #: When bytes came last, and when a message came or went last, in the reactor's time.
        self.last_received = self.last_message = reactor.now
        #: False once nothing may be sent.
        self.is_open = True
        #: The engine is in the middle of a message and gets all input. Here it always gets it.
        self.is_engines = False
        #: Reading has paused: input stays in the socket.
        self.is_paused = False
        #: The peer's close frame, or a violation, has come: nothing is read any more.
        self.is_ending = False
        #: The hub has been asked to flush the outbox.
        self.is_flush_due = False
        self._time_slice = time_slice
        self._callbacks: tuple[Any, ...] | None = None

    # -- reading ------------------------------------------------------------------------------

    def receive(self) -> None:
        """Receive once, without waiting, and ask for a worker: a watcher's callback, in the hub."""
        self.read()

    def make_ready(self) -> None:
        """Ask for a worker that does what is to be done. Never blocks."""
        self.reactor.pool.submit(self.work)

    # -- serving ------------------------------------------------------------------------------

    def serve_for(
        self,
        member: Answering,
        listener: object,
        client: object,
        context: Context,
        text_name: str,
        binary_name: str,
        timeout: float,
    ) -> None:
        """Run these callbacks of `listener` in `context`; an empty name is no callback.

        Each gets `client` and the message, and may run for `timeout` seconds.
        """
        self._callbacks = member, listener, client, context.run, text_name, binary_name
        self._timeout = timeout

    def stop(self) -> None:
        """Drop the references that `serve_for` was given. Not while `serve` runs."""
        self._callbacks = None

    def serve(self, worker: Worker) -> None:
        """Run the callback for each message that is due and send its reply, for one time slice.

        Other replies go to the member's `answer`, exceptions to its `failed`. In a worker; may
        block. Raises `RuntimeError` before `serve_for`, and what those two raise.
        """
        if self._callbacks is None:
            raise RuntimeError("serve() before serve_for()")
        member, listener, client, run, text_name, binary_name = self._callbacks
        due, reactor, encode = self.due, self.reactor, self.encode
        ends = time.perf_counter() + self._time_slice
        while due:
            message = due.pop()
            name = binary_name if type(message) is bytes else text_name
            if not name:
                continue
            worker.deadline = reactor.now + self._timeout
            try:
                reply = run(getattr(listener, name), client, message)
                is_plain = type(reply) is str or type(reply) is bytes
                wire = encode(reply, True) if is_plain else None
            except BaseException as exc:
                member.failed(exc, worker, name)
            else:
                worker.rest()
                if wire is not None:
                    self.reply(wire)
                elif reply is not None:
                    member.answer(reply, worker, name)
            if due and (time.perf_counter() > ends or not worker.is_alone()):
                return

    # -- sending ------------------------------------------------------------------------------

    def enqueue_pending(self) -> None:
        """Move replies that share a write to the outbox: here they are there already."""


def deliver(members: Iterable[Any], prepared: PreparedMessage) -> None:
    """Send a `PreparedMessage` to the ``connection`` of each of `members`: a broadcast's local end.

    In the thread of their reactor. Never blocks: a client whose outbox is past its mark is treated
    as ``slow_consumer`` says. Raises what `PreparedMessage.wire` raises.
    """
    for member in members:
        connection = member.connection
        wire = prepared.wire(connection.window_bits)  # what cannot be sent is the caller's mistake
        try:
            connection.try_send(wire)
        except BaseException as exc:
            connection.broken(exc)  # no memory, for one: the others get theirs
            if not isinstance(exc, Exception):
                raise  # Ctrl-C belongs to the main greenlet


if speedups.Stream is not None and speedups.Ready is not None and speedups.deliver is not None:
    Stream, Ready = speedups.Stream, speedups.Ready  # type: ignore[misc, assignment]
    deliver = speedups.deliver  # type: ignore[assignment]
