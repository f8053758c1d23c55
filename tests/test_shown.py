"""What a peer sends is one escaped, bounded line wherever it is shown: in logs and exceptions."""

from __future__ import annotations

import base64
import io
import logging
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Server, wait_until
from support.clients import raw_server, read_request
from support.servers import UPGRADE, serve_by, write_app
from wsmiddleware import ConnectionClosed, HandshakeError, create_websocket_client
from wsmiddleware.log import escape

#: Each would be obeyed by a terminal, or end a line, or show what is not there.
HOSTILE = [
    "\x1b[2J",
    "\r",
    "\n",
    "\0",
    "\x07",
    "\x7f",
    "\x85",
    "\x9b2J",
    "\u2028",
    "\u202e",
    "\u200b",
]
FORGED = "\n2026-01-01 00:00:00 ERROR websocket: forged"
ALL = "".join(HOSTILE) + FORGED

#: No line of a log is longer, whatever the peer sends.
LONGEST = 4096


def check(text: str) -> None:
    """Only what can be shown, and no line that begins as a record does."""
    for line in text.splitlines():
        assert line.isprintable(), ascii(line)
        assert len(line) < LONGEST
    assert FORGED not in text


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The `websocket` logger as an operator sees it, frames included."""
    logger, stream = logging.getLogger("websocket"), io.StringIO()
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(5)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def generated(seed: int) -> str:
    """Anything, of any length up to that of a line of a head."""
    made = random.Random(seed)
    return "".join(
        made.choice([*HOSTILE, chr(made.randrange(0x11000)), "x"])
        for _ in range(made.choice([3, 30, 3000]))
    )


@pytest.mark.parametrize("text", [*HOSTILE, ALL, *map(generated, range(20))], ids=ascii)
def test_escaped_text_is_one_bounded_line(text: str) -> None:
    shown = escape(text, 100)
    assert shown.isprintable()
    assert len(shown) <= 100 * len(r"\U00012345") + 30
    assert escape("Grüße, 世界", 100) == "Grüße, 世界"


@pytest.mark.parametrize("text", [*HOSTILE, ALL], ids=ascii)
def test_the_access_log_has_one_line_for_each_request(
    serve: Callable[..., Server], text: str
) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"page"]

    lines = io.StringIO()
    server = serve(app, log=lines, error_log=lines)
    data = f"/x{text}y".encode()
    with server.socket() as sock:
        sock.sendall(b"GET " + data + b' HTTP/1.1"\r\nHost: x\r\n\r\n')
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    wait_until(lambda: '" 400 ' in lines.getvalue(), lines.getvalue)
    check(lines.getvalue())
    assert lines.getvalue().count("\n") == 2  # the access log's, and why it was refused
    access = lines.getvalue().splitlines()[-1]
    assert access.count('"') == 2


@pytest.mark.once
def test_gunicorns_access_log_forges_nothing(tmp_path: Path) -> None:
    source = """
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"page"]
    """
    user = base64.b64encode(f"me{FORGED}\x1b[2J:secret".encode()).decode()
    atoms = ("h", "l", "u", "r", "U", "q", "f", "a", "{x-any}i", "{http_x_any}e", "{remote_addr}e")
    form = "begin " + " ".join(f"%({atom})s" for atom in atoms) + " end"
    options = ["--access-logfile", "-", "--access-logformat", form]
    with serve_by("worker", write_app(tmp_path, source), options) as process:
        for number in range(3):
            with process.server.socket() as sock:
                head = (
                    f"GET /{number}%0abegin%1b%5b2J?q=1 HTTP/1.1\r\nHost: x\r\n"
                    "Connection: close\r\n"
                    f"Authorization: Basic {user}\r\nUser-Agent: \x9b2J\x85\r\n"
                    "Referer: \x1b[2J\r\nX-Any: \x85\x07\r\n\r\n"
                )
                sock.sendall(head.encode("latin-1"))
                while sock.recv(65536):
                    pass
        wait_until(lambda: process.output.count(" end\n") == 3, lambda: process.output)
        check(process.output)
        lines = [line for line in process.output.splitlines() if line.startswith("begin")]
        assert len(lines) == 3
        assert all(line.endswith(" end") for line in lines)


def test_refusals_of_handshakes_forge_nothing(room: Callable[..., Any], log: io.StringIO) -> None:
    from wsmiddleware import WebSocketListener

    where = room(WebSocketListener)
    for name in ("Origin", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Host", "Cookie"):
        for text in ("\x1b[2J\x9b\x85\x07", "x" * 60000):
            head = UPGRADE.replace(b"\r\n\r\n", f"\r\n{name}: {text}\r\n\r\n".encode("latin-1"))
            with where.server.socket() as sock:
                sock.sendall(b"GET /ws/test%0a%1b%5b2J HTTP/1.1\r\n" + head)
                sock.recv(65536)
            with where.server.socket() as sock:
                sock.sendall(b"GET /ws/test HTTP/1.1\r\n" + head)
                sock.recv(65536)
    assert log.getvalue().count("refused ") >= 10
    check(log.getvalue())


def test_what_a_proxy_says_of_an_address_forges_nothing(
    serve: Callable[..., Server], listener_dir: Callable[..., Path], log: io.StringIO
) -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    from wsmiddleware import WebSocketMiddleware

    middleware = WebSocketMiddleware(
        lambda *_: [], config=False, listeners=listener_dir(test="class T(WebSocketListener): ...")
    )
    server = serve(ProxyFix(middleware))
    with server.socket() as sock:
        forwarded = b"X-Forwarded-For: \x1b[2J\x9b\r\n"
        sock.sendall(b"GET /ws/test HTTP/1.1\r\n" + forwarded + UPGRADE)
        assert sock.recv(65536).startswith(b"HTTP/1.1 101")
    wait_until(lambda: "closed, channel test" in log.getvalue(), log.getvalue)
    check(log.getvalue())


@pytest.mark.parametrize("callback", ["on_message", "on_close"])
def test_tracebacks_of_callbacks_forge_nothing(
    room: Callable[..., Any], log: io.StringIO, callback: str
) -> None:
    from wsmiddleware import WebSocketListener

    class Raises(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            if callback == "on_message":
                raise ValueError(message) from KeyError(message)

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            raise ConnectionError(reason_phrase)

    where = room(Raises)
    with where.server.connect("/ws/test") as client:
        client.send(ALL + "x" * 100_000)
        client.send("")
        client.close(4000, ALL[:60])
    wait_until(lambda: "closed, channel test" in log.getvalue(), log.getvalue)
    assert "Traceback" in log.getvalue()
    check(log.getvalue())


def test_our_client_shows_nothing_of_a_server_as_it_came(log: io.StringIO) -> None:
    hostile = "\x1b[2J\x9b\x85\x07\0"
    answers = [
        f"HTTP/1.1 404 Not{hostile}\r\n\r\n",
        f"HTTP/1.1 302 Found\r\nLocation: {hostile}\r\n\r\n",
        f"HTTP/1.1 401 No\r\nWWW-Authenticate: {hostile}\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 500 No\r\nContent-Length: {len(hostile)}\r\n\r\n{hostile}",
        f"{hostile}\r\n\r\n",
        f"HTTP/1.1 101 x\r\nUpgrade: {hostile}\r\n\r\n",
        f"HTTP/1.1 101 x\r\n{hostile}\r\n\r\n",
        "HTTP/1.1 404 " + "x" * 60000 + "\r\n\r\n",
        *(
            "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {text}\r\n\r\n"
            for text in (hostile, "x" * 60000)
        ),
    ]
    for answer in answers:

        def refuse(sock: socket.socket, answer: str = answer) -> None:
            read_request(sock)
            sock.sendall(answer.encode("latin-1"))

        with raw_server(refuse) as url, pytest.raises(HandshakeError) as caught:
            create_websocket_client(url, object())
        assert str(caught.value).isprintable(), answer
        assert len(str(caught.value)) < 1000
    check(log.getvalue())


def test_an_exception_shows_a_close_reason_escaped() -> None:
    text = str(ConnectionClosed(4000, ALL))
    assert text.isprintable()
    assert ConnectionClosed(4000, ALL).reason == ALL
    assert str(ConnectionClosed(1001, "going away")).endswith("(going away)")
