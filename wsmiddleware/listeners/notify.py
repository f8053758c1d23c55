"""How the callbacks of a client's listener run: one at a time, in one context, errors told.

The client's side of `wsmiddleware.listeners.invoke`: one listener for all connections of a client,
plain arguments, and no reply by return value.
"""

from __future__ import annotations

import inspect
from contextvars import copy_context
from typing import Any, Literal

import gevent
from gevent.lock import BoundedSemaphore

from wsmiddleware.listeners.callbacks import CLIENT, check, check_made_without_arguments
from wsmiddleware.log import log as _log
from wsmiddleware.protocol.engine import Ping
from wsmiddleware.settings import shorten

__all__ = ["ErrorType", "Notifier"]


ErrorType = Literal["callback", "connect", "frame", "general", "message", "unexpected"]


class Notifier:
    """Calls one listener, in greenlets that may block. Belongs to the thread of its reactor.

    `listener` is any object, or a class that is made without arguments; a callback is looked up
    when it is due, and what has none is not called. `name` is for the log.
    """

    __slots__ = ("_context", "_greenlet", "_lock", "listener", "name")

    def __init__(self, listener: object, name: str) -> None:
        self.listener = _ready(listener)
        self.name = name
        # The caller's context variables, as a task would get them.
        self._context = copy_context()
        self._lock = BoundedSemaphore(1)
        self._greenlet: object = None

    def is_current(self) -> bool:
        """True in the greenlet that runs a callback of this listener."""
        return self._greenlet is gevent.getcurrent()

    def receive(self, message: object) -> None:
        """Run the callback for what came: `str`, `bytes`, or a control event."""
        if isinstance(message, str):
            self.call("on_message", message)
        elif isinstance(message, bytes):
            has_own = hasattr(self.listener, "on_binary_message")
            self.call("on_binary_message" if has_own else "on_message", message)
        else:
            self.call("on_ping" if isinstance(message, Ping) else "on_pong")

    def call(self, name: str, *args: Any) -> None:
        """Run one callback, when no other one runs; what it raises goes to `on_error`."""
        callback = getattr(self.listener, name, None)
        if callback is None:
            return
        exc = self._run(callback, *args)
        if exc is not None:
            self.error("callback", exc)

    def error(self, kind: ErrorType, cause: BaseException, data: bytes | None = None) -> None:
        """Run `on_error`; without one the log tells."""
        callback = getattr(self.listener, "on_error", None)
        if callback is None:
            trace = cause if kind == "callback" else None
            _log.error("%s: error (%s): %s", self.name, kind, _describe(cause), exc_info=trace)
            return
        arguments = (kind, cause, data) if _takes_data(callback) else (kind, cause)
        exc = self._run(callback, *arguments)
        if exc is not None:
            _log.error("%s: on_error raised %s", self.name, _describe(exc), exc_info=exc)

    def _run(self, callback: Any, *args: Any) -> BaseException | None:
        with self._lock:
            self._greenlet = gevent.getcurrent()
            try:
                self._context.run(callback, *args)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                return exc
            finally:
                self._greenlet = None
        return None


def _ready(listener: object) -> object:
    """The listener to call, checked; of a class it is an instance."""
    if isinstance(listener, type):
        check_made_without_arguments(listener)
        listener = listener()
    # An `object()` is for those who only send; a `dict` with functions is no listener.
    is_value = type(listener).__module__ == "builtins" and type(listener) is not object
    if not check(listener, CLIENT) and is_value:
        raise TypeError(
            f"listener is {shorten(listener)}; valid is an object, or a class, with some of "
            f"{', '.join(CLIENT)}"
        )
    return listener


def _takes_data(callback: Any) -> bool:
    """`data` is optional in the seed: a listener may leave the parameter out."""
    try:
        inspect.signature(callback).bind("", None, None)
    except TypeError:
        return False
    except ValueError:  # a callable of C that does not tell
        pass
    return True


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
