"""One hostile client in a process of its own: ``python flood.py PORT KIND``, until it is killed.

Not patched by gevent and nothing of the package in it: it makes what it sends as fast as it can.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["FLOODS"]


def small_frame(first: int, payload: bytes = b"") -> bytes:
    """A small client frame, its key zero."""
    return bytes((first, 0x80 | len(payload))) + bytes(4) + payload


def upgrade(port: int, request: bytes = b"") -> socket.socket:
    """A connection after its opening handshake."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(request or REQUEST)
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    assert head.startswith(b"HTTP/1.1 101"), head
    return sock


def send_without_end(port: int, piece: bytes) -> None:
    """The same bytes over and over; what is answered is read and thrown away."""
    sock = upgrade(port)

    def read() -> None:
        while sock.recv(2**20):
            pass

    threading.Thread(target=read, daemon=True).start()
    wire = piece * (1 + 65536 // len(piece))
    while True:
        sock.sendall(wire)


def inflate_without_end(port: int, piece: bytes) -> None:
    """Fifty connections that agree on compression and send the same message over and over."""
    socks = [upgrade(port, DEFLATE) for _ in range(50)]
    wire = piece * (1 + 16384 // len(piece))
    for sock in socks:
        sock.setblocking(False)
    while True:
        readable, writable, _ = select.select(socks, socks, [])
        for sock in readable:
            sock.recv(2**20)
        for sock in writable:
            sock.send(wire)
        # What is sent is enough for seconds; a server that shares the machine needs the time.
        time.sleep(0.002)


def come_and_go(port: int, request: bytes) -> None:
    """Connection after connection, each broken off with a reset once it was answered."""
    while True:
        sock = socket.create_connection(("127.0.0.1", port))
        if request:
            sock.sendall(request)
            sock.recv(4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def come_in_swarms(port: int, request: bytes) -> None:
    """Sixty-four connections at a time, all of them asking before one is answered."""
    while True:
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
        for sock in socks:
            sock.sendall(request)
        for sock in socks:
            sock.recv(4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def come_with_big_heads(port: int, request: bytes) -> None:
    """One connection after the other, each with a head of 60 KB that no other one had."""
    for number in itertools.count():
        name, piece = BIG[number % len(BIG)]
        value = b"%d." % number + piece * (60_000 // len(piece))
        head = request.removesuffix(b"\r\n") + b"%b: %b\r\n\r\n" % (name, value)
        if name == b"Host":
            host = value[:30_000]
            head = request.replace(b"Host: x", b"Host: %b\r\nOrigin: http://%b" % (host, host))
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(head)
        sock.recv(4096)
        sock.close()


BIG = [
    (b"Host", b"\xfc."),
    (b"Origin", b"\xfc."),
    (b"Sec-WebSocket-Extensions", b"a,"),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate;a=b,"),
    (b"Sec-WebSocket-Protocol", b",a"),
    (b"X-Names", b"a, "),
    (b"Cookie", b"a=b; "),
]

REQUEST = (
    b"GET /ws/test HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

DEFLATE = REQUEST.removesuffix(b"\r\n") + (b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")

FLOODS: dict[str, tuple[Callable[[int, bytes], None], bytes]] = {
    "empty messages": (send_without_end, small_frame(0x81)),
    "tiny messages": (send_without_end, small_frame(0x81, b"x" * 8)),
    "empty fragments": (
        send_without_end,
        small_frame(0x01) + small_frame(0x00) * 900 + small_frame(0x80),
    ),
    "pings": (send_without_end, small_frame(0x89, b"x")),
    "pongs": (send_without_end, small_frame(0x8A)),
    # Each block ends the stream for zlib, and the next one begins another.
    "compressed messages of 32 final blocks": (
        inflate_without_end,
        small_frame(0xC1, b"\x03\x00" * 32 + b"\x00"),
    ),
    "connects": (come_and_go, b""),
    "handshakes": (come_and_go, REQUEST),
    "swarms of handshakes": (come_in_swarms, REQUEST),
    "foreign origins": (
        come_in_swarms,
        REQUEST.removesuffix(b"\r\n") + b"Origin: https://evil.example\r\n\r\n",
    ),
    "big heads": (come_with_big_heads, REQUEST),
}


if __name__ == "__main__":
    flood, data = FLOODS[sys.argv[2]]
    flood(int(sys.argv[1]), data)
