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
        return f"{closed} ({self.reason})" if self.reason else closed


class HandshakeError(WebSocketError):
    """An opening handshake failed (RFC 6455, section 4).

    ``response`` is the HTTP response that refused it, or ``None`` when none came. Its type is that
    of the side that raised: a werkzeug response from the test client, the parsed answer of the
    peer from ``create_websocket_client``.
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
    """A callback ran longer than ``request_timeout`` and was stopped; given to ``on_error``."""


class SlowConsumerError(WebSocketError):
    """A client did not take what was queued for it within ``send_timeout``, and is being closed."""
