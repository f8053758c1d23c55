"""The pywsgi handler: gevent-websocket's, but the application decides before the 101.

gevent-websocket upgrades before it calls the application, so that a WSGI application can refuse
nothing. This handler leaves the upgrade undone and offers it in the environ, for every request as
``wsmiddleware.upgrade`` (see `wsmiddleware.upgrade`), and for users of gevent-websocket itself
(Flask-SocketIO, flask-sockets, bottle-websocket …) as a ``wsgi.websocket`` that upgrades when it
is first used::

    WSGIServer(address, app, handler_class=WebSocketHandler).serve_forever()

`wsmiddleware.server` and `wsmiddleware.gunicorn` do that.
"""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
from gevent import pywsgi
from gevent.event import Event
from geventwebsocket.handler import Client
from geventwebsocket.handler import WebSocketHandler as StockWebSocketHandler
from geventwebsocket.websocket import Stream, WebSocket

from wsmiddleware.body import is_broken
from wsmiddleware.bounds import BoundedHandler
from wsmiddleware.log import escape
from wsmiddleware.net.transport import TlsTransport, Transport, wrap_socket
from wsmiddleware.protocol.handshake import accept_key, has_token, is_valid_key, parse_tokens
from wsmiddleware.upgrade import ENVIRON_KEY, STOCK_ENVIRON_KEY, park, take_buffered

__all__ = ["HandlerUpgrade", "LazyWebSocket", "WebSocketHandler", "stop_reading"]


class HandlerUpgrade:
    """The `Upgrade` of one request under our handler: the 101 goes out when it is accepted."""

    __slots__ = ("_handler", "_parked")

    speaks_first = True

    def __init__(self, handler: WebSocketHandler) -> None:
        self._handler: WebSocketHandler | None = handler
        self._parked: Transport | None = None

    def accept(self, headers: list[tuple[str, str]]) -> tuple[Transport, bytes]:
        """As `Upgrade.accept`. From here on the WSGI response is dropped."""
        handler = self._handler
        if handler is None or handler.headers_sent:
            raise RuntimeError("this request has been answered already")
        handler.switch_protocols(headers)
        transport, pending = handler.release_socket()
        if not handler.is_detached:
            self._parked = transport
        self.forget()
        return transport, pending

    @property
    def parks(self) -> bool:
        """Only under a foreign server, which closes a TLS socket behind its handler."""
        return self._parked is not None

    def park(self, closed: Event) -> None:
        """Return at once: the socket lives on without the handler.

        Under a foreign server, which closes a TLS socket behind its handler, it does block.
        """
        if self._parked is not None:
            park(self._parked, closed)

    def forget(self) -> None:
        """Drop the handler, so that an environ that somebody keeps does not keep it alive."""
        self._handler = None


class LazyWebSocket(WebSocket):  # type: ignore[misc]
    """gevent-websocket's `WebSocket`, upgraded when it is first read, written or closed."""

    # No __slots__ here, the base class's stay: only they can be unset and asked for by __getattr__.

    handler: WebSocketHandler | None

    def __init__(self, environ: dict[str, Any], handler: WebSocketHandler) -> None:
        # The other slots stay unset until one of them is asked for.
        self.environ = environ
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        # Reached for unset slots only, so that `path`, `origin` or `bool()` upgrade nothing.
        if name not in WebSocket.__slots__ or self.handler is None or self.handler.websocket:
            raise AttributeError(name)
        self.handler.switch_to_stock(self)
        stream = Stream(self.handler)
        stream.write = self.handler.send_all
        super().__init__(self.environ, stream, self.handler)
        return getattr(self, name)

    def __del__(self) -> None:
        # gevent-websocket's closes here. One that was never used must not upgrade just to close.
        self.handler = None


