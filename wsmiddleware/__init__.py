"""WebSockets for WSGI applications on gevent.

Wraps any WSGI app (Flask, Bottle, Django …), serves channels of listeners beside it, and lets
ordinary request handlers push to connected clients with `websocket_info`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsmiddleware.client import create_websocket_client
    from wsmiddleware.exceptions import (
        ConfigError,
        ConnectionClosed,
        HandshakeError,
        ListenerError,
        RequestTimeout,
        SlowConsumerError,
        WebSocketError,
    )
    from wsmiddleware.info import channel, publish, websocket_info
    from wsmiddleware.listeners.accept import Accept
    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.clients import WsClient, WsClients
    from wsmiddleware.listeners.session import Session
    from wsmiddleware.middleware import WebSocketMiddleware
    from wsmiddleware.protocol.frames import CloseCode
    from wsmiddleware.publisher import Publisher

__all__ = [
    "Accept",
    "CloseCode",
    "ConfigError",
    "ConnectionClosed",
    "HandshakeError",
    "ListenerError",
    "Publisher",
    "RequestTimeout",
    "Session",
    "SlowConsumerError",
    "WebSocketError",
    "WebSocketListener",
    "WebSocketMiddleware",
    "WsClient",
    "WsClients",
    "channel",
    "create_websocket_client",
    "publish",
    "websocket_info",
]

#: Where the others are than the errors.
_HOMES = {
    "Accept": "listeners.accept",
    "CloseCode": "protocol.frames",
    "Publisher": "publisher",
    "Session": "listeners.session",
    "WebSocketListener": "listeners.base",
    "WebSocketMiddleware": "middleware",
    "WsClient": "listeners.clients",
    "WsClients": "listeners.clients",
    "channel": "info",
    "create_websocket_client": "client",
    "publish": "info",
    "websocket_info": "info",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: a `Publisher` needs no gevent."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'exceptions')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
