"""Hundreds of reading clients in one process: each a greenlet, a bare socket and what it got."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import gevent

from support import Server, wait_until, websocket_request
from support.wire import CLOSE, PING, PONG, TEXT, close_frame, frame

__all__ = ["Visitor", "swarm"]


class Visitor:
    """Reads until the end of the stream and answers what must be answered."""

    def __init__(self, server: Server, path: str) -> None:
        #: Text messages, in the order in which they came.
        self.messages: list[str] = []
        #: The code of the server's close frame, 1005 for an empty one; 1006 without any.
        self.code = 1006
        self.has_opened = False
        self._server = server
        self._path = path
        self._sock = socket.socket()
        self.greenlet = gevent.spawn(self._run)

    def send(self, text: str) -> None:
        """Send a text message; nothing when the connection has gone."""
        with contextlib.suppress(OSError):
            self._sock.sendall(frame(TEXT, text))

    def _run(self) -> None:
        sock = self._sock
        with sock:
            sock.settimeout(60)
            sock.connect((self._server.host, self._server.port))
            sock.sendall(websocket_request(self._path))
            data = bytearray()
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(65536):
                    data += piece
                    self._take(data)

    def _take(self, data: bytearray) -> None:
        if not self.has_opened:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            assert data.startswith(b"HTTP/1.1 101 "), bytes(data)
            del data[: end + 4]
            self.has_opened = True
        pos = 0
        while len(data) - pos >= 2:
            size, start = data[pos + 1], pos + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                if len(data) < start:
                    break
                size = int.from_bytes(data[pos + 2 : start], "big")
            if len(data) < start + size:
                break
            self._receive(data[pos] & 15, bytes(data[start : start + size]))
            pos = start + size
        del data[:pos]

    def _receive(self, opcode: int, payload: bytes) -> None:
        assert self.code == 1006, "nothing comes behind a close frame"
        if opcode == TEXT:
            self.messages.append(payload.decode())
        elif opcode == PING:
            self._sock.sendall(frame(PONG, payload))
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._sock.sendall(close_frame(self.code) if payload else frame(CLOSE))


@contextlib.contextmanager
def swarm(server: Server, path: str, count: int) -> Iterator[list[Visitor]]:
    """`count` open visitors of one channel."""
    visitors = [Visitor(server, path) for _ in range(count)]
    try:
        wait_until(
            lambda: all(each.has_opened for each in visitors),
            lambda: f"{sum(each.has_opened for each in visitors)} of {count} have opened",
            timeout=30,
        )
        yield visitors
    finally:
        gevent.killall([each.greenlet for each in visitors])
