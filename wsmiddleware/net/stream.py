"""The everyday way of a message: read, handed to its callback, answered; and the state it needs.

`Stream` and `Ready` are written twice: here, to be read, and in the C extension (`_extension`),
which takes their places where it is in use. Names and behaviour are the same; one set of tests runs
over both. `Connection` derives from `Stream` and does what is not everyday, `Reactor` from `Ready`.

What the extension does itself, and Python leaves to others here: it reads whole frames (of which
`protocol.engine` has all the rules), it answers with `str` and `bytes` (`Connection.reply`), and it
runs many streams in one task of the pool.
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
    """Who gets what is not everyday of a callback that `Stream.serve` has run."""

    def answer(self, reply: object, worker: Worker, name: str) -> None:
        """Send what callback `name` returned: not `None`."""

    def failed(self, exc: BaseException, worker: Worker, name: str) -> None:
        """Tell of what callback `name` raised."""


class Ready:
    """The workers, and the time in seconds: what every stream of one loop asks for."""

    __slots__ = ("now", "pool")

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.now = 0.0

    def resubmit(self) -> None:
        """Ask for a worker again, should there have been no memory to ask: the pool's tick does."""


class Stream:
    """One connection's everyday. Belongs to the thread of its reactor.

    `fd` is -1 where the extension may neither read nor write the socket itself: under TLS, a trace,
    a rate, and for clients. `max_size` bounds a message, `mark` what may wait in the outbox, both
    in bytes; `turn` is in seconds; `window_bits` is the agreed compression's window, 0 without one.
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
        #: Messages that wait for a worker, and in reverse those that one is at.
        self.inbox: list[Any] = []
        self.due: Due = []
        #: Who runs a callback of this connection now.
        self.worker: Worker | None = None
        self.window_bits = window_bits
        #: Bytes that have come, and bytes that have gone without the outbox.
        self.bytes_received = self.bytes_written = 0
        #: When something has come, and when a message has come or gone, in the reactor's time.
        self.last_received = self.last_message = reactor.now
        #: False once nothing may be sent any more.
        self.is_open = True
        #: The engine is in the middle of something: what comes is for it, as it always is here.
        self.is_engines = False
        #: Input is left where it is for the moment.
        self.is_paused = False
        #: The last of the peer has come.
        self.is_ending = False
        #: The hub has been asked to send what shares a write.
        self.is_flush_due = False
        self._time_slice = time_slice
        self._callbacks: tuple[Any, ...] | None = None

    # -- reading ------------------------------------------------------------------------------

    def receive(self) -> None:
        """Receive once, without waiting, and have run what has come: a watcher's callback."""
        self.read()

    def make_ready(self) -> None:
        """Have a worker do what is to be done, soon."""
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
        """Let go of what `serve_for` has given. Not while it serves."""
        self._callbacks = None

    def serve(self, worker: Worker) -> None:
        """Run the callback for each message that is due and send its reply, as long as a turn is.

        What is not everyday goes to `answer` and `failed` of the member. May block.
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
        """Give the outbox the replies that were to share a write: it has them already."""


def deliver(members: Iterable[Any], prepared: PreparedMessage) -> None:
    """Send a `PreparedMessage` to the ``connection`` of each of `members`."""
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
