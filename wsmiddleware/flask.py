"""Flask's context for each callback of a connection, at a fraction of what a view's costs.

A view's context begins with a request that is made of the environ, a session that is opened and a
URL that is matched: four fifths of it. A connection has one request, its handshake. So these are
made once, and what each callback gets is a context that has them already: Flask's own object,
pushed and popped by Flask, with a `g` of its own and every teardown function behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

__all__ = ["RequestContext", "Scope", "scope_for"]

#: Makes an application's context of an environ.
RequestContext = Callable[[dict[str, Any]], AbstractContextManager[object]]
#: Gives what a connection's callbacks run inside: an application's context, anew for each.
Scope = Callable[[], AbstractContextManager[object]]


def scope_for(make: RequestContext, environ: Callable[[], dict[str, Any]]) -> Scope:
    """What the callbacks of one connection run inside; `environ` gives its handshake's, anew.

    For a Flask application's own ``app.request_context`` one request for all of them, for whatever
    else `make` is, one made by it for each.
    """
    # Found, not imported: an application without Flask does not pay for it.
    flask = sys.modules.get("flask")
    # One that has a way of its own to make them knows why.
    if flask and getattr(make, "__func__", None) is flask.Flask.request_context:
        return _FlaskScope(make.__self__, environ)  # type: ignore[attr-defined]
    return lambda: make(environ())


class _FlaskScope:
    """A connection's `Scope`. The first context, the handshake's, opens the session."""

    __slots__ = ("_app", "_environ", "_fields", "_first", "_kind", "_mutable")

    def __init__(self, app: Any, environ: Callable[[], dict[str, Any]]) -> None:
        self._app = app
        self._environ = environ
        self._first: Any = None
        #: The attributes of a context that nobody has pushed yet, and those to be made anew.
        self._fields: dict[str, Any] = {}
        self._mutable: tuple[str, ...] = ()

    def __call__(self) -> AbstractContextManager[object]:
        if self._fields:
            context = self._again()
        elif self._first is not None:
            self._keep(self._first.copy())
            self._first = None
            context = self._again()
        else:
            self._first = context = self._app.request_context(self._environ())
        # Flask 3.2 made one context of two. Before it, `g` is of an application's; a new one here
        # and not by `push`, which takes another callback's where it sees one: `on_open_async` runs
        # in a copy of the contextvars.
        kind = _Pushed if self._fields else _First
        return kind(None if hasattr(context, "g") else self._app.app_context(), context)

    def _keep(self, context: Any) -> None:
        self._kind = type(context)
        self._fields = fields = vars(context)
        # The URL has been matched: a hook for subclasses, as Flask documents it.
        fields["match_request"] = _nothing
        self._mutable = tuple(name for name in fields if type(fields[name]) in (list, dict, set))

    def _again(self) -> Any:
        """A context as Flask's `copy` makes one, without the 5 µs of binding the URLs again."""
        context: Any = object.__new__(self._kind)
        fields = vars(context)
        fields.update(self._fields)
        for name in self._mutable:
            fields[name] = fields[name].copy()
        if "g" in fields:
            fields["g"] = self._app.app_ctx_globals_class()
        return context


def _nothing() -> None: ...


class _Pushed:
    """A request's context, inside an application's where that is another one."""

    __slots__ = ("_app", "_request")

    def __init__(self, app: Any, request: Any) -> None:
        self._app = app
        self._request = request

    def __enter__(self) -> None:
        app = self._app
        if app is not None:
            _push(app)
        try:
            _push(self._request)
        except BaseException as exc:
            if app is not None:
                app.pop(exc)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._request.pop(exc)
        finally:
            if self._app is not None:
                self._app.pop(exc)


class _First(_Pushed):
    """The handshake's, which opens the session and matches the URL."""

    __slots__ = ()

    def __enter__(self) -> None:
        super().__enter__()
        # That the application has no such URL stays for as long as the connection, and what led
        # there would stay with it: the frames, and with them 14 KiB of the handshake.
        exc = self._request.request.routing_exception
        if exc is not None:
            exc.__traceback__ = exc.__context__ = None


def _push(context: Any) -> None:
    try:
        context.push()
    except BaseException as exc:
        # It is there all the same, as Flask's own `wsgi_app` knows: a session that could not be
        # opened is opened inside of it.
        context.pop(exc)
        raise
