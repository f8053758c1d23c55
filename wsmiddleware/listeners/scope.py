"""How a callback is called: in a context of its own, inside what its application gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeAlias

from wsmiddleware.exceptions import RequestTimeout
from wsmiddleware.net.pool import CallbackStopped

if TYPE_CHECKING:
    from wsmiddleware.settings import Settings

__all__ = ["Inside", "Scope", "describe", "run_callback"]

#: Gives what a connection's callbacks run inside: an application's context, anew for each.
Scope: TypeAlias = Callable[[], AbstractContextManager[object]]


def run_callback(
    context: Context, scope: Scope | None, callback: Callable[..., Any], *args: Any
) -> Any:
    """Run user code in `context`, and inside what `scope` gives."""
    if scope is None:
        return context.run(callback, *args)
    return context.run(_run_inside, (scope,), callback, args)


def _run_inside(
    scopes: tuple[Scope, ...], callback: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    if len(scopes) == 1:
        with scopes[0]():
            return callback(*args)
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(scope())
        return callback(*args)


class Inside:
    """A listener whose callbacks run inside what `scopes` give, the first one outermost."""

    __slots__ = ("_listener", "_scopes")

    def __init__(self, listener: object, scopes: tuple[Scope, ...]) -> None:
        self._listener = listener
        self._scopes = scopes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        callback, scopes = getattr(self._listener, name), self._scopes
        return lambda *args: _run_inside(scopes, callback, args)


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
