"""An application that upgrades every request and talks raw on the transport; and its peer."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from gevent.event import AsyncResult, Event

from support import wait_until
from wsmiddleware.net.transport import Transport
from wsmiddleware.upgrade import find_upgrade

__all__ = ["ACCEPTED", "HEADERS", "Accepting", "echo", "read_head", "read_now", "refusing"]

HEADERS = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "x")]
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


def read_head(sock: socket.socket) -> bytes:
    """A response up to its empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return head


def read_now(transport: Transport) -> bytes:
    """What comes next on a transport, which itself never waits."""
    data: list[bytes] = []

    def has_come() -> bool:
        try:
            data.append(transport.recv(65536))
        except BlockingIOError:
            return False
        return True

    wait_until(has_come)
    return data[0]


class Accepting:
    """An application that upgrades every request, and what it got."""

    def __init__(self) -> None:
        self.got: AsyncResult[tuple[Transport, bytes]] = AsyncResult()
        self.closed = Event()
        self.returned = Event()
        self.environ: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.environ = environ
        upgrade = find_upgrade(environ)
        assert upgrade is not None
        self.got.set(upgrade.accept(HEADERS))
        start_response("101 Switching Protocols", HEADERS)
        try:
            upgrade.park(self.closed)
        finally:
            self.returned.set()
        return [b"dropped"]


def refusing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that upgrades nothing."""
    start_response("403 Forbidden", [("Content-Type", "text/plain")])
    return [b"no"]


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """What flask-sockets does: routes first, then the application talks on ``wsgi.websocket``."""
    if environ["PATH_INFO"] != "/echo":
        return refusing(environ, start_response)
    websocket = environ["wsgi.websocket"]
    while (message := websocket.receive()) is not None:
        websocket.send(message)
    return []
