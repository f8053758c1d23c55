"""Every error that the package raises on purpose, in one tree.

::

    Exception
    └── WebSocketError
        ├── ConfigError          a setting is unknown, wrong or contradicts another
        ├── ConnectionClosed     the connection has gone: .code, .reason
        ├── HandshakeError       an opening handshake failed: .response
        ├── ListenerError        a listener file or class cannot be used
        ├── RequestTimeout       a callback ran longer than request_timeout
        └── SlowConsumerError    a client did not take what was queued for it

``except WebSocketError`` takes them all. A value that is wrong in a call (a close code that may
not be sent, say) is a plain ``ValueError``: that is the caller's mistake, not the connection's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "ConfigError",
    "ConnectionClosed",
    "HandshakeError",
    "ListenerError",
    "RequestTimeout",
    "SlowConsumerError",
    "WebSocketError",
]


class WebSocketError(Exception):
    """The base of every error that this package raises on purpose."""

    #: Files and folders in which a start that failed may be mended, beside those of the traceback.
    places: tuple[Path, ...] = ()


class ConfigError(WebSocketError):
    """A setting is unknown, has a wrong value, or contradicts another.

    The message names the file, variable or keyword, what it held, and what is valid.
    """


class ConnectionClosed(WebSocketError):
    """The connection has gone, so the message was not taken (RFC 6455, section 7).

    ``code`` is the close code, 1006 when no close frame came and 1005 when it was empty; ``reason``
    is the close reason, ``""`` when there was none.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        # Both go to super().__init__: that is what makes the exception picklable and copyable.
        super().__init__(code, reason)
        self.code = int(code)
        self.reason = reason

    def __str__(self) -> str:
        closed = f"the connection is closed, code {self.code}"
        reason = self.reason if self.reason.isprintable() else repr(self.reason)  # the peer's
        return f"{closed} ({reason})" if reason else closed


class HandshakeError(WebSocketError):
    """An opening handshake failed (RFC 6455, section 4).

    ``response`` is the peer's answer that refused it, parsed, or ``None`` when none came.
    """

    def __init__(self, message: str, response: object | None = None) -> None:
        super().__init__(message, response)
        self.message = message
        self.response = response

    def __str__(self) -> str:
        return self.message


class ListenerError(WebSocketError):
    """A listener file or class cannot be used; the message names the file and the cause."""


class RequestTimeout(WebSocketError):
    """A callback ran longer than ``request_timeout`` and was stopped.

    Given to ``on_error`` where the callback was a connection's; those of the class are only logged.
    """


class SlowConsumerError(WebSocketError):
    """A client does not take what is queued for it, and is being closed.

    It had ``send_timeout`` for that; with ``wait=False`` it is told at once.
    """


def text_of(exc: BaseException) -> str:
    """Its `str`, or the words that tracebacks have where that fails."""
    try:
        return str(exc)
    except Exception:
        return "<exception str() failed>"


def raise_all(errors: Sequence[WebSocketError], heading: str) -> None:
    """Raise what was collected: one as it is, several as one, with a line for each below `heading`.

    Returns where there are none.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(f"  {error}" for error in errors)
        joined = type(errors[0])(f"{len(errors)} {heading}:\n{lines}")
        joined.places = errors[0].places
        raise joined from errors[0]