class WebSocketHandler(BoundedHandler, StockWebSocketHandler):  # type: ignore[misc]
    """Serves the requests of one connection until one of them takes the connection over."""

    #: True once a 101 was sent: what the application responds is dropped.
    has_switched = False
    #: True once the socket belongs to a connection: it must not be closed here.
    is_detached = False
    #: gevent-websocket's object for this request, once it has been used.
    websocket: LazyWebSocket | None = None

    socket: Any
    path: str

    def run_application(self) -> None:
        """Call the application with both ways to upgrade in the environ."""
        on_request = getattr(self.server, "on_request", None)
        if on_request is not None:
            on_request()
        turnstile = getattr(self.server, "turnstile", None)
        if turnstile is not None:
            turnstile.go_through()
        environ = self.environ
        self.has_switched = False
        upgrade = environ[ENVIRON_KEY] = HandlerUpgrade(self)
        if _is_stock_upgrade(environ):
            environ[STOCK_ENVIRON_KEY] = LazyWebSocket(environ, self)
            environ["wsgi.websocket_version"] = environ["HTTP_SEC_WEBSOCKET_VERSION"]
        try:
            pywsgi.WSGIHandler.run_application(self)
        finally:
            upgrade.forget()
            self._finish_websocket(environ)
            self._discard_body()

    def _discard_body(self) -> None:
        """Read the unread rest of the body, for as long as a request may take to come. Blocks."""
        body = self.wsgi_input
        if is_broken(body):
            self.close_connection = True
            return
        if body.position >= (body.content_length or 0) and not body.chunked_input:
            return
        with contextlib.suppress(OSError), gevent.Timeout(self.handshake_timeout, False):
            body._discard()
            return
        self.close_connection = True
        self._forget_body()

    def _forget_body(self) -> None:
        self.wsgi_input.content_length, self.wsgi_input.chunked_input = 0, False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As PEP 3333; nothing after a 101, and a refused upgrade ends the connection."""
        if self.has_switched:
            return self.write
        is_last = not self._limits.idle.seconds or getattr(self.server, "is_draining", False)
        if _wants_upgrade(self.environ):
            # What follows may be frames: do not parse it as a request. And do not wait for a body:
            # a handshake has none.
            is_last = True
            self._forget_body()
        if is_last:
            headers = _with_close(headers)
            self.close_connection = True
        # Not gevent-websocket's: that takes all responses of requests with wsgi.websocket for 101s.
        pywsgi.WSGIHandler.start_response(self, status, headers, exc_info)
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the response, as `BoundedHandler` does; dropped after a 101."""
        if not self.has_switched:
            super().write(data)

    def log_request(self) -> None:
        """Log every request, a 101 too, where the server logs (the stock one leaves those out)."""
        super(StockWebSocketHandler, self).log_request()

    def format_request(self) -> str:
        """The stock line of the access log, its time made once a second: saves 4 % of a connect."""
        address = self.client_address
        host = address[0] if isinstance(address, tuple) else address
        status = (self._orig_status or self.status or "000").split()[0]
        seconds = f"{self.time_finish - self.time_start:.6f}" if self.time_finish else "-"
        what = f'{host or "-"} - - [{_format_time(int(time.time()))}] "{_shown(self.requestline)}"'
        return f"{what} {status} {self.response_length or '-'} {seconds}"

    def switch_protocols(self, headers: list[tuple[str, str]]) -> None:
        """Send a 101 with `headers` and nothing else. Raises `OSError` when the client has gone."""
        pywsgi.WSGIHandler.start_response(self, "101 Switching Protocols", headers)
        self.close_connection = True  # it will never be HTTP again
        self.provided_date = self.provided_content_length = ""
        self.response_use_chunked = False
        pywsgi.WSGIHandler.write(self, b"")
        self.has_switched = True

    def release_socket(self) -> tuple[Transport, bytes]:
        """Hand the socket over, with the bytes that came behind the request; never blocks."""
        sock = self.socket
        if self._source is None or isinstance(sock, gevent.ssl.SSLSocket):
            pending = take_buffered(self.rfile, sock)
        else:
            # Only what is buffered. No look at the socket: saves 6 % of a connect.
            self._source.release()
            pending = self.rfile.read(len(self.rfile.peek()))
        transport = wrap_socket(sock, detach=True)
        self.environ["wsgi.input"] = io.BytesIO()
        self.environ.pop(STOCK_ENVIRON_KEY, None)
        keeps_tls = getattr(self.server, "keeps_detached_tls", False)
        if keeps_tls or not isinstance(transport, TlsTransport):
            self.is_detached = True
            self.socket = None
        # It counts as a user of the socket: close() would wait until the last user is gone.
        self.rfile.close()
        return transport, pending

    def switch_to_stock(self, websocket: LazyWebSocket) -> None:
        """Upgrade for `websocket` as gevent-websocket does, before the application was called."""
        if self.has_switched or self.headers_sent:
            raise RuntimeError("this request has been answered already")
        environ = self.environ
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])),
        ]
        if (choose := getattr(self.application, "app_protocol", None)) is not None:
            protocol = choose(environ["PATH_INFO"])
            if protocol in parse_tokens(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")):
                headers.append(("Sec-WebSocket-Protocol", protocol))
        self.switch_protocols(headers)
        self.websocket = websocket
        if not hasattr(self.server, "clients"):
            self.server.clients = {}
        self.server.clients[self._client_key] = Client(self.client_address, websocket)

    @property
    def _client_key(self) -> object:
        # As in gevent-websocket. At a Unix socket no peer has an address.
        return self.client_address or id(self)

    def _finish_websocket(self, environ: dict[str, Any]) -> None:
        """What the stock handler does when the application has returned."""
        websocket, self.websocket = self.websocket, None
        if STOCK_ENVIRON_KEY in environ:
            environ[STOCK_ENVIRON_KEY] = None
        if websocket is None:
            return
        self.server.clients.pop(self._client_key, None)
        if not websocket.closed:
            websocket.close()


@functools.lru_cache(maxsize=1)
def _format_time(seconds: int) -> str:
    return str(datetime.fromtimestamp(seconds))


def _shown(line: str | None) -> str:
    """A request line between quotes in the access log: one that was refused may hold anything."""
    return escape(line or "").replace('"', "\\x22")


def stop_reading(handler: WebSocketHandler) -> None:
    """Give the greenlet that waits for a peer's bytes the end of the stream instead.

    So a connection that waits for its next request ends, and an application that holds a
    ``wsgi.websocket`` returns.
    """
    sock = handler.__dict__.get("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown(): that drops the TLS layer, and a last frame went in clear.
            gevent.socket.socket.shutdown(sock, socket.SHUT_RD)


def _with_close(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers with ``close`` in ``Connection``, beside what stands there."""
    values = [value for name, value in headers if name.lower() == "connection"]
    others = [item for item in headers if item[0].lower() != "connection"]
    options = parse_tokens(",".join(values))
    if "close" not in map(str.lower, options):
        options.append("close")
    return [*others, ("Connection", ", ".join(options))]


def _wants_upgrade(environ: dict[str, Any]) -> bool:
    return "HTTP_UPGRADE" in environ and has_token(environ["HTTP_UPGRADE"], "websocket")


def _is_stock_upgrade(environ: dict[str, Any]) -> bool:
    """True for what gevent-websocket's own handler would upgrade."""
    return (
        _wants_upgrade(environ)
        and environ["REQUEST_METHOD"] == "GET"
        and environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        and has_token(environ.get("HTTP_CONNECTION", ""), "upgrade")
        and environ.get("HTTP_SEC_WEBSOCKET_VERSION") in StockWebSocketHandler.SUPPORTED_VERSIONS
        and is_valid_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip())
    )
