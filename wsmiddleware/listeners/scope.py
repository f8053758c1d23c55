"""How a callback is called: in a context of its own, inside what its application gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from typing import TYPE_CHECKING, Any

from wsmiddleware.exceptions import RequestTimeout, text_of
from wsmiddleware.flask import Scope
from wsmiddleware.log import log as _log
from wsmiddleware.net.pool import CallbackStopped

if TYPE_CHECKING:
    from wsmiddleware.settings import Settings

__all__ = ["Inside", "describe", "run_callback"]


def run_callback(
    context: Context,
    scope: Scope | None,
    cls: type,
    name: str,
    callback: Callable[..., Any],
    *args: Any,
) -> Any:
    """Run user code, the callback `name` of `cls`, in `context` and inside what `scope` gives."""
    if scope is None:
        return context.run(callback, *args)
    return context.run(_run_inside, scope, cls, name, callback, args)


def _run_inside(
    scope: Scope, cls: type, name: str, callback: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """What a ``with`` does, but for what fails behind the callback: its outcome stands then."""
    manager = scope()
    manager.__enter__()
    try:
        result = callback(*args)
    except BaseException as exc:
        if not _leave(manager, cls, name, exc):
            raise
        return None
    _leave(manager, cls, name, None)
    return result


def _leave(
    manager: AbstractContextManager[object], cls: type, name: str, exc: BaseException | None
) -> bool | None:
    try:
        if exc is None:
            return manager.__exit__(None, None, None)
        return manager.__exit__(type(exc), exc, exc.__traceback__)
    except Exception as error:
        if error is not exc:
            what = f"{type(error).__name__}: {text_of(error)}"
            where = f"{cls.__name__}.{name}"
            _log.error("%s: leaving its context raised %s", where, what, exc_info=error)
        return False


def _inside(name: str) -> Callable[..., Any]:
    def run(self: Inside, *args: Any) -> Any:
        listener, scope, turn = self._listener, self._scope, self._turn
        # By its name each time: a listener may set its own.
        callback = getattr(listener, name)
        if turn is None:
            assert scope is not None
            return _run_inside(scope, type(listener), name, callback, args)
        with turn:
            if scope is None:
                return callback(*args)
            return _run_inside(scope, type(listener), name, callback, args)

    run.__name__ = name
    return run


class Inside:
    """A listener whose callbacks run inside what `scope` gives, and with a `turn` one at a time.

    One of the two there must be.
    """

    __slots__ = ("_listener", "_scope", "_turn")

    def __init__(
        self, listener: object, scope: Scope | None, turn: AbstractContextManager[object] | None
    ) -> None:
        self._listener = listener
        self._scope = scope
        self._turn = turn

    # Functions of the class: to call one is half of what a closure for each message costs.
    on_open = _inside("on_open")
    on_open_async = _inside("on_open_async")
    on_message = _inside("on_message")
    on_binary_message = _inside("on_binary_message")
    on_close = _inside("on_close")
    on_error = _inside("on_error")


def describe(
    exc: BaseException, cls: type, name: str, settings: Settings, grace_since: str = ""
) -> BaseException:
    """What `on_error` and the log get for what the callback `name` of `cls` raised.

    `grace_since` is what has cut its time short, if anything has.
    """
    if not isinstance(exc, CallbackStopped):
        return exc
    limit = f"request_timeout ({settings.request_timeout:g} s)"
    if grace_since:
        limit = f"grace_period ({settings.grace_period:g} s) after {grace_since}"
    error = RequestTimeout(f"{cls.__name__}.{name} was stopped: it ran past {limit}")
    return error.with_traceback(exc.__traceback__)
