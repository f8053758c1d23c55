"""A bare peer: every byte and every moment under the test's control, the codec written here."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent

from support import PATIENCE, Server, websocket_request
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.listeners.clients import WsClient
from wsmiddleware.net.connection import Connection

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "TEXT",
    "Log",
    "Peer",
    "close_frame",
    "connection_of",
    "frame",
    "middleware_for",
    "narrow",
    "peer_of",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

_KEY = b"\x37\xfa\x21\x3d"


def frame(opcode: int, payload: bytes | str = b"", *, fin: bool = True) -> bytes:
    """A masked frame (RFC 6455 section 5.2)."""
    data = payload.encode() if isinstance(payload, str) else payload
    head = bytes([opcode | (0x80 if fin else 0)])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65536:
        head += b"\xfe" + struct.pack("!H", len(data))
    else:
        head += b"\xff" + struct.pack("!Q", len(data))
    key = (_KEY * (len(data) // 4 + 1))[: len(data)]
    masked = int.from_bytes(data, "big") ^ int.from_bytes(key, "big")
    return head + _KEY + masked.to_bytes(len(data), "big")


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame with a code."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


class Peer:
    """The client's end of a connection after its handshake."""

    def __init__(self, sock: socket.socket, data: bytes = b"") -> None:
        self.sock = sock
        self._data = bytearray(data)

    def send(self, *frames: bytes) -> None:
        """Sends bytes, in one piece."""
        self.sock.sendall(b"".join(frames))

    def count_writes(self) -> int:
        """How many writes what has come since the handshake took: TCP's data segments."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("I", info, 152)[0]) - 1  # tcpi_data_segs_in

    def read(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        first, second = self._take(2)
        assert first & 0x80, "the server fragments nothing"
        assert second < 128, "the server masks nothing"
        size = second
        if second == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif second == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first & 0x7F, self._take(size)

    def read_text(self) -> str:
        """The next frame, a text message."""
        opcode, payload = self.read()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    def read_close(self) -> tuple[int, str]:
        """The next frame, a close frame: code (1005 when empty) and reason."""
        opcode, payload = self.read()
        assert opcode == CLOSE, (opcode, payload[:80])
        if not payload:
            return 1005, ""
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def read_end(self) -> None:
        """The end of the stream, with nothing before it."""
        assert not self._data
        assert self.sock.recv(65536) == b""

    def reset(self) -> None:
        """Breaks the connection off with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send_until_full(self, piece: bytes, limit: int = 64 * 2**20) -> int:
        """Sends `piece` again and again until the other end has not read for a while.

        Gives how many whole ones went out; the rest of the last one goes out later, by `finish`.
        """
        count, self._rest = 0, b""
        self.sock.settimeout(0)
        try:
            while count * len(piece) < limit:
                view, looks = memoryview(piece), 0
                while view:
                    try:
                        view, looks = view[self.sock.send(view) :], 0
                    except BlockingIOError:
                        # Turns of the loop, not time: where all of it is held up, that is one.
                        if (looks := looks + 1) > 30:
                            self._rest = bytes(view)
                            return count
                        gevent.sleep(0.01)
                count += 1
        finally:
            self.sock.settimeout(PATIENCE)
        raise AssertionError(f"the server took {limit} bytes and never pushed back")

    def finish(self) -> None:
        """Sends the rest of what `send_until_full` could not."""
        self.sock.sendall(self._rest)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            data = self.sock.recv(65536)
            assert data, f"end of stream, {size} bytes wanted, there are {bytes(self._data)!r}"
            self._data += data
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken


@contextlib.contextmanager
def peer_of(
    server: Server,
    path: str = "/ws/test",
    *,
    behind: bytes = b"",
    receive_buffer: int = 0,
    extensions: str | None = None,
) -> Iterator[Peer]:
    """A bare connection whose handshake is done; `behind` goes out in one piece with it."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.settimeout(PATIENCE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect((server.host, server.port))
        if server.ssl:
            sock = stack.enter_context(server.ssl.wrap_socket(sock, server_hostname=server.host))
        request = websocket_request(path, sec_websocket_extensions=extensions)
        sock.sendall(request + behind)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = sock.recv(65536)
            assert data, answer
            answer += data
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield Peer(sock, rest)


def middleware_for(listener: type[WebSocketListener], **settings: Any) -> WebSocketMiddleware:
    """An application of one channel, ``test``, without a file of settings."""

    def app(environ: Any, start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    middleware = WebSocketMiddleware(app, config=False, **settings)
    middleware.register("test", listener)
    return middleware


def connection_of(middleware: WebSocketMiddleware) -> Connection:
    """The one open connection."""
    (member,) = middleware.registry.members()
    return member.connection


def narrow(wsclient: WsClient) -> None:
    """Lets the kernel hold little of what is sent to this client."""
    transport: Any = wsclient._connection._transport
    transport.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class Log:
    """What the callbacks of a channel were called with: `listener` writes, tests read."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.closes: list[tuple[int, str]] = []
        self.clients: list[WsClient] = []
        self.errors: list[BaseException] = []

    @property
    def client(self) -> WsClient:
        """The last one that came."""
        return self.clients[-1]

    def listener(self, **callbacks: Callable[..., Any]) -> type[WebSocketListener]:
        """A class whose callbacks are logged; `callbacks` replace them or come after that."""
        log = self

        class Logging(WebSocketListener):
            def on_open(self, wsclient: WsClient) -> Any:
                log.clients.append(wsclient)
                return callbacks["on_open"](self, wsclient) if "on_open" in callbacks else None

            def on_message(self, wsclient: WsClient, message: str | bytes) -> Any:
                log.messages.append(message)
                if "on_message" in callbacks:
                    return callbacks["on_message"](self, wsclient, message)
                return message

            def on_close(self, wsclient: WsClient, reason_phrase: str) -> None:
                log.closes.append((wsclient.close_code, reason_phrase))
                if "on_close" in callbacks:
                    callbacks["on_close"](self, wsclient, reason_phrase)

            def on_error(self, wsclient: WsClient, exception: BaseException) -> None:
                log.errors.append(exception)

        return Logging
