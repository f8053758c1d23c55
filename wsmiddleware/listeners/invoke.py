"""How a connection's callbacks run: context, deadline, replies, errors."""

from __future__ import annotations

import math
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError, text_of
from wsmiddleware.flask import Scope
from wsmiddleware.listeners.decoding import Decoding
from wsmiddleware.listeners.hints import hint_for
from wsmiddleware.listeners.instance import Instance
from wsmiddleware.listeners.scope import Inside, describe
from wsmiddleware.log import log as _log
from wsmiddleware.net.pool import CallbackStopped

if TYPE_CHECKING:
    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.channel import Channel
    from wsmiddleware.listeners.clients import WsClient
    from wsmiddleware.listeners.edges import Edge
    from wsmiddleware.net.connection import Connection
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.receiver import Due

__all__ = ["Member"]


class Member(Instance):
    """One connection of a channel: its listener and how that one's callbacks are run.

    Is the connection's receiver: `opened`, `received` and `closed` run in a worker, one at a time.
    An `Instance` itself: to make one for each of 5,000 would be 3 ms of `websocket_info()`.
    """

    __slots__ = (
        "_async_worker",
        "_callbacks",
        "_channel",
        "_context",
        "_edge",
        "_has_closed",
        "_is_in_grace",
        "_opened_at",
        "_scope",
        "_telling",
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
        super().__init__(listener, wsclient.session, wsclient, connection)
        self._channel = channel
        self._context = context
        self._scope = scope
        self._edge: Edge | None = None
        self._async_worker: Worker | None = None
        #: The connection has closed, and what is left of `on_open_async` has its last seconds.
        self._is_in_grace = False
        #: Set when `on_error` has been told of `on_open_async`; there while it waits for that.
        self._telling: Event | None = None
        #: `on_close` has begun, or would have: no other callback begins.
        self._has_closed = False
        self._opened_at = time.monotonic()
        # Callbacks could meet: `on_error` for `on_open_async` waits until no other one runs.
        can_meet = channel.contract.callbacks >= {"on_open_async", "on_error"}
        #: The listener as its callbacks are called, but for `on_open_async`.
        self._callbacks = self._inside(BoundedSemaphore(1) if can_meet else None)

    def list(self) -> None:
        """Count and list the connection as open; what it receives waits until it is started."""
        self._edge = self._channel.add(self)
        session = self.wsclient.session
        _log.info(
            "%s: open, channel %s, %s", session.id, self._channel.name, session.remote_address
        )

    def opened(self, worker: Worker) -> None:
        """Run `on_open` and, beside it, `on_open_async`."""
        contract = self._channel.contract
        self._serve()
        edge, self._edge = self._edge, None
        if edge is not None:
            edge.entered.wait()
        if "on_open_async" in contract.callbacks:
            self.connection.reactor.pool.submit(self._run_async)
        if "on_open" in contract.callbacks:
            self._call(self._callbacks, self._context, worker, "on_open")

    def _inside(self, turn: BoundedSemaphore | None) -> Any:
        """The listener as its callbacks are called: itself, where there is nothing around it."""
        listener, scope = self.component, self._scope
        return listener if scope is turn is None else Inside(listener, scope, turn)

    def _serve(self) -> None:
        contract, loads = self._channel.contract, self._channel.loads
        callbacks = self._callbacks
        if loads is not None:
            callbacks = Decoding(callbacks, loads, is_told="on_error" in contract.callbacks)
        self.connection.serve_for(
            self,
            callbacks,
            self.wsclient,
            self._context,
            contract.text_callback,
            contract.binary_callback,
            self._channel.settings.request_timeout,
        )

    def _run_async(self, worker: Worker) -> None:
        if not self.wsclient.is_open():
            return
        self._async_worker = worker
        try:
            # A copy of the context: the other callbacks run in the original at the same time.
            self._call(self._inside(None), self._context.copy(), worker, "on_open_async")
        finally:
            self._async_worker = None
            self.connection.worked()
            # From now on none can meet another. Once it is not open, it may not be served any more.
            self._callbacks = self._inside(None)
            if self.wsclient.is_open():
                self._serve()

    def is_busy(self) -> bool:
        """True while `on_open_async` runs. Any greenlet."""
        return self._async_worker is not None

    def received(self, due: Due, worker: Worker) -> None:
        """Run the callback for each message and send its reply, in order, as long as a turn is."""
        self.connection.serve(worker)

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
                self._call(self._callbacks, self._context, worker, "on_close", phrase)
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

    # -- what callbacks return and raise -------------------------------------------------------

    def _call(self, listener: Any, context: Context, worker: Worker, name: str, *args: Any) -> None:
        """Run one callback that is not for a message, and deal with its outcome."""
        worker.deadline = self.connection.reactor.now + self._channel.settings.request_timeout
        try:
            reply = context.run(getattr(listener, name), self.wsclient, *args)
        except BaseException as exc:
            self.failed(exc, worker, name, context)
        else:
            worker.rest()
            if reply is not None and name != "on_close":
                self.answer(reply, worker, name)

    def answer(self, reply: object, worker: Worker, name: str) -> None:
        """Send what callback `name` returned: not `None`."""
        try:
            wire = self.connection.encode(self._channel.to_data(reply), True)
        except BaseException as exc:
            self.failed(exc, worker, name)
        else:
            worker.rest()
            self.connection.reply(wire)

    def failed(
        self, exc: BaseException, worker: Worker, name: str, context: Context | None = None
    ) -> None:
        """Tell of what callback `name` raised: `on_error` answers it, else it is logged."""
        if isinstance(exc, KeyboardInterrupt):
            raise exc
        worker.rest()
        channel = self._channel
        channel.metrics.callback_errors[channel.name, name] += 1
        since = "its connection had closed" if self._is_in_grace else ""
        is_told = self._has_on_error_for(exc, name)
        # No second name for it: with a traceback that leads here nothing would free the two.
        exc = describe(exc, channel.listener_class, name, channel.settings, since)
        if not is_told:
            self._log_error(exc, worker, name)
            return
        self._hint(exc, name)
        told = Event()
        self._telling = told if name == "on_open_async" else self._telling
        try:
            raise exc  # so that `on_error` finds it in sys.exc_info()
        except BaseException as exc:
            context = self._context if context is None else context
            self._call(self._callbacks, context, worker, "on_error", exc)
        finally:
            told.set()
            if self._telling is told:
                self._telling = None

    def _has_on_error_for(self, exc: BaseException, name: str) -> bool:
        """`on_open_async` has its own end: behind `on_close` or past its grace the log tells."""
        if name == "on_open_async":
            is_out_of_grace = self._is_in_grace and isinstance(exc, CallbackStopped)
            if is_out_of_grace or self._has_closed:
                return False
        return name != "on_error" and "on_error" in self._channel.contract.callbacks

    def _hint(self, error: BaseException, name: str) -> None:
        hint = hint_for(error, name, has_context=self._scope is not None)
        if hint:
            where = f"{self._channel.listener_class.__name__}.{name}"
            _log.warning("%s: %s raised %s%s", self.wsclient.id, where, _name(error), hint)

    def _log_error(self, error: BaseException, worker: Worker, name: str) -> None:
        """Log what nobody else is told of; with ``debug`` the client is."""
        channel = self._channel
        where = f"{channel.listener_class.__name__}.{name}"
        if isinstance(error, (ConnectionClosed, SlowConsumerError)) and not self.wsclient.is_open():
            # It spoke to a client that has just gone: the everyday end of a connection.
            _log.debug("%s: %s: %s", self.wsclient.id, where, error)
            return
        text = f"{_name(error)}{hint_for(error, name, has_context=self._scope is not None)}"
        _log.error("%s: %s raised %s", self.wsclient.id, where, text, exc_info=error)
        if name not in ("on_error", "on_close") and channel.settings.debug:
            report = {"error": {"type": type(error).__name__, "message": text_of(error)}}
            self.answer(report, worker, "on_error")


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
