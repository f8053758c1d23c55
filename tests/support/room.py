"""One channel under a real server, and real threads beside the loop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from gevent import monkey
from websockets.sync.client import ClientConnection

from support import Server, wait_until, websocket_request
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.clients import WsClients

__all__ = [
    "MakeRoom",
    "Room",
    "hello",
    "hold_up_thread",
    "open_by_hand",
    "room_maker",
]

#: `time.sleep` without the loop's knowledge: for native threads, and for holding the loop up.
hold_up_thread: Callable[[float], None] = monkey.get_original("time", "sleep")


@dataclass
class Room:
    """A served middleware with one channel."""

    server: Server
    middleware: WebSocketMiddleware
    name: str = "test"

    @property
    def channel(self) -> Channel:
        """What the package knows of the channel."""
        return self.middleware.registry.channels[self.name]

    @property
    def wsclients(self) -> WsClients:
        """What `on_first_open` is given."""
        return self.channel.wsclients

    def connect(self, query: str = "", **options: Any) -> AbstractContextManager[ClientConnection]:
        """One client of the channel."""
        return self.server.connect(f"/ws/{self.name}{query}", **options)

    def connect_many(self, stack: ExitStack, count: int) -> list[ClientConnection]:
        """Several clients, all of them open at the server."""
        clients = [stack.enter_context(self.connect(f"?{number}")) for number in range(count)]
        wait_until(lambda: self.wsclients.size() >= count)
        return clients

    def wait_until_settled(self) -> None:
        """Every callback has ended and none is due."""
        wait_until(lambda: self.channel.is_settled)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """The wrapped application."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


MakeRoom = Callable[..., Room]


def room_maker(serve: Callable[..., Server]) -> MakeRoom:
    """What the fixture `room` is."""

    def make(listener_class: type[WebSocketListener], **settings: Any) -> Room:
        middleware = WebSocketMiddleware(hello, config=False, **settings)
        middleware.register("test", listener_class)
        return Room(serve(middleware), middleware)

    return make


def open_by_hand(sock: socket.socket, path: str = "/ws/test") -> None:
    """The opening handshake on a bare socket."""
    sock.sendall(websocket_request(path))
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1)
    assert data.startswith(b"HTTP/1.1 101")
