"""`WebSocketMiddleware`: the whole story of a request, from the environ to a live connection.

::

    app.wsgi_app = WebSocketMiddleware(app.wsgi_app)

wraps any WSGI callable. A WebSocket handshake on ``<prefix>/<channel>``, or on the `url` that the
channel's class has, becomes a connection of that channel. Other requests outside the prefix reach
the application untouched. Settings are keywords, variables or
``websocket.json`` (see `wsmiddleware.settings`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from wsmiddleware import info
from wsmiddleware.admission import Admission, Admitted
from wsmiddleware.config import load_settings
from wsmiddleware.exceptions import ConfigError, ListenerError, raise_all
from wsmiddleware.flask import RequestContext
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.clients import WsClient
from wsmiddleware.listeners.invoke import Member
from wsmiddleware.listeners.session import Session
from wsmiddleware.log import log as _log
from wsmiddleware.log import set_up_logging
from wsmiddleware.metrics import Metrics
from wsmiddleware.net.connection import NOBODY, Connection
from wsmiddleware.net.transport import Transport
from wsmiddleware.policy import Acceptance, Refusal, decode_path
from wsmiddleware.protocol.engine import Engine
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.protocol.handshake import has_token
from wsmiddleware.registry import CURRENT, Registry
from wsmiddleware.settings import Settings, shorten
from wsmiddleware.upgrade import Upgrade, find_upgrade, is_stock_worker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["WebSocketMiddleware"]

L = TypeVar("L", bound=type[WebSocketListener])

# What stands for itself in a URL and in werkzeug's routing.
_PREFIX = re.compile(r"(?:/[^/\\<>?#%\s]+)+/?")


class WebSocketMiddleware:
    """Wraps a WSGI application and serves WebSockets beside it.

    `listeners` is the directory of the listener files (the setting ``directory``), `prefix` where
    the channels are in the URL, `config` the path of the settings' file (`False`: no file),
    `request_context` what makes an application's context of an environ: each callback of a
    connection, `on_handshake` included, enters one and leaves it, those of the channel's edges do
    not. With Flask's ``app.request_context`` request and session are made once a connection. The
    rest are settings by keyword.

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
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise ConfigError(f'prefix is {prefix!r}; valid is a path as "/ws" or "/api/live"')
        set_up_logging()
        self.app = app
        self.prefix = prefix.rstrip("/")
        self.settings = load_settings(config, {"listeners": listeners, **settings})
        self.metrics = Metrics()
        self.registry = Registry(self.settings, self.metrics, self.prefix)
        self._admission = Admission(self.registry, self.settings, request_context)
        #: A server runs, or has asked for something.
        self.is_serving = False
        #: `publish` has said that nobody hears it.
        self.has_warned_of_nobody = False
        self._has_warned = False
        # As PATH_INFO has it: UTF-8 read as latin-1.
        self._mount = f"{self.prefix}/".encode().decode("latin-1")
        directory = self.settings.directory
        if directory is not None and directory.is_dir():
            found = [result for _, result in self.registry.load(directory)]
            errors = [result for result in found if isinstance(result, ListenerError)]
            for error in errors:
                error.places = (directory,)
            raise_all(errors, "listeners cannot be loaded")
        info.add(self)
        if is_stock_worker():
            _log.warning(
                "gevent-websocket's own gunicorn worker cannot drain: at SIGTERM clients are cut "
                "off with 1006 after its whole grace period, and refusals come after the 101. "
                "Run gunicorn with -k wsmiddleware.gunicorn.GeventWebSocketWorker instead"
            )

    def register(self, channel: str, listener_class: type[WebSocketListener]) -> None:
        """Serve a class as a channel, beside those of the directory.

        `ListenerError` for a name or a class that cannot be one, or is taken; `ConfigError` for a
        wrong value of a setting that the class has of its own.
        """
        self.registry.add(channel, listener_class)

    def listener(self, channel: str) -> Callable[[L], L]:
        """A decorator that registers a class: ``@middleware.listener("chat")``."""

        def register(listener_class: L) -> L:
            self.register(channel, listener_class)
            return listener_class

        return register

    # -- of this middleware, where a process has several --------------------------------------

    def publish(self, channel: str, message: object, group: str | None = None) -> bool:
        """`wsmiddleware.publish` to this middleware's channel, wherever it is called."""
        return info.publish_to([self], channel, message, group)

    def channel(self, name: str) -> info.ChannelView:
        """`wsmiddleware.channel` of this middleware, wherever it is called."""
        return info.channel_of([self], name)

    def info(self, add_raw: bool = False) -> info.Info:
        """`wsmiddleware.websocket_info` of this middleware alone, wherever it is called."""
        return info.info_of([self], add_raw)

    # -- a request ----------------------------------------------------------------------------

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI: take over what is below the prefix, pass on the rest."""
        self.is_serving = True
        if not environ.get("PATH_INFO", "").startswith(self._mount) and not (
            self.registry.has_urls and self._is_at_url(environ)
        ):
            return self._pass_on(environ, start_response)
        capability = find_upgrade(environ)
        if capability is not None and not capability.speaks_first:
            self._warn_of_workers(environ)
        decision = self._admission.decide(environ, capability)
        if isinstance(decision, Admitted):
            assert capability is not None
            self._connect(capability, decision, start_response)
            return []
        self._note(environ, decision)
        if capability is not None and not capability.speaks_first:
            self._close_refused(capability, decision)
            return []
        return decision.response(environ, start_response)

    def _pass_on(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application; within it `publish` and its like mean this middleware."""
        if info.is_alone():
            return self.app(environ, start_response)
        token = self.registry.enter()
        try:
            body = self.app(environ, start_response)
        finally:
            CURRENT.reset(token)
        wrapper = environ.get("wsgi.file_wrapper")
        is_file = isinstance(wrapper, type) and isinstance(body, wrapper)
        return body if is_file or isinstance(body, (list, tuple)) else _Body(body, self.registry)

    def _is_at_url(self, environ: WSGIEnvironment) -> bool:
        """True for a handshake, whole or cut by a proxy, at a class's own `url`.

        A plain request there is the application's: a page and its socket may have one URL.
        """
        is_handshake = "HTTP_SEC_WEBSOCKET_KEY" in environ or has_token(
            environ.get("HTTP_UPGRADE", ""), "websocket"
        )
        return is_handshake and self.registry.find(decode_path(environ)) is not None

    # -- connecting ---------------------------------------------------------------------------

    def _connect(
        self, capability: Upgrade, admitted: Admitted, start_response: StartResponse
    ) -> None:
        """Send the 101 and let the connection live; returns when it needs this greenlet no more."""
        self.registry.arrive()
        try:
            accepted = admitted.accepted
            transport, leftover = capability.accept(accepted.headers)
            # The response is sent; this is for middlewares around us, which want to see a status.
            start_response("101 Switching Protocols", accepted.headers)
            session = Session(
                admitted.record,
                path_parameters=admitted.path_parameters,
                route=admitted.channel.pattern if admitted.path_parameters else "",
                subprotocol=accepted.subprotocol,
                extensions=accepted.extensions,
                user_principal=admitted.principal,
            )
            settings = admitted.channel.settings
            connection = self._make_connection(transport, session.id, accepted, settings)
            member = _make_member(admitted, connection, session)
            if admitted.expires_at is not None:
                connection.expires_at = admitted.expires_at  # before it is watched
            # In this order: nothing runs before we block, which the log line of `list` may do.
            connection.start(member, leftover)
            member.list()
        finally:
            self.registry.arrived()
        _park(capability, connection)

    def _close_refused(self, capability: Upgrade, refusal: Refusal) -> None:
        """Refuse where the 101 has gone out already: the close code is 4000 + the HTTP status."""
        transport, leftover = capability.accept([])
        connection = self._make_connection(transport, "refused", Acceptance([]), self.settings)
        connection.start(NOBODY, leftover)
        connection.close(4000 + refusal.response.status_code, refusal.text[:100])
        _park(capability, connection)

    def _make_connection(
        self, transport: Transport, name: str, accepted: Acceptance, settings: Settings
    ) -> Connection:
        agreed = accepted.deflate
        return Connection(
            self.registry.reactor,
            transport,
            Engine(max_message_size=settings.max_message_size, deflate=agreed),
            settings,
            self.metrics,
            name=name,
            idle_timeout=settings.idle_timeout,
            window_bits=agreed.window_bits if agreed else 0,
        )

    def _warn_of_workers(self, environ: WSGIEnvironment) -> None:
        """Our own worker says it at start; here it is the first request that tells."""
        if environ.get("wsgi.multiprocess") and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "several workers: broadcasts and websocket_info() reach the clients of one worker "
                "only; run one worker (--workers 1)"
            )

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
        is_news = status >= 500 or status == 403 or refusal.is_advice
        _log.log(
            logging.WARNING if is_news else logging.INFO,
            "refused %s from %s with %d: %s",
            shorten(decode_path(environ)),
            shorten(environ.get("REMOTE_ADDR", "")),
            status,
            refusal.reason,
        )

    def __repr__(self) -> str:
        return f"<WebSocketMiddleware {self.prefix} {sorted(self.registry.channels)}>"


class _Body:
    """A response that the application makes while it is sent: that is within the request too."""

    __slots__ = ("_body", "_iterator", "_registry")

    def __init__(self, body: Iterable[bytes], registry: Registry) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._registry = registry

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = self._registry.enter()
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            return next(self._iterator)
        finally:
            CURRENT.reset(token)

    def close(self) -> None:
        """PEP 3333: called by the server, whatever became of the response."""
        token = self._registry.enter()
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            CURRENT.reset(token)


def _park(capability: Upgrade, connection: Connection) -> None:
    """Stay while the connection lives, where the server would close its socket behind us."""
    if capability.parks:
        capability.park(connection.closed())


def _make_member(admitted: Admitted, connection: Connection, session: Session) -> Member:
    """The connection as its channel lists it, and the listener as its callbacks find it."""
    channel, listener = admitted.channel, admitted.listener
    session.attach(connection)
    wsclient = WsClient(channel, connection, session)
    listener.wsclient, listener.session, listener.channel = wsclient, session, channel.name
    listener.wsclients = channel.wsclients
    return Member(channel, connection, listener, wsclient, admitted.context, admitted.scope)
