"""How a connection's callbacks run: context, deadline, replies, errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from wsmiddleware.exceptions import ConnectionClosed, RequestTimeout, SlowConsumerError, text_of
from wsmiddleware.listeners.clients import to_data
from wsmiddleware.listeners.hints import hint_for
from wsmiddleware.listeners.instance import Instance
from wsmiddleware.log import log as _log
from wsmiddleware.net.pool import CallbackStopped
from wsmiddleware.net.receiver import TURN, Due

if TYPE_CHECKING:
    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.channel import Channel
    from wsmiddleware.listeners.clients import WsClient
    from wsmiddleware.listeners.edges import Edge
    from wsmiddleware.net.connection import Connection
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.protocol.frames import Wire

__all__ = ["Member", "Scope", "describe", "run_callback"]

#: Gives what a connection's callbacks run inside: an application's context, anew for each.
Scope = Callable[[], AbstractContextManager[object]]


def run_callback(
    context: Context, scope: Scope | None, callback: Callable[..., Any], *args: Any
) -> Any:
    """Run user code in `context`, and inside what `scope` gives (an application's context)."""
    if scope is None:
        return context.run(callback, *args)
    return context.run(_run_in_scope, scope, callback, args)


def _run_in_scope(scope: Scope, callback: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with scope():
        return callback(*args)


def describe(
    exc: BaseException, channel: Channel, name: str, grace_since: str = ""
) -> BaseException:
    """What `on_error` and the log get for what a callback raised.

    `grace_since` is what has cut its time short, if anything has.
    """
    if not isinstance(exc, CallbackStopped):
        return exc
    where, settings = f"{channel.listener_class.__name__}.{name}", channel.settings
    limit = f"request_timeout ({settings.request_timeout:g} s)"
    if grace_since:
        limit = f"grace_period ({settings.grace_period:g} s) after {grace_since}"
    error = RequestTimeout(f"{where} was stopped: it ran past {limit}")
    return error.with_traceback(exc.__traceback__)


class Member(Instance):
    """One connection of a channel: its listener and how that one's callbacks are run.

    Is the connection's receiver: `opened`, `received` and `closed` run in a worker, one at a time.
    An `Instance` itself: to make one for each of 5,000 would be 3 ms of `websocket_info()`.
    """

    __slots__ = (
        "_async_worker",
        "_channel",
        "_context",
        "_edge",
        "_has_closed",
        "_is_in_grace",
        "_opened_at",
        "_scope",
        "_telling",
        "_timeout",
        "_turn",
        "connection",
        "stream",
        "wsclient",
    )

    def __init__(
        self,
        channel: Channel,
        connection: Connection,
        listener: WebSocketListener,
        wsclient: WsClient,
        context: Context,
        scope: Scope | None,
    ) -> None:
        super().__init__(listener, wsclient.session)
        self.connection = connection
        #: Its own: a broadcast asks each member for it.
        self.stream = connection.stream
        self.wsclient = wsclient
        self._channel = channel
        self._context = context
        self._scope = scope
        self._timeout = channel.settings.request_timeout
        self._edge: Edge | None = None
        self._async_worker: Worker | None = None
        #: The connection has closed, and what is left of `on_open_async` has its last seconds.
        self._is_in_grace = False
        #: Set when `on_error` has been told of `on_open_async`; there while it waits for that.
        self._telling: Event | None = None
        #: `on_close` has begun, or would have: no other callback begins.
        self._has_closed = False
        self._opened_at = time.monotonic()
        # Only where callbacks could meet: `on_error` for `on_open_async` waits for its turn.
        self._turn: BoundedSemaphore | None = None
        if channel.contract.callbacks >= {"on_open_async", "on_error"}:
            self._turn = BoundedSemaphore(1)

    def list(self) -> None:
        """Count and list the connection as open; what it receives waits until it is started."""
        self._edge = self._channel.add(self)
        session = self.wsclient.session
        _log.info(
            "%s: open, channel %s, %s", session.id, self._channel.name, session.remote_address
        )

    def opened(self, worker: Worker) -> None:
        """Run `on_open` and, beside it, `on_open_async`."""
        stream, contract = self.stream, self._channel.contract
        if stream is not None and self._turn is None and self._scope is None:
            stream.serve_for(
                self, self.component, self.wsclient, self._context, contract.text_callback,
                contract.binary_callback, self._timeout,
            )  # fmt: skip
        edge, self._edge = self._edge, None
        if edge is not None:
            edge.entered.wait()
        if "on_open_async" in contract.callbacks:
            self.connection.reactor.pool.submit(self._run_async)
        if "on_open" in contract.callbacks:
            self._send(self._call_in_turn(worker, self._context, "on_open", self.wsclient))

    def _run_async(self, worker: Worker) -> None:
        if not self.wsclient.is_open():
            return
        self._async_worker = worker
        # A copy of the context: the other callbacks run in the original at the same time.
        context = self._context.copy()
        try:
            self._send(self._call(worker, context, "on_open_async", self.wsclient))
        finally:
            self._async_worker = None
            self.connection.worked()

    def is_busy(self) -> bool:
        """True while `on_open_async` runs. Any greenlet."""
        return self._async_worker is not None

    def received(self, due: Due, worker: Worker) -> None:
        """Run the callback for each message and send its reply, in order, as long as a turn is."""
        if self._turn is not None or self._scope is not None:
            self._receive_in_turn(due, worker)
        elif self.stream is None:
            self._receive(due, worker)
        else:
            # The same by the C extension, but for what it leaves to `answer` and `failed`.
            self.stream.serve(worker)

    def answer(self, reply: object, worker: Worker, name: str) -> None:
        """Send what callback `name` returned: no `str` or `bytes`, or there is no room for it."""
        try:
            wire = self.connection.encode(to_data(reply), True)
        except BaseException as exc:
            self.failed(exc, worker, name)
            return
        worker.rest()
        self.connection.reply(wire)

    def failed(self, exc: BaseException, worker: Worker, name: str) -> None:
        """Tell of what callback `name` raised, and answer with what `on_error` returns."""
        try:
            raise exc  # so that `on_error` finds it in sys.exc_info()
        except BaseException as exc:
            wire = self._raised(exc, worker, self._context, name)
        if wire is not None:
            self.connection.reply(wire)

    def _receive_in_turn(self, due: Due, worker: Worker) -> None:
        contract = self._channel.contract
        ends = time.perf_counter() + TURN
        while due:
            message = due.pop()
            name = contract.binary_callback if type(message) is bytes else contract.text_callback
            if name:
                wire = self._call_in_turn(worker, self._context, name, self.wsclient, message)
                if wire is not None:
                    self.connection.reply(wire)
            if due and (time.perf_counter() > ends or not worker.is_alone()):
                return

    def _receive(self, due: Due, worker: Worker) -> None:
        # `_call` for the everyday case: of sixteen messages at once a quarter.
        connection, context, wsclient = self.connection, self._context, self.wsclient
        reactor, encode, run = connection.reactor, connection.encode, context.run
        contract = self._channel.contract
        text_name, binary_name = contract.text_callback, contract.binary_callback
        ends = time.perf_counter() + TURN
        while due:
            message = due.pop()
            name = binary_name if type(message) is bytes else text_name
            if not name:
                continue
            worker.deadline = reactor.now + self._timeout
            try:
                reply = run(getattr(self.component, name), wsclient, message)
                if reply is None:
                    wire = None
                else:
                    wire = encode(reply if type(reply) is str else to_data(reply), True)
            except BaseException as exc:
                wire = self._raised(exc, worker, context, name)
            worker.rest()
            if wire is not None:
                connection.reply(wire)
            if due and (time.perf_counter() > ends or not worker.is_alone()):
                return

    def unlist(self) -> None:
        """The connection is no longer open. Any greenlet; never blocks."""
        reactor, worker = self.connection.reactor, self._async_worker
        # Without a deadline it only waits for its turn to tell of an error.
        if worker is not None and worker.deadline < math.inf:
            grace = reactor.now + self._channel.settings.grace_period
            if grace < worker.deadline:
                worker.deadline = grace
                self._is_in_grace = True
        self._channel.remove(self)

    def forked(self) -> None:
        """The parent's connections are none of this forked child's channel."""
        self._channel.forked()

    def closed(self, worker: Worker) -> None:
        """Run `on_close`, the last callback."""
        try:
            if self._telling is not None:
                self._telling.wait()  # that came first
            self._has_closed = True
            if "on_close" in self._channel.contract.callbacks:
                phrase = self.connection.close_reason
                self._call(worker, self._context, "on_close", self.wsclient, phrase)
            self._tell_end()
        finally:
            self._channel.finished(self)

    def gone(self) -> None:
        """The socket has ended too. Any greenlet; never blocks."""
        self._channel.gone(self)

    def _tell_end(self) -> None:
        connection, channel = self.connection, self._channel
        code = connection.close_code
        channel.metrics.closed[channel.name, code] += 1
        _log.info(
            "%s: closed, channel %s, code %d%s, reason %r, %d bytes in, %d out, %.1f s",
            self.wsclient.id,
            channel.name,
            code,
            f" (sent {connection.sent_code})" if connection.sent_code not in (0, code) else "",
            connection.close_reason,
            connection.bytes_received,
            connection.bytes_sent,
            time.monotonic() - self._opened_at,
        )

    def _call_in_turn(self, worker: Worker, context: Context, name: str, *args: Any) -> Wire | None:
        """The same as `_call`, and never beside another callback that is called by this."""
        if self._turn is None:
            return self._call(worker, context, name, *args)
        with self._turn:
            return self._call(worker, context, name, *args)

    def _call(self, worker: Worker, context: Context, name: str, *args: Any) -> Wire | None:
        """Run one callback; the wire form of what it returned, or of what `on_error` did."""
        connection, channel = self.connection, self._channel
        worker.deadline = connection.reactor.now + channel.settings.request_timeout
        try:
            callback = getattr(self.component, name)
            if self._scope is None:
                reply = context.run(callback, *args)
            else:
                reply = run_callback(context, self._scope, callback, *args)
            return None if reply is None else connection.encode(to_data(reply), True)
        except BaseException as exc:
            return self._raised(exc, worker, context, name)
        finally:
            worker.rest()

    def _raised(
        self, exc: BaseException, worker: Worker, context: Context, name: str
    ) -> Wire | None:
        if isinstance(exc, KeyboardInterrupt):
            raise exc
        worker.rest()
        channel = self._channel
        channel.metrics.callback_errors[channel.name, name] += 1
        if name == "on_open_async":
            return self._async_failed(exc, worker, context)
        error = describe(exc, channel, name)
        if name != "on_error" and "on_error" in channel.contract.callbacks:
            return self._tell(worker, context, name, error)
        return self._log_error(name, error)

    def _tell(
        self, worker: Worker, context: Context, name: str, error: BaseException
    ) -> Wire | None:
        hint = hint_for(error, name, has_context=self._scope is not None)
        if hint:
            where = f"{self._channel.listener_class.__name__}.{name}"
            _log.warning("%s: %s raised %s%s", self.wsclient.id, where, _name(error), hint)
        return self._call(worker, context, "on_error", self.wsclient, error)

    def _async_failed(self, exc: BaseException, worker: Worker, context: Context) -> Wire | None:
        """Tell of what `on_open_async` raised; behind `on_close` or past its grace the log does."""
        since = "its connection had closed" if self._is_in_grace else ""
        error = describe(exc, self._channel, "on_open_async", since)
        is_out_of_grace = self._is_in_grace and isinstance(exc, CallbackStopped)
        if self._turn is not None and not is_out_of_grace and not self._has_closed:
            self._telling = told = Event()
            try:
                with self._turn:
                    return self._tell(worker, context, "on_open_async", error)
            finally:
                told.set()
                self._telling = None
        return self._log_error("on_open_async", error)

    def _log_error(self, name: str, error: BaseException) -> Wire | None:
        """Log what nobody else is told of; what goes to the client, with ``debug``."""
        channel = self._channel
        where = f"{channel.listener_class.__name__}.{name}"
        if isinstance(error, (ConnectionClosed, SlowConsumerError)) and not self.wsclient.is_open():
            # It spoke to a client that has just gone: the everyday end of a connection.
            _log.debug("%s: %s: %s", self.wsclient.id, where, error)
            return None
        text = f"{_name(error)}{hint_for(error, name, has_context=self._scope is not None)}"
        _log.error("%s: %s raised %s", self.wsclient.id, where, text, exc_info=error)
        if name == "on_error" or not channel.settings.debug:
            return None
        report = {"error": {"type": type(error).__name__, "message": text_of(error)}}
        return self.connection.encode(to_data(report), True)

    def _send(self, wire: Wire | None) -> None:
        """Send what `on_open` or `on_open_async` returned."""
        if wire is None:
            return
        try:
            self.connection.send(wire)
        except (ConnectionClosed, SlowConsumerError):
            self.connection.reply_lost()


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
