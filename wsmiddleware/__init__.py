"""WebSockets for WSGI applications on gevent.

Wraps any WSGI app (Flask, Bottle, Django …), serves channels of listeners beside it, and lets
ordinary request handlers push to connected clients with `websocket_info`.
"""

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
from wsmiddleware.info import publish, websocket_info
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.middleware import WebSocketMiddleware
from wsmiddleware.protocol.frames import CloseCode

__all__ = [
    "CloseCode",
    "ConfigError",
    "ConnectionClosed",
    "HandshakeError",
    "ListenerError",
    "RequestTimeout",
    "SlowConsumerError",
    "WebSocketError",
    "WebSocketListener",
    "WebSocketMiddleware",
    "create_websocket_client",
    "publish",
    "websocket_info",
]
