"""The capability to switch a request's connection to WebSocket, found in the WSGI environ.

Our handler puts one under ``environ["wsmiddleware.upgrade"]`` for every request, so that the
middleware may answer with plain HTTP or take the connection over. gevent-websocket's own handler
has sent the 101 before the application runs: `StockUpgrade` makes the best of that. This module
knows no server, and `wsmiddleware.handler` knows no middleware: they meet in the environ only.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import gevent
import gevent.ssl
from gevent.event import Event

from wsmiddleware.net.transport import Transport, wrap_socket

__all__ = [
    "ENVIRON_KEY",
    "STOCK_ENVIRON_KEY",
    "StockUpgrade",
    "Upgrade",
    "find_upgrade",
    "is_stock_server",
    "is_stock_worker",
    "park",
    "take_buffered",
]

ENVIRON_KEY = "wsmiddleware.upgrade"
STOCK_ENVIRON_KEY = "wsgi.websocket"

# Seconds that a killed handler waits for the connection to let go of the socket they share.
_ABORT_TIMEOUT = 0.5


class Upgrade(Protocol):
    """One request's way to become a WebSocket connection; used once, in the request's greenlet."""

    @property
    def speaks_first(self) -> bool:
        """False where the 101 has gone out already: no header can be sent any more."""
        ...

    def accept(self, headers: list[tuple[str, str]]) -> tuple[Transport, bytes]:
        """Send the 101 with `headers`, all that it shall carry (RFC 6455, section 4.2.2).

        Returns the non-blocking transport, now the caller's, and the bytes that came right behind
        the handshake. Raises `OSError` when the client has gone, `RuntimeError` when the request
        has been answered before. Blocks only as long as the socket does not take the 101.
        """
        ...

    @property
    def parks(self) -> bool:
        """True, once accepted, where the request's greenlet has to stay: see `park`."""
        ...

    def park(self, closed: Event) -> None:
        """Call it last, with an event that is set when the connection has closed its transport.

        Returns at once where the connection needs this greenlet no more; else blocks until
        `closed`. Killed meanwhile, it breaks the connection off.
        """
        ...


class StockUpgrade:
    """An `Upgrade` around the object that gevent-websocket put under ``wsgi.websocket``."""

    __slots__ = ("_transport", "_websocket")

    speaks_first = False
    parks = True

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._transport: Transport | None = None

    def accept(self, headers: list[tuple[str, str]]) -> tuple[Transport, bytes]:
        """As `Upgrade.accept`; `headers` are dropped, for the handler has sent its own."""
        websocket, self._websocket = self._websocket, None
        if websocket is None or websocket.closed:
            raise RuntimeError("this request has been upgraded already")
        handler = websocket.handler
        # Marked closed, or it sends a close frame of its own when the application returns.
        websocket.closed = True
        websocket.stream = websocket.raw_read = websocket.raw_write = None
        pending = take_buffered(handler.rfile, handler.socket)
        self._transport = transport = wrap_socket(handler.socket, detach=False)
        return transport, pending

    def park(self, closed: Event) -> None:
        """Block until `closed`: the handler closes the socket when the application returns."""
        if self._transport is not None:
            park(self._transport, closed)


def park(transport: Transport, closed: Event) -> None:
    """Block until `closed` is set; killed meanwhile, break the connection off and raise."""
    try:
        closed.wait()
    except BaseException:
        with contextlib.suppress(OSError):
            transport.shutdown(socket.SHUT_RDWR)
        # The connection's watchers must have gone before the handler closes the descriptor: one
        # that is left on a closed descriptor spins the hub.
        closed.wait(_ABORT_TIMEOUT)
        raise


def take_buffered(rfile: io.BufferedReader, sock: Any) -> bytes:
    """The bytes behind the request that no watcher would see. Never blocks.

    They lie in `rfile`'s buffer or in the TLS layer. It leaves `sock` with time-out 0: what comes
    now is for a transport to read.
    """
    # peek() asks the socket once when its buffer is empty; without a time-out that returns at once.
    sock.settimeout(0.0)
    data = b""
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        data = rfile.read(len(rfile.peek()))
        # The buffer is smaller than a TLS record, whose rest waits decrypted.
        if isinstance(sock, gevent.ssl.SSLSocket) and (rest := sock.pending()):
            data += sock.recv(rest)
    return data


def find_upgrade(environ: Mapping[str, Any]) -> Upgrade | None:
    """The request's `Upgrade`, or None where the server offers none.

    Under gevent-websocket's own handler there is one only for a request that it has upgraded.
    """
    upgrade: Upgrade | None = environ.get(ENVIRON_KEY)
    if upgrade is None:
        websocket = environ.get(STOCK_ENVIRON_KEY)
        # Somebody else's object of that name (uWSGI's, a test's) has no handler to take over.
        if getattr(websocket, "handler", None) is not None:
            upgrade = StockUpgrade(websocket)
    return upgrade


def is_stock_server(environ: Mapping[str, Any]) -> bool:
    """True when gevent-websocket's own handler serves this request, whatever the request is.

    Nothing in the environ of a plain GET says so, but the greenlet that serves a connection knows
    its server. Must be called in that greenlet.
    """
    if ENVIRON_KEY in environ:
        return False
    if environ.get(STOCK_ENVIRON_KEY) is not None:
        return True
    arguments = getattr(gevent.getcurrent(), "args", ())
    server = getattr(arguments[0], "__self__", None) if arguments else None
    bases = getattr(getattr(server, "handler_class", None), "__mro__", ())
    return any(base.__module__ == "geventwebsocket.handler" for base in bases)


def is_stock_worker() -> bool:
    """True in a gunicorn process whose worker class is gevent-websocket's own.

    That class drains nothing at SIGTERM, which a warning at start should say.
    """
    # gunicorn imports the module of the worker class that it was told, and nobody else does.
    return "geventwebsocket.gunicorn.workers" in sys.modules
