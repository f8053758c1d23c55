"""Admission: whether a request below the prefix becomes a connection, decided before any 101.

The checks of RFC 6455, section 4.2, and ours in the order of `Admission.decide`; then the
listener's `on_handshake`, which may block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from dataclasses import dataclass
from http.client import responses
from typing import TYPE_CHECKING, Any

import gevent
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Request, Response

from wsmiddleware import policy
from wsmiddleware.django import close_connections
from wsmiddleware.flask import RequestContext, Scope, scope_for
from wsmiddleware.listeners.accept import Accept
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.hints import hint_for
from wsmiddleware.listeners.scope import run_callback
from wsmiddleware.listeners.session import RequestRecord
from wsmiddleware.log import log as _log
from wsmiddleware.policy import Acceptance, Refusal, refuse
from wsmiddleware.registry import Registry
from wsmiddleware.settings import Settings
from wsmiddleware.upgrade import Upgrade, is_stock_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["Admission", "Admitted"]

_CANNOT_UPGRADE = (
    "This server cannot upgrade to WebSocket: run `python -m wsmiddleware run`, or "
    "gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker."
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A handshake that is accepted, and what its connection needs."""

    channel: Channel
    path_parameters: Mapping[str, Any]
    record: RequestRecord
    context: Context
    scope: Scope | None
    listener: WebSocketListener
    principal: Any
    accepted: Acceptance
    #: When the connection ends, in Unix seconds.
    expires_at: float | None = None


