"""A WSGI application that remembers, a listener that echoes, and the middleware around both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from support import Server
from wsmiddleware import WebSocketListener, WebSocketMiddleware

__all__ = [
    "BROKEN_LISTENERS",
    "App",
    "Echo",
    "first_message",
    "open_or_status",
    "status_of",
    "wrap",
]

#: Listener files, each broken in a way of its own: some run, and what they define cannot be used.
BROKEN_LISTENERS = {
    "awaits": """
        class L(WebSocketListener):
            async def on_message(self, wsclient, message): pass
    """,
    "empty": "",
    "fails": "1 / 0",
    "idles": "class L(WebSocketListener): idle_timeout = '60'",
    "offers": "class L(WebSocketListener): subprotocols = ['a b']",
    "opens": """
        class L(WebSocketListener):
            def on_first_open(cls, wsclients): pass
    """,
    "routes": "class L(WebSocketListener): path = '/<string(minlength=5,maxlength=2):x>'",
}


class Echo(WebSocketListener):
    """Says where it is, then echoes."""

    def on_open(self, wsclient: Any) -> str:
        """Channel and path parameters."""
        return f"{self.channel} {sorted(self.session.path_parameters.items())}"

    def on_message(self, wsclient: Any, message: Any) -> Any:
        """What came."""
        return message


class App:
    """An application that remembers what it was asked."""

    def __init__(self, name: str = "app") -> None:
        self.name = name
        self.environs: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.environs.append(environ)
        body = f"{self.name} {environ['PATH_INFO']}".encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


def wrap(app: Any = None, *, listener: Any = Echo, **options: Any) -> WebSocketMiddleware:
    """A middleware with the channel `echo`, and no file."""
    middleware = WebSocketMiddleware(app or App(), config=False, **options)
    middleware.register("echo", listener)
    return middleware


def first_message(server: Server, path: str, **options: Any) -> Any:
    """What a channel says to a new client."""
    with server.connect(path, **options) as ws:
        return ws.recv(5)


def status_of(server: Server, path: str, **options: Any) -> int:
    """The status that an independent client is refused with."""
    with pytest.raises(InvalidStatus) as caught, server.connect(path, **options):
        pass
    return caught.value.response.status_code


def open_or_status(server: Server, path: str = "/ws/echo") -> Any:
    """An open client, to be closed, or the status that it was refused with."""
    try:
        return server.connect(path).__enter__()
    except InvalidStatus as exc:
        return exc.response.status_code
