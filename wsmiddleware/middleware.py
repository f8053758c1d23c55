"""`WebSocketMiddleware`: the whole story of a request, from the environ to a live connection.

::

    app.wsgi_app = WebSocketMiddleware(app.wsgi_app)

wraps any WSGI callable. Requests outside the prefix reach it untouched; a WebSocket handshake on
``<prefix>/<channel>`` becomes a connection of that channel. Settings are keywords, variables or
``websocket.json`` (see `wsmiddleware.settings`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import gevent
from gevent.event import Event
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from wsmiddleware import info, policy, upgrade
from wsmiddleware.config import load_settings
from wsmiddleware.exceptions import ConfigError, ListenerError
from wsmiddleware.listeners import loader
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.clients import WsClient
from wsmiddleware.listeners.edges import Scope
from wsmiddleware.listeners.invoke import Member, run_callback
from wsmiddleware.listeners.session import RequestRecord, Session
from wsmiddleware.log import set_up_logging
from wsmiddleware.metrics import Metrics
from wsmiddleware.net.connection import NOBODY, Connection, Receiver
from wsmiddleware.net.reactor import Reactor
from wsmiddleware.net.transport import Transport
from wsmiddleware.policy import Refusal, refuse
from wsmiddleware.protocol.engine import Engine
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.registry import Registry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["WebSocketMiddleware"]

_log = logging.getLogger("websocket")

L = TypeVar("L", bound=type[WebSocketListener])
RequestContext = Callable[[dict[str, Any]], AbstractContextManager[object]]


class WebSocketMiddleware:
    """Wraps a WSGI application and serves WebSockets beside it.

    `listeners` is the directory of the listener files (the setting ``directory``), `prefix` where
    the channels are in the URL, `config` the path of the settings' file (`False`: no file),
    `request_context` what makes an application's context of an environ (Flask's
    ``app.request_context``), in which callbacks then run. The rest are settings by keyword.

    Everything loads here: `ConfigError` and `ListenerError` name what is wrong. Sockets, greenlets
    and timers are made at the first connection, after any fork.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        listeners: str | os.PathLike[str] | None = None,
        prefix: str = "/ws",
        config: str | os.PathLike[str] | Literal[False] | None = None,
        request_context: RequestContext | None = None,
        **settings: Any,
    ) -> None:
        if not callable(app):
            raise ConfigError(f"app is {app!r}; valid is a WSGI callable")
        if not prefix.startswith("/") or not prefix.strip("/"):
            raise ConfigError(f'prefix is {prefix!r}; valid is a path as "/ws"')
        set_up_logging()
        self.app = app
        self.prefix = prefix.rstrip("/")
        self.settings = load_settings(config, {"listeners": listeners, **settings})
        self.metrics = Metrics()
        self.registry = Registry(self.settings, self.metrics)
        self._request_context = request_context
        self._urls = Map(strict_slashes=False, merge_slashes=False, redirect_defaults=False)
        self._reactor: Reactor | None = None
        self._has_warned = False
        directory = self.settings.directory
        if directory is not None and directory.is_dir():
            for name, listener_class in loader.load_directory(directory).items():
                self.register(name, listener_class)
        info.add(self)
        if upgrade.is_stock_worker():
            _log.warning(
                "gevent-websocket's own gunicorn worker cannot drain: at SIGTERM clients are cut "
                "off with 1006 after its whole grace period, and refusals come after the 101. "
                "Run gunicorn with -k wsmiddleware.gunicorn.GeventWebSocketWorker instead"
            )

    def register(self, channel: str, listener_class: type[WebSocketListener]) -> None:
        """Serve a class as a channel, beside those of the directory.

        `ListenerError` for a name or a class that cannot be one, or is taken.
        """
        registered = self.registry.add(channel, listener_class)
        try:
            self._urls.add(Rule(f"{self.prefix}/{channel}{registered.route}", endpoint=channel))
        except (ValueError, LookupError) as exc:
            del self.registry.channels[channel]
            raise ListenerError(
                f"channel {channel}: {listener_class.__name__}.path is {registered.route!r}, "
                f"which werkzeug's routing does not take: {exc}"
            ) from exc

    def listener(self, channel: str) -> Callable[[L], L]:
        """A decorator that registers a class: ``@middleware.listener("chat")``."""

        def register(listener_class: L) -> L:
            self.register(channel, listener_class)
            return listener_class

        return register

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI: take over what is below the prefix, pass on the rest."""
        if not environ.get("PATH_INFO", "").startswith(self.prefix + "/"):
            return self.app(environ, start_response)
        capability = upgrade.find_upgrade(environ)
        decision = self._decide(environ, capability)
        if isinstance(decision, Refusal):
            self._note(environ, decision)
            if capability is None or capability.speaks_first:
                return decision.response(environ, start_response)
            self._close_refused(capability, decision)
        elif capability is not None:
            self._connect(capability, decision, start_response)
        return []

    # -- deciding -----------------------------------------------------------------------------

    def _decide(
        self, environ: WSGIEnvironment, capability: upgrade.Upgrade | None
    ) -> Refusal | _Decision:
        """The opening handshake: the checks of RFC 6455, section 4.2, and ours, in their order."""
        if capability is None and not upgrade.is_stock_server(environ):
            return refuse(
                501,
                "This server cannot upgrade to WebSocket: run `python -m wsmiddleware run`, or "
                "gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker.",
            )
        found = self._find_channel(environ)
        if found is None:
            return refuse(404, "No such channel.")
        refusal = (
            policy.check_request(environ)
            or policy.check_origin(environ, self.settings)
            or self._check_room()
        )
        if refusal is not None or capability is None:
            return refusal or refuse(400, "Bad handshake.")
        admitted = self._admit(*found, RequestRecord(environ))
        if isinstance(admitted, Refusal):
            return admitted
        admitted.accepted = policy.agree(
            environ, admitted.channel, self.settings, is_answered=not capability.speaks_first
        )
        # Asked again: a hook may have blocked while others came, or while we began to go down.
        return self._check_room() or admitted

    def _find_channel(self, environ: WSGIEnvironment) -> tuple[Channel, dict[str, Any]] | None:
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        try:
            name, values = self._urls.bind("").match(path, "GET")
        except HTTPException:
            return None
        return self.registry.channels[name], dict(values)

    def _check_room(self) -> Refusal | None:
        retry = {"Retry-After": "5"}
        if self.registry.is_draining:
            return refuse(503, "Going down.", retry)
        if self.registry.unfinished >= self.settings.max_connections:
            limit = self.settings.max_connections
            return refuse(503, "Too many connections.", retry, reason=f"max_connections is {limit}")
        if self._reactor is not None and not self._reactor.is_here():
            return refuse(503, "Served by another thread.", retry)
        return None

    def _admit(
        self, channel: Channel, path_parameters: dict[str, Any], record: RequestRecord
    ) -> Refusal | _Decision:
        """Ask `on_handshake`, and make the listener: user code that may refuse, block or fail."""
        context, scope = Context(), self._scope(record)
        cls = channel.listener_class
        answer: Any = True
        timer = gevent.Timeout.start_new(self.settings.request_timeout)
        try:
            hook = getattr(cls, "on_handshake", None)
            if hook is not None:
                request = Request(record.environ(), populate_request=False)
                answer = run_callback(context, scope, hook, request)
            if isinstance(answer, (Response, HTTPException)):
                return _answer(answer)
            if answer is None or answer is False:
                why = (
                    f"{cls.__name__}.on_handshake returned {answer}: it accepts with True or a user"
                )
                return refuse(403, "Not allowed.", reason=why)
            listener = run_callback(context, scope, cls)
        except HTTPException as exc:
            return _answer(exc)
        except (Exception, SystemExit, gevent.Timeout) as exc:
            if isinstance(exc, gevent.Timeout) and exc is not timer:
                raise
            _log.exception("channel %s: %s failed in a handshake", channel.name, cls.__name__)
            return refuse(500, "Internal error.", reason=f"{type(exc).__name__} in {cls.__name__}")
        finally:
            timer.close()
        principal = record.get("REMOTE_USER") if answer is True else answer
        return _Decision(
            channel,
            path_parameters,
            record,
            context,
            scope,
            listener,
            principal,
            policy.Acceptance([]),
        )

    def _scope(self, record: RequestRecord) -> Scope | None:
        make = self._request_context
        return None if make is None else lambda: make(record.environ())

    # -- connecting ---------------------------------------------------------------------------

    def _connect(
        self, capability: upgrade.Upgrade, decision: _Decision, start_response: StartResponse
    ) -> None:
        """Send the 101 and let the connection live; returns when it needs this greenlet no more."""
        channel, accepted = decision.channel, decision.accepted
        session = Session(
            decision.record,
            path_parameters=decision.path_parameters,
            subprotocol=accepted.subprotocol,
            extensions=accepted.extensions,
            user_principal=decision.principal,
        )
        transport, leftover = capability.accept(accepted.headers)
        # The response is sent; this is for middlewares around us, which want to see a status.
        start_response("101 Switching Protocols", accepted.headers)
        connection = self._make_connection(transport, session.id, accepted, channel.idle_timeout)
        session.attach(connection)
        wsclient = WsClient(channel, connection, session)
        listener = decision.listener
        listener.wsclient, listener.session, listener.channel = wsclient, session, channel.name
        member = Member(channel, connection, listener, wsclient, decision.context, decision.scope)
        member.list()
        self._start(capability, connection, member, leftover)

    def _close_refused(self, capability: upgrade.Upgrade, refusal: Refusal) -> None:
        """Refuse where the 101 has gone out already: the close code is 4000 + the HTTP status."""
        transport, leftover = capability.accept([])
        connection = self._make_connection(transport, "refused", policy.Acceptance([]), 0.0)
        self._start(capability, connection, NOBODY, leftover, refusal)

    def _make_connection(
        self, transport: Transport, name: str, accepted: policy.Acceptance, idle_timeout: float
    ) -> Connection:
        settings, agreed = self.settings, accepted.deflate
        if self._reactor is None:
            self._reactor = Reactor(self._tick_interval())
        return Connection(
            self._reactor,
            transport,
            Engine(max_message_size=settings.max_message_size, deflate=agreed),
            settings,
            self.metrics,
            name=name,
            idle_timeout=idle_timeout,
            window_bits=agreed.window_bits if agreed else 0,
        )

    def _start(
        self,
        capability: upgrade.Upgrade,
        connection: Connection,
        receiver: Receiver,
        leftover: bytes,
        refusal: Refusal | None = None,
    ) -> None:
        if capability.parks:
            connection.closed = Event()
        connection.start(receiver, leftover)
        if refusal is not None:
            connection.close(4000 + refusal.response.status_code, refusal.text[:100])
        if connection.closed is not None:
            capability.park(connection.closed)

    def _tick_interval(self) -> float:
        """How often time-outs are looked at: once a second, or as often as the shortest needs."""
        row = self.settings
        times = [row.request_timeout, row.ping_interval, row.ping_timeout, row.close_timeout]
        times += [channel.idle_timeout for channel in self.registry.channels.values()]
        return max(0.02, min(1.0, min(time for time in times if time) / 4))

    # -- going down, and telling --------------------------------------------------------------

    def shutdown(self, code: CloseCode = CloseCode.GOING_AWAY, timeout: float = 5.0) -> None:
        """Refuse new handshakes, close every client with `code`, run what is left of callbacks.

        Blocks the calling greenlet until all is done, for at most `timeout` seconds.
        """
        reason = "service restart" if code == CloseCode.SERVICE_RESTART else "going away"
        self.registry.drain(code, reason, timeout)

    @property
    def directory(self) -> Path | None:
        """The listener directory, whether it exists or not."""
        return self.settings.directory

    def _note(self, environ: WSGIEnvironment, refusal: Refusal) -> None:
        """Count a refusal and tell the operator what it was and, in `reason`, what to do."""
        status = refusal.response.status_code
        self.metrics.refused[status] += 1
        _log.log(
            logging.WARNING if status >= 500 or status == 403 else logging.INFO,
            "refused %r from %s with %d: %s",
            environ.get("PATH_INFO", ""),
            environ.get("REMOTE_ADDR", "-"),
            status,
            refusal.reason,
        )

    def __repr__(self) -> str:
        return f"<WebSocketMiddleware {self.prefix} {sorted(self.registry.channels)}>"


@dataclass(slots=True)
class _Decision:
    """A handshake that may be accepted, and what its connection needs."""

    channel: Channel
    path_parameters: dict[str, Any]
    record: RequestRecord
    context: Context
    scope: Scope | None
    listener: WebSocketListener
    principal: Any
    accepted: policy.Acceptance


def _answer(answer: Response | HTTPException) -> Refusal:
    """A hook's own refusal, as it is."""
    response: Any = answer
    if isinstance(answer, HTTPException):
        # It may hold any WSGI response, which only werkzeug's can be asked for its status.
        response = Response.force_type(answer.get_response())
    text = HTTPStatus(response.status_code).phrase
    return Refusal(response, text, f"on_handshake answered {response.status}")