class Admission:
    """Decides on the opening handshakes of one middleware."""

    def __init__(
        self, registry: Registry, settings: Settings, request_context: RequestContext | None
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._request_context = request_context

    def decide(self, environ: WSGIEnvironment, upgrade: Upgrade | None) -> Refusal | Admitted:
        """Refuse or admit one request; blocks as long as the listener's `on_handshake` does."""
        if upgrade is None and not is_stock_server(environ):
            # wsgiref takes no response with a Connection header from an application.
            return refuse(501, _CANNOT_UPGRADE, closes=False)
        found = self._registry.find(policy.decode_path(environ))
        if found is None:
            return refuse(404, "No such channel.")
        refusal = (
            policy.check_request(environ)
            or policy.check_host(environ, self._trusted_hosts())
            or _check_origin(environ, found[0])
            or self._check_room()
        )
        if refusal is not None:
            return refusal
        if upgrade is None:  # gevent-websocket's own handler found fault with it
            return refuse(400, "Bad handshake.")
        admitted = self._admit(environ, *found, is_answered=not upgrade.speaks_first)
        # Room again: a hook may have blocked while others came, or while we began to go down.
        return admitted if isinstance(admitted, Refusal) else self._check_room() or admitted

    def _trusted_hosts(self) -> Collection[str] | None:
        """Those of the setting, else those of the Flask application whose context is entered.

        Asked each time: an application may be configured after it was wrapped.
        """
        if self._settings.trusted_hosts:
            return self._settings.trusted_hosts
        app: Any = getattr(self._request_context, "__self__", None)
        config = getattr(app, "config", None)
        hosts = config.get("TRUSTED_HOSTS") if isinstance(config, Mapping) else None
        # Before Flask 3.1 knew that key, a class of one's own was the way, and it still is one.
        if hosts is None:
            hosts = getattr(getattr(app, "request_class", None), "trusted_hosts", None)
        return hosts

    def _check_room(self) -> Refusal | None:
        registry, limit = self._registry, self._settings.max_connections
        retry = {"Retry-After": "5"}
        if registry.is_draining:
            return refuse(503, "Going down.", retry)
        if registry.unfinished >= limit:
            why = f"max_connections is {limit}; raise it (and ulimit -n)"
            return refuse(503, "Too many connections.", retry, reason=why)
        if not registry.is_here():
            why = "the connections run on another thread's loop: serve the application from one"
            return refuse(503, "Served by another thread.", retry, reason=why)
        return None

    def _admit(
        self,
        environ: WSGIEnvironment,
        channel: Channel,
        path_parameters: Mapping[str, Any],
        *,
        is_answered: bool,
    ) -> Refusal | Admitted:
        """Ask `on_handshake`, and make the listener: user code that may refuse, block or fail."""
        record, context = RequestRecord(environ), self._registry.new_context()
        make = self._request_context
        scope = None if make is None else scope_for(make, record.environ)
        timer = None
        if scope is not None or channel.contract.joins_handshake:
            # Without code of the user no time-out is needed: saves 4 % of a connect.
            timer = gevent.Timeout.start_new(self._settings.request_timeout)
            self._registry.reactor.start_clock()  # it sees who holds the loop
            # As before a view: one that an earlier request has left may be dead by now.
            close_connections()
        try:
            answer = _ask(channel, record, context, scope)
            if isinstance(answer, Refusal):
                return answer
            cls = channel.listener_class
            listener = run_callback(context, scope, cls, "__init__", cls)
        # A time-out that is not ours is the hook's own, and SystemExit an exit() of its: whatever
        # it is, the peer gets an answer, and the HTTP connection ends behind that.
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            return self._failed(channel, exc, is_late=exc is timer)
        finally:
            if timer is not None:
                timer.close()
                # Here, for this greenlet may stay as long as the connection lives.
                close_connections()
        accept = answer if isinstance(answer, Accept) else None
        accepted = policy.agree(environ, channel, accept, is_answered=is_answered)
        _tell_unspoken(channel, accepted, accept, is_answered=is_answered)
        principal, ends = (accept.user, accept.expires_at) if accept else (answer, None)
        return Admitted(
            *(channel, path_parameters, record, context, scope, listener, principal, accepted),
            expires_at=ends,
        )

    def _failed(self, channel: Channel, exc: BaseException, *, is_late: bool) -> Refusal:
        channel.metrics.callback_errors[channel.name, "on_handshake"] += 1
        name = channel.listener_class.__name__
        what = f"{type(exc).__name__} in a handshake"
        if is_late:
            limit = self._settings.request_timeout
            what = f"on_handshake was stopped after {limit:g} s (request_timeout)"
        hint = hint_for(exc, "on_handshake", has_context=self._request_context is not None)
        _log.error("channel %s: %s: %s%s", channel.name, name, what, hint, exc_info=exc)
        return refuse(500, "Internal error.", reason=f"{name}: {what}")


def _check_origin(environ: WSGIEnvironment, channel: Channel) -> Refusal | None:
    if "allowed_origins" not in channel.contract.own:
        return policy.check_origin(environ, channel.settings)
    whose = f"those of the class {channel.listener_class.__qualname__}"
    return policy.check_origin(environ, channel.settings, whose)


def _ask(channel: Channel, record: RequestRecord, context: Context, scope: Scope | None) -> Any:
    """The user whom the listener's hook lets in, an `Accept` with that user, or a refusal.

    Without a hook it is ``REMOTE_USER``, as with `True`; the hook may have set that in
    ``request.environ``.
    """
    if "on_handshake" not in channel.contract.callbacks:
        return record.get("REMOTE_USER")
    cls: Any = channel.listener_class
    request = Request(record.environ(), populate_request=False)
    answer: Any
    try:
        answer = run_callback(context, scope, cls, "on_handshake", _call, cls.on_handshake, request)
    except HTTPException as exc:
        answer = exc
    if isinstance(answer, HTTPException):
        answer = answer.get_response(request.environ)
        if not isinstance(answer, Response):  # abort() takes any WSGI application
            answer = Response.from_app(answer, request.environ)
    if isinstance(answer, Response):
        text = responses.get(answer.status_code, "Refused")
        return Refusal(answer, text, f"{cls.__name__}.on_handshake answered {answer.status}")
    # Flask-Login's and Django's anonymous user is an object like any other, but for that.
    user = answer.user if isinstance(answer, Accept) else answer
    is_nobody = user is None or user is False
    if is_nobody or getattr(user, "is_authenticated", True) is False:
        what = user if is_nobody else "a user who is not authenticated"
        why = f"{cls.__name__}.on_handshake returned {what}: it lets in with True or a user"
        return refuse(403, "Not allowed.", reason=why)
    if user is True:
        user = request.environ.get("REMOTE_USER")
    return answer.with_user(user) if isinstance(answer, Accept) else user


def _tell_unspoken(
    channel: Channel, accepted: Acceptance, accept: Accept | None, *, is_answered: bool
) -> None:
    """What was to be agreed on and is not: browsers end such a connection without a reason."""
    if accepted.unspoken:
        # Not which: a token may be offered.
        _log.warning(
            "channel %s: of %d subprotocol(s) that a client offers none is spoken, which browsers "
            "do not take: subprotocols of the class, or Accept(subprotocol=…), names those that "
            "are (now: %s)",
            channel.name,
            accepted.unspoken,
            ", ".join(channel.settings.subprotocols) or "none",
        )
    if is_answered and accept is not None and (accept.headers or accept.subprotocol):
        _log.warning(
            "channel %s: headers and subprotocol of Accept(…) cannot be sent: gevent-websocket's "
            "own handler has sent the 101. Run a server of this package",
            channel.name,
        )


def _call(hook: Callable[[Request], Any], request: Request) -> Any:
    """What the hook returns, as far as it is an answer."""
    answer = _meant(hook(request))
    if not isinstance(answer, Accept):
        return answer
    user = _meant(answer.user)
    return user if isinstance(user, (HTTPException, Response)) else answer.with_user(user)


def _meant(answer: Any) -> Any:
    """An answer for what it stands for: none may let in what it does not mean."""
    if isinstance(answer, LocalProxy):  # ``return current_user``, which may stand for None
        answer = answer._get_current_object()
    if isinstance(answer, type) and issubclass(answer, HTTPException):
        answer = answer()  # as `raise` makes it
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("on_handshake is an async def, which nobody awaits: write a plain def")
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        raise TypeError("on_handshake has a yield, so that nothing of it runs: write return")
    return answer
