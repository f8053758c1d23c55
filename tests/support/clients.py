"""For tests of the client: listeners that record, and servers that answer as they please."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from gevent.server import StreamServer
from websockets.sync.server import ServerConnection, serve

from support import PATIENCE, Process, Server, running, wait_until
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.protocol.handshake import accept_key

__all__ = [
    "Recorder",
    "accept",
    "aiohttp_server",
    "echo",
    "raw_server",
    "read_request",
    "serve_echo",
    "websockets_server",
]


class Echo(WebSocketListener):
    def on_message(self, wsclient: Any, message: str | bytes) -> str | bytes:
        return message


def serve_echo(serve: Callable[..., Server]) -> str:
    """Our own echo, for messages of up to 16 MiB; gives the URL."""
    middleware = WebSocketMiddleware(
        lambda environ, start: [], config=False, max_message_size=2**24, send_queue_size=2**25
    )
    middleware.register("echo", Echo)
    return serve(middleware).ws_url("/ws/echo")


def echo(ws: ServerConnection) -> None:
    """An echo for `websockets_server`."""
    for message in ws:
        ws.send(message)


class Recorder:
    """A client's listener that keeps what comes."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_open(self) -> None:
        self.events.append(("open",))

    def on_message(self, message: str) -> None:
        self.events.append(("text", message))

    def on_binary_message(self, binary: bytes) -> None:
        self.events.append(("binary", binary))

    def on_ping(self) -> None:
        self.events.append(("ping",))

    def on_pong(self) -> None:
        self.events.append(("pong",))

    def on_close(self) -> None:
        self.events.append(("close",))

    def on_error(self, type: str, cause: BaseException, data: bytes | None = None) -> None:
        self.events.append(("error", type, cause, data))

    def names(self) -> list[str]:
        """What came, without the content."""
        return [f"{event[0]} {event[1]}" if event[0] == "error" else event[0]
                for event in self.events]  # fmt: skip

    def wait_for(self, *event: Any, times: int = 1) -> None:
        """Returns once an event that starts so has come."""

        def count() -> int:
            return sum(kept[: len(event)] == event for kept in tuple(self.events))

        wait_until(lambda: count() >= times, lambda: f"{event} not {times} times: {self.events}")

    def last(self, name: str) -> tuple[Any, ...]:
        """The last event of this name."""
        return next(event for event in reversed(self.events) if event[0] == name)


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], object], host: str = "127.0.0.1") -> Iterator[str]:
    """Calls `handle` with each connection, in a greenlet; gives the URL."""

    def serve_one(sock: Any, address: object) -> None:
        with contextlib.suppress(ConnectionError):
            handle(sock)
        sock.close()

    server = StreamServer((host, 0), serve_one)
    server.start()
    try:
        where = f"[{host}]" if ":" in host else host
        yield f"ws://{where}:{server.server_port}/"
    finally:
        server.stop(timeout=1)


def read_request(sock: socket.socket) -> bytes:
    """The opening handshake, to its empty line."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, "the client has gone"
        data += piece
    return data


def accept(sock: socket.socket, behind: bytes = b"") -> bytes:
    """Shakes hands, and sends `behind` at once; gives the request."""
    request = read_request(sock)
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key[1].decode()).encode() + b"\r\n\r\n" + behind
    )
    return request


@contextlib.contextmanager
def websockets_server(
    handle: Callable[[ServerConnection], object], **options: Any
) -> Iterator[str]:
    """The independent server of `websockets`, its threads being greenlets; gives the URL."""
    scheme = "wss" if "ssl" in options else "ws"
    patch = mock.patch("websockets.sync.server.selectors", _NoSelector)
    with patch, serve(handle, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{server.socket.getsockname()[1]}/"
        finally:
            server.shutdown()
            thread.join(PATIENCE)


class _NoSelector:
    """Lets the server wait in accept(), which a greenlet may.

    It leaves a patched selector watching a descriptor that it has closed, and libev takes that for
    a fault.
    """

    EVENT_READ = 1

    @classmethod
    def DefaultSelector(cls) -> _NoSelector:
        return cls()

    def register(self, *args: object) -> None: ...
    def select(self) -> None: ...


_AIOHTTP = """
import sys
from aiohttp import WSMsgType, web

async def echo(request):
    ws = web.WebSocketResponse(max_msg_size=0, compress=request.query.get("z") != "0")
    await ws.prepare(request)
    async for message in ws:
        if message.type == WSMsgType.BINARY:
            await ws.send_bytes(message.data)
        elif message.data.startswith("close "):
            await ws.close(code=int(message.data[6:]), message=b"as you like")
        elif message.data == "ping":
            await ws.ping()
        else:
            await ws.send_str(message.data)
    return ws

app = web.Application()
app.router.add_get("/", echo)
sock = __import__("socket").create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
web.run_app(app, sock=sock, print=None)
"""


@contextlib.contextmanager
def aiohttp_server(folder: Path) -> Iterator[Process]:
    """An echo by aiohttp, in a process of its own."""
    (folder / "aiohttp_echo.py").write_text(_AIOHTTP, encoding="utf-8")
    with running(["aiohttp_echo"], cwd=folder) as process:
        yield process
