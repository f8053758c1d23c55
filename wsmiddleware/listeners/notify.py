"""How the callbacks of a client's listener run: one at a time, in one context, errors told.

The client's side of `wsmiddleware.listeners.invoke`: one listener for all connections of a client,
plain arguments, and no reply by return value.
"""

from __future__ import annotations

import inspect
import logging
from contextvars import copy_context
from typing import Any, Literal

import gevent
from gevent.lock import BoundedSemaphore

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.protocol.engine import Ping

__all__ = ["CALLBACKS", "ErrorType", "Notifier"]

_log = logging.getLogger("websocket")

#: What a client's listener may have.
CALLBACKS = (
    "on_open",
    "on_message",
    "on_binary_message",
    "on_close",
    "on_error",
    "on_ping",
    "on_pong",
)

ErrorType = Literal["callback", "connect", "frame", "general", "message", "unexpected"]


class Notifier:
    """Calls one listener, in greenlets that may block. Belongs to the thread of its reactor.

    `listener` is any object, or a class that is made without arguments; a callback is looked up
    when it is due, and what has none is not called. `name` is for the log.
    """

    __slots__ = ("_context", "_greenlet", "_turn", "listener", "name")

    def __init__(self, listener: object, name: str) -> None:
        self.listener = listener() if isinstance(listener, type) else listener
        self.name = name
        # The caller's context variables, as a task would get them.
        self._context = copy_context()
        self._turn = BoundedSemaphore(1)
        self._greenlet: object = None
        for callback in CALLBACKS:
            if not callable(getattr(self.listener, callback, len)):
                kind = type(self.listener).__name__
                raise ListenerError(f"{kind}.{callback} is no method")

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
        with self._turn:
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
