"""A peer that sends, or takes, as fast as we do holds nobody else up, for as long as it goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import pywsgi

from support import Server
from support.servers import Tls, read_all
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.server import WSGIServer

#: Seconds of processor time that all of it takes, at least.
ALL = 0.2
#: The longest part of that in which the loop may have no turn: all of it, for one that never waits.
#: A part, for where coverage is measured each piece takes several times as long.
SHARE = 0.4

CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


def work(seconds: float) -> None:
    """Keep the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def app(environ: dict[str, Any], start_response: Any) -> Any:
    body = environ["wsgi.input"]
    path = environ["PATH_INFO"]
    if path == "/lines":
        for _ in body:
            pass
    elif path == "/pieces":
        while body.read(1000):
            work(0.001)
    elif path == "/all":
        body.read()
    start_response("200 OK", [])
    return answer() if path == "/answer" else [b"ok"]


def answer() -> Iterator[bytes]:
    for _ in range(300):
        work(0.001)
        yield b"x"


def send(request: bytes) -> Callable[[socket.socket], None]:
    def talk(sock: socket.socket) -> None:
        sock.sendall(request)
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")

    return talk


TINY = b"1\r\nx\r\n" * 150_000 + b"0\r\n\r\n"

REQUESTS = {
    "unread chunks": CHUNKED % b"/" + TINY,
    "chunks": CHUNKED % b"/all" + TINY,
    "lines": LENGTH % (b"/lines", 600_000) + b"\n" * 600_000,
    "pieces": LENGTH % (b"/pieces", 300_000) + b"x" * 300_000,
    "an answer": b"GET /answer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *[("plain", case) for case in REQUESTS],
        *[(kind, case) for kind in ("TLS", "foreign") for case in ("chunks", "an answer")],
    ],
)
def test_one_that_goes_on_gives_way_to_others(kind: str, case: str, tmp_path: Path) -> None:
    tls = Tls(tmp_path) if kind == "TLS" else None
    options: dict[str, Any] = {"ssl_context": tls.server} if tls else {}
    factory = pywsgi.WSGIServer if kind == "foreign" else WSGIServer
    server = factory(("127.0.0.1", 0), app, log=None, handler_class=WebSocketHandler, **options)
    server.start()
    try:
        with Server(server.server_port, tls.client if tls else None).socket() as sock:
            client = gevent.spawn(send(REQUESTS[case]), sock)
            began = last = time.thread_time()
            longest = 0.0
            while not client.dead:
                gevent.sleep(0.0005)
                now = time.thread_time()
                longest, last = max(longest, now - last), now
            client.get()
    finally:
        server.stop()
    assert last - began > ALL, "this is not enough to tell"
    assert longest < SHARE * (last - began)
