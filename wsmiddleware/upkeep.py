"""What keeps a client connected: dialling, what ended a connection, and the next one.

All of it belongs to the thread of the reactor; `wsmiddleware.client` is the door for everybody.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent import monkey
from gevent.event import Event
from greenlet import GreenletExit

from wsmiddleware.exceptions import (
    ConnectionClosed,
    SlowConsumerError,
    WebSocketError,
)
from wsmiddleware.listeners.notify import ErrorType, Notifier
from wsmiddleware.log import log as _log
from wsmiddleware.log import redact
from wsmiddleware.metrics import Metrics
from wsmiddleware.net.backoff import Backoff
from wsmiddleware.net.connection import Connection
from wsmiddleware.net.dial import Dialled, dial
from wsmiddleware.net.fork import forget_in_children
from wsmiddleware.net.pool import NEVER, Worker
from wsmiddleware.net.reactor import Reactor
from wsmiddleware.net.receiver import TIME_SLICE, Due
from wsmiddleware.options import ClientOptions
from wsmiddleware.protocol.engine import Engine
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.protocol.opening import Opening, Response
from wsmiddleware.protocol.uri import Target

__all__ = ["Loop", "OfflineQueue", "Upkeep", "loop_of_this_thread"]


class Loop(NamedTuple):
    """What the clients of one thread share."""

    reactor: Reactor
    metrics: Metrics


_native_local: Callable[[], Any] = monkey.get_original("threading", "local")
#: Each thread's loops, by the step of their clocks.
_loops = _native_local()


def loop_of_this_thread(step: float) -> Loop:
    """The loop for clients that need time to be told this exactly, in seconds."""
    hub = gevent.get_hub()
    if getattr(_loops, "hub", None) is not hub:
        _loops.hub, _loops.by_step = hub, {}
    by_step: dict[float, Loop] = _loops.by_step
    if step not in by_step:
        metrics = Metrics()
        by_step[step] = Loop(Reactor(step, metrics.progress), metrics)
    return by_step[step]


class OfflineQueue:
    """Messages that wait for the next connection, bounded in bytes; at least one fits."""

    __slots__ = ("_items", "_limit", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._items: deque[tuple[str | bytes, bool]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, data: str | bytes, compress: bool) -> bool:
        """Queue a message; `False` when the limit is reached."""
        if self._size >= self._limit:
            return False
        self._items.append((data, compress))
        self._size += len(data)
        return True

    def first(self) -> tuple[str | bytes, bool]:
        """The oldest message and whether it may be compressed."""
        return self._items[0]

    def drop_first(self) -> None:
        """Remove the oldest message."""
        self._size -= len(self._items.popleft()[0])

    def clear(self) -> int:
        """Remove all messages; give their number."""
        count = len(self._items)
        self._items.clear()
        self._size = 0
        return count


class Upkeep:
    """One client's connection, and the next one where it is to reconnect."""

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_backoff",
        "_is_interruptible",
        "_loop",
        "_options",
        "connection",
        "done",
        "is_ready",
        "is_stopping",
        "notifier",
        "offline",
        "response",
        "subprotocol",
        "target",
    )

    def __init__(
        self, loop: Loop, target: Target, options: ClientOptions, notifier: Notifier
    ) -> None:
        self.target = target
        self.notifier = notifier
        self.connection: Connection | None = None
        self.response: Response | None = None
        self.subprotocol: str | None = None
        #: True while messages go to the connection; else they are queued, or refused.
        self.is_ready = False
        #: True once no further connection will be made.
        self.is_stopping = False
        #: Set when no further callback will run.
        self.done = Event()
        self.offline: OfflineQueue | None = None
        self._loop = loop
        self._options = options
        self._attempts: gevent.Greenlet | None = None
        self._is_interruptible = False
        self._backoff: Backoff | None = None
        forget_in_children(self)
        if options.reconnect:
            self._backoff = Backoff(
                options.reconnect_delay, options.max_reconnect_delay, options.reconnect_attempts
            )
            if options.offline_queue_size:
                self.offline = OfflineQueue(options.offline_queue_size)

    def forked(self) -> None:
        """In a forked child: the connection is the parent's, and none follows here."""
        self.is_stopping = True
        self.is_ready = False
        if self.offline is not None:
            self.offline.clear()

    def open(self) -> None:
        """Connect for the first time; blocks. Raises `HandshakeError`."""
        self._attach(self._dial())
        self.is_ready = True

    def send(self, data: str | bytes, compress: bool) -> None:
        """Send a message, or queue it for the next connection. May block."""
        connection, offline = self.connection, self.offline
        assert connection is not None
        is_direct = self.is_ready or self.notifier.is_current()
        if is_direct or offline is None or self.is_stopping or self.done.is_set():
            try:
                connection.send(connection.encode(data, compress))
                return
            except ConnectionClosed:
                if offline is None or self.is_stopping or self.done.is_set():
                    raise
        if not offline.put(data, compress):
            raise ConnectionClosed(connection.close_code, "offline_queue_size is reached")

    def stop(self, code: int, reason: str) -> None:
        """Close for good: no reconnect. Never blocks. A second call does nothing."""
        if self.is_stopping:
            return
        self.is_stopping = True
        self.is_ready = False
        # In the hub: only there the state of the attempts is certain.
        self._loop.reactor.loop.run_callback(self._interrupt)
        if self.connection is not None:
            self.connection.close(code, reason)

    def _interrupt(self) -> None:
        """End the wait for the next attempt, or the attempt; no running callback is ended."""
        if self._attempts is not None and self._is_interruptible:
            self._attempts.throw(GreenletExit)

    # -- connections --------------------------------------------------------------------------

    def _dial(self) -> Dialled:
        options = self._options
        opening = Opening(
            self.target,
            headers=options.lines,
            subprotocols=options.subprotocols,
            compression=options.compression,
        )
        return dial(self.target, opening, options.ssl_context, options.connect_timeout)

    def _attach(self, dialled: Dialled) -> None:
        reactor, metrics = self._loop
        agreement = dialled.agreement
        engine = Engine(
            is_client=True,
            max_message_size=self._options.max_message_size,
            deflate=agreement.deflate,
        )
        self.response, self.subprotocol = dialled.response, agreement.subprotocol
        self.connection = connection = Connection(
            reactor,
            dialled.transport,
            engine,
            self._options.settings,
            metrics,
            name=self.notifier.name,
            idle_timeout=0.0,
        )
        _log.info("%s: open, %s", self.notifier.name, redact(str(self.target)))
        connection.start(_Events(self, connection, engine), dialled.leftover)

    def send_waiting(self, connection: Connection) -> None:
        """Send what waited for this connection; from then on messages go to it. May block."""
        offline = self.offline
        try:
            while offline and not self.is_stopping:
                connection.send(connection.encode(*offline.first()))
                offline.drop_first()
        except (ConnectionClosed, SlowConsumerError) as exc:
            _log.debug(
                "%s: %d messages still wait: %s", self.notifier.name, len(offline or ()), exc
            )
        else:
            self.is_ready = connection.is_open and not self.is_stopping

    def ended(self, lifetime: float) -> None:
        """The last callback of a connection has run: connect again, or end."""
        if self._backoff is None or self.is_stopping:
            self._finish()
            return
        self._backoff.succeeded(lifetime)
        self._attempts = gevent.spawn(self._reconnect)

    def _reconnect(self) -> None:
        is_attached = False
        try:
            while not (is_attached or self.is_stopping):
                is_attached = self._attempt_told()
        finally:
            if not is_attached:
                self._finish()

    def _attempt_told(self) -> bool:
        """As `_attempt`, but what that raises goes to `on_error`."""
        try:
            return self._attempt()
        except (GreenletExit, KeyboardInterrupt):
            self.is_stopping = True
            raise
        # Every exception: somebody waits for the next attempt or for the end.
        except BaseException as exc:
            self.notifier.error("connect", exc)
            return False

    def _attempt(self) -> bool:
        """Wait, then connect; `False` after the last attempt that is allowed."""
        assert self._backoff is not None
        delay = self._backoff.next()
        if delay is None:
            self.is_stopping = True
            return False
        _log.info("%s: connecting again in %.1f s", self.notifier.name, delay)
        # Only here: a callback must not be killed.
        self._is_interruptible = True
        try:
            gevent.sleep(delay)
            dialled = self._dial()
        finally:
            self._is_interruptible = False
        if self.is_stopping:
            dialled.transport.close()
            return False
        self._attach(dialled)
        return True

    def _finish(self) -> None:
        self.is_stopping = True
        count = self.offline.clear() if self.offline is not None else 0
        if count:
            assert self.connection is not None
            reason = f"{count} messages were never sent"
            self.notifier.error("general", ConnectionClosed(self.connection.close_code, reason))
        self.done.set()


