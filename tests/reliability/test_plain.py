"""Plain HTTP under `run` and our worker: served as without us, refused to the letter, bounded."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from support import Process, wait_until, websocket_request
from support.procfs import Memory
from support.servers import read_all, serve_by, write_app

WAYS = ["run", "worker"]

APP = """
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        data = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b"unread"
        text = b"%d bytes of %s" % (len(data), environ.get("HTTP_COOKIE", "")[-3:].encode())
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]

    app = WebSocketMiddleware(page, config=False)
"""

ECHO = """
    class Test(WebSocketListener):
        def on_message(self, wsclient, message):
            return message
"""


@pytest.fixture(params=WAYS)
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    with serve_by(request.param, write_app(tmp_path, APP, test=ECHO)) as process:
        yield process


UPLOAD = (
    b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: %b\r\n"
    b"Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: 11\r\n\r\n--XX--\r\nabc"
)

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

REFUSED = {
    b"POST %b HTTP/1.1\r\n" + head + b"\r\n" + body
    for head, body in [
        (b"Transfer-Encoding: xchunked\r\n", NEXT),
        (b"Transfer-Encoding: gzip, chunked\r\n", NEXT),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"+5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5;\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhelloworld\r\n0\r\n\r\n"),
        (b"Content-Length: +5\r\n", b"hello"),
        (b"Content-Length: 1_0\r\n", b"hellohello"),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    ]
} | {
    b"GET %b\xa0 HTTP/1.1\r\n\r\n",
    b"GET %b\x1c HTTP/1.1\r\n\r\n",
    b"GET %b\x85 HTTP/1.1\r\n\r\n",
    b"GET  %b HTTP/1.1\r\n\r\n",
    b"GET %b\r\n\r\n",
}


def test_plain_http_is_served_as_without_us(process: Process) -> None:
    server = process.server
    for cookie in (b"a=b", b"a=b; " * 1800 + b"c=d"):
        request = UPLOAD % cookie
        for cut in (60, len(request) - 30):
            with server.socket() as sock:
                sock.sendall(request[:cut])
                gevent.sleep(0.1)
                sock.sendall(request[cut:])
                answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"11 bytes of " + cookie[-3:])


def test_what_could_be_read_in_two_ways_is_refused_and_one_line(process: Process) -> None:
    for request in sorted(REFUSED):
        for path in (b"/read", b"/unread", b"/ws/test"):
            with process.server.socket() as sock:
                sock.sendall(request % path + NEXT)
                answer = read_all(sock)
            refused = answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
            assert refused and answer.count(b"HTTP/1.1 ") == 1, (request, path, answer)
    wait_until(lambda: process.output.count("Invalid request") >= len(REFUSED))
    assert "Traceback" not in process.output


def test_tls_on_the_plain_port_is_one_line(process: Process) -> None:
    context = ssl.create_default_context()
    with process.server.socket() as sock, pytest.raises(ssl.SSLError, match=r"(?i)wrong.version"):
        context.wrap_socket(sock, server_hostname="localhost")
    assert process.server.get("/").status == 200
    wait_until(lambda: "is it wss:// or https:// to a plain port?" in process.output)
    assert process.output.count("TLS") == 1
    assert "\x16" not in process.output and "x16" not in process.output


def test_heads_cost_no_more_than_their_limit(tmp_path: Path) -> None:
    """A hundred that never end, and sixty sessions of heads as large as may be."""
    folder = write_app(tmp_path, APP, test=ECHO)
    with serve_by("run", folder) as process, contextlib.ExitStack() as stack:
        used = Memory(process.popen.pid)
        for _ in range(100):
            sock = stack.enter_context(process.server.socket())
            sock.sendall(b"GET / HTTP/1.1\r\n")
            with contextlib.suppress(OSError):  # as soon as it is refused
                for _ in range(90):
                    sock.sendall(b"X: " + b"a" * 65_000 + b"\r\n")
        for _ in range(60):
            sock = stack.enter_context(process.server.socket())
            lines = {f"x-{number}": f"{number:02}" * 320 for number in range(90)}
            sock.sendall(websocket_request("/ws/test", **lines))
            assert sock.recv(100).startswith(b"HTTP/1.1 101 ")
        # 160 heads of 64 KiB are 10 MiB; of 90 lines of as much each they were 900.
        assert used.peak < 40 * 2**20
