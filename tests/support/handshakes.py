"""One opening handshake on a bare socket, and all that comes back."""

from __future__ import annotations

import http.client
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support import Server, websocket_request
from support.servers import read_all

__all__ = ["Answer", "ask", "handshake"]


@dataclass(frozen=True)
class Answer:
    """A response, and what came behind it until the server closed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    rest: bytes

    @property
    def text(self) -> str:
        """The body, as text."""
        return self.body.decode()


def ask(server: Server, data: bytes) -> Answer:
    """Sends bytes and reads until the server closes the connection; a time-out when it does not."""
    with server.socket() as sock:
        sock.sendall(data)
        received = read_all(sock)
    head, _, rest = received.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    assert line.startswith(b"HTTP/1.1 "), received
    headers = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
    length = int(headers.get("Content-Length") or 0)
    return Answer(int(line.split()[1]), headers, rest[:length], rest[length:])


def handshake(server: Server, path: str, *, behind: bytes = b"", **headers: Any) -> Answer:
    """`ask` with a valid handshake, changed by `headers`, and bytes sent `behind` it."""
    return ask(server, websocket_request(path, **headers) + behind)
