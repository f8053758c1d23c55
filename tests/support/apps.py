"""A WSGI application that remembers, a listener that echoes, and the middleware around both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from support import Server
from wsmiddleware import WebSocketListener, WebSocketMiddleware

__all__ = ["App", "Echo", "first_message", "open_or_status", "status_of", "wrap"]


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