class _Events:
    """The receiver of one connection of a client."""

    __slots__ = ("_connection", "_engine", "_opened_at", "_upkeep")

    #: Pings and pongs are wanted too.
    is_told_of_pings = True

    def __init__(self, upkeep: Upkeep, connection: Connection, engine: Engine) -> None:
        self._upkeep = upkeep
        self._connection = connection
        self._engine = engine
        self._opened_at = time.monotonic()

    def opened(self, worker: Worker) -> None:
        worker.deadline = NEVER
        self._upkeep.notifier.call("on_open")
        worker.rest()
        self._upkeep.send_waiting(self._connection)

    def received(self, due: Due, worker: Worker) -> None:
        ends = time.perf_counter() + TIME_SLICE
        while due:
            worker.deadline = NEVER
            self._upkeep.notifier.receive(due.pop())
            worker.rest()
            if due and (time.perf_counter() > ends or not worker.is_alone()):
                return

    def is_busy(self) -> bool:
        return False

    def unlist(self) -> None:
        self._upkeep.is_ready = False

    def gone(self) -> None:
        pass  # nobody waits for that

    def forked(self) -> None:
        """Nothing: the client itself is told."""

    def closed(self, worker: Worker) -> None:
        try:
            self._tell_end(worker)
        finally:
            # In any case: somebody waits for the next connection, or for the end.
            self._upkeep.ended(time.monotonic() - self._opened_at)

    def _tell_end(self, worker: Worker) -> None:
        upkeep, connection = self._upkeep, self._connection
        worker.deadline = NEVER
        kind, cause = ("general", None) if upkeep.is_stopping else self._diagnose()
        if cause is not None:
            data = self._engine.rejected if kind == "message" else None
            upkeep.notifier.error(kind, cause, data)
        upkeep.notifier.call("on_close")
        worker.rest()
        _log.info(
            "%s: closed, code %d%s, reason %r, %d bytes in, %d out, %.1f s",
            connection.name,
            connection.close_code,
            f" (sent {connection.sent_code})" if connection.sent_code else "",
            connection.close_reason,
            connection.bytes_received,
            connection.bytes_sent,
            time.monotonic() - self._opened_at,
        )

    def _diagnose(self) -> tuple[ErrorType, WebSocketError | None]:
        """The error of a connection that we did not end ourselves, if there was one."""
        connection = self._connection
        failure = connection.failure
        if failure is not None:
            is_text = failure.code == CloseCode.INVALID_DATA
            return "message" if is_text else "frame", ConnectionClosed(*failure)
        if connection.sent_code == CloseCode.TRY_AGAIN_LATER:
            return "general", SlowConsumerError("the server did not take what was sent to it")
        if connection.close_code != CloseCode.ABNORMAL_CLOSURE:
            return "general", None
        if connection.sent_code == CloseCode.INTERNAL_ERROR:
            reason = "the server did not answer a ping"
            return "general", ConnectionClosed(connection.close_code, reason)
        reason = "the stream ended without a close frame"
        return "unexpected", ConnectionClosed(connection.close_code, reason)
