"""How the handler reads a request: a head within limits, parsed by unambiguous rules.

`RequestReader` stands between our handler and pywsgi's. It gathers the bytes, however they are cut;
what they mean is decided in `wsmiddleware.protocol.head` and `wsmiddleware.protocol.framing`.
"""

from __future__ import annotations

import contextlib
import io
import re
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import gevent
import gevent.ssl
from gevent import pywsgi

from wsmiddleware.body import Body, BodyError, check_chunks, is_broken
from wsmiddleware.protocol.framing import find_length
from wsmiddleware.protocol.handshake import has_token
from wsmiddleware.protocol.head import (
    Head,
    HeadError,
    HeadLimits,
    parse_fields,
    parse_request_line,
    regular_size,
)

__all__ = ["RequestReader", "Source", "read_until"]

# The end of a line; the empty line that ends a head (it may be the first line).
_LINE_END = re.compile(rb"\n")
_HEAD_END = re.compile(rb"(?:\A|\n)\r?\n")
_END_SIZE = len(b"\n\r\n")

# In the environ under names of their own (PEP 3333).
_OWN_KEYS = frozenset({"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"})

# The first byte of a TLS handshake; no method begins with it.
_TLS = b"\x16"

# For how many seconds, and up to how many bytes, the rest of a refused request is read.
_LINGER_TIME = 1.0
_LINGER_SIZE = 2**20

_TLS_REASON = "TLS on a port for plain HTTP: is it wss:// or https:// to a plain port?"


class Source(io.RawIOBase):
    """The bytes of a socket as `rfile` reads them, up to the moment that the socket is released.

    Unlike `makefile`, it is no user of the socket whom a close() would have to wait for.
    """

    #: Called before each read of the socket, where given. It may block.
    gate: Callable[[], None] | None = None

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._unread = b""

    def readable(self) -> bool:
        """As files have it."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what comes next; ``None``, which is nothing for now, once `release` was called."""
        if self._unread:
            data, self._unread = self._unread[: len(buffer)], self._unread[len(buffer) :]
            buffer[: len(data)] = data
            return len(data)
        if self._sock is None:
            return None
        if self.gate is not None:
            self.gate()
        return int(self._sock.recv_into(buffer))

    def unread(self, data: bytes) -> None:
        """Have `data` come next, for a reader that has nothing buffered."""
        self._unread = data

    def release(self) -> None:
        """Read no more."""
        self._sock = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing from the socket in this block: a reader gets what it has buffered."""
        self._sock, sock = None, self._sock
        try:
            yield
        finally:
            self._sock = sock


class RequestReader(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Reads the requests of one connection; answers and logs what is wrong with one."""

    #: What a request's head may be.
    head_limits = HeadLimits()

    environ: Any
    wsgi_input: Any
    #: Where the bytes come from, unless `rfile` was given.
    _source: Source | None = None
    #: The request line as it came.
    _line = b""
    #: The host of a request's target where that is a whole URL.
    _authority: str | None = None

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        if rfile is None:
            self._source = Source(sock)
            rfile = io.BufferedReader(self._source)
        super().__init__(sock, address, server, rfile)

    def handle_one_request(self) -> Any:
        """Serve one request; blocks as long as that takes. True when another one may follow."""
        result = super().handle_one_request()
        if isinstance(result, tuple):
            self._refuse(*result)
            return None
        if self.socket is not None and is_broken(self.wsgi_input):
            self._linger()
        return result

    def read_requestline(self) -> str:
        """Wait for the request line; ``""`` at the end of the connection. Not judged yet."""
        self.environ = None  # a log would show the last request's
        try:
            self.read_preamble()
        except HeadError as error:
            _, response = self._handle_client_error(error)
            self._send_last(response)  # no HTTP, and so no line in the access log
            self._linger()
            return ""
        line = self._read_line()
        if line in (b"\r\n", b"\n"):  # RFC 9112, section 2.2: one may stand before a request
            line = self._read_line()
        self._line = line
        # pywsgi has a limit of its own, and asks no more than whether there is one.
        return line[: pywsgi.MAX_REQUEST_LINE - 1].decode("latin-1")

    def _read_line(self) -> bytes:
        size = self.head_limits.line_size
        if b"\n" in self.rfile.peek():
            line: bytes = self.rfile.readline(size + 1)
            return line
        # Not readline(): where bytes come one by one it takes forty times their size.
        return read_until(self.rfile, _LINE_END, size)

    def read_preamble(self) -> None:
        """Read what comes before a request line. Raises `HeadError` for what is no HTTP at all."""
        if self.rfile.peek(1)[:1] == _TLS:
            raise HeadError(HTTPStatus.BAD_REQUEST, _TLS_REASON)

    def unread(self, data: bytes) -> None:
        """Have `data` come next, which was all that had come; for `read_preamble`."""
        assert self._source is not None
        self._source.unread(data)

    def read_request(self, raw_requestline: str) -> bool:
        """Read the rest of the head. Raises `HeadError`, and `BodyError` for what is behind it."""
        self.requestline = raw_requestline.rstrip("\r\n")
        limits, line = self.head_limits, self._line
        if len(line) > limits.line_size:
            reason = f"a request line of more than {limits.line or limits.size} bytes"
            raise HeadError(HTTPStatus.REQUEST_URI_TOO_LONG, reason)
        _check_end(line, _LINE_END)
        found = parse_request_line(line)
        self.command, self.path, self.request_version, self._authority = found
        self.headers = head = self._read_fields(limits.size - len(line))
        self.content_length = find_length(head, found.version)
        self.close_connection = not head.is_regular or _is_last(
            found.version, head.get("connection")
        )
        if self._source is not None and head.get("transfer-encoding") is not None:
            with self._source.paused():
                check_chunks(self.rfile.peek())
        return True

    def _read_fields(self, left: int) -> Head:
        """The header lines, in `left` bytes at most."""
        size = regular_size(self.rfile.peek())  # nearly always, and four times as fast
        if 0 < size <= left:
            return parse_fields(self.rfile.read(size), self.head_limits, is_regular=True)
        block = read_until(self.rfile, _HEAD_END, left)
        if len(block) > left:
            reason = f"a head of more than {self.head_limits.size} bytes"
            raise HeadError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
        _check_end(block, _HEAD_END)
        return parse_fields(block, self.head_limits)

    def get_environ(self) -> dict[str, Any]:
        """As PEP 3333."""
        environ: dict[str, Any] = super().get_environ()
        if self._authority is not None:
            environ["HTTP_HOST"] = self._authority
        stock = self.wsgi_input
        if stock.content_length or stock.chunked_input:
            # It comes before any upgrade (RFC 9110, section 7.8), for which pywsgi leaves it out.
            self.wsgi_input = environ["wsgi.input"] = Body(
                stock.rfile, stock.content_length, stock.socket, stock.chunked_input
            )
            environ["wsgi.input_terminated"] = True
        return environ

    def _headers(self) -> list[tuple[str, str]]:
        """The headers for the environ; pywsgi strips what Unicode takes for blanks, too."""
        return [
            (key, value)
            for name, value in self.headers.items()
            # With an underscore it would be taken for one with a hyphen.
            if "_" not in name
            and (key := "HTTP_" + name.upper().replace("-", "_")) not in _OWN_KEYS
        ]

    def _handle_client_error(self, error: Exception) -> Any:
        """Log an invalid request in one line; give the answer."""
        if isinstance(error, BodyError):
            error = HeadError(HTTPStatus.BAD_REQUEST, str(error))
        if isinstance(error, HeadError):
            self.log_error("Invalid request (from %s): %s", self.client_address, error)
            status = f"{error.status.value} {error.status.phrase}"
            return status, _answer(error.status, error.reason)
        if isinstance(error, OSError):  # it broke off
            return None
        return super()._handle_client_error(error)

    def _refuse(self, status: str, response: bytes) -> None:
        """Send an answer of our own, after which the connection ends."""
        self.status, self._orig_status = status, None  # the log would show the last request's
        self._send_last(response)
        self.time_finish = time.time()
        self.log_request()
        self._linger()

    def _send_last(self, response: bytes) -> None:
        with contextlib.suppress(OSError):
            self._sendall(response)

    def _linger(self) -> None:
        """Read on for a moment: closing with unread input sends a reset, which loses the answer."""
        if isinstance(self.socket, gevent.ssl.SSLSocket):
            return  # it cannot be shut down one way, so that the peer would wait for us
        with contextlib.suppress(OSError), gevent.Timeout(_LINGER_TIME, False):
            self.socket.shutdown(socket.SHUT_WR)
            left = _LINGER_SIZE
            while left > 0 and (data := self.rfile.read1(left)):
                left -= len(data)


def read_until(rfile: io.BufferedReader, end: re.Pattern[bytes], limit: int) -> bytes:
    """The bytes up to what `end` matches, that included; blocks until they are here.

    Without it at the end of the stream, and where there are more than `limit` before it.
    """
    buffer = bytearray()
    while len(buffer) <= limit:
        data = rfile.peek()
        if not data:
            break
        start = max(0, len(buffer) - _END_SIZE + 1)
        buffer += data
        found = end.search(buffer, start)
        if found is not None:
            rfile.read(len(data) - (len(buffer) - found.end()))
            return bytes(buffer[: found.end()])
        rfile.read(len(data))
    return bytes(buffer)


def _check_end(data: bytes, end: re.Pattern[bytes]) -> None:
    if not end.search(data, max(0, len(data) - _END_SIZE)):
        raise HeadError(HTTPStatus.BAD_REQUEST, "the connection ended within the head")


def _is_last(version: str, connection: str | None) -> bool:
    """RFC 9112, section 9.3: no further request follows on this connection."""
    if version == "HTTP/1.1":
        value = connection.lower() if connection else ""
        return "close" in value and has_token(value, "close")
    return version != "HTTP/1.0" or not has_token(connection or "", "keep-alive")


def _answer(status: HTTPStatus, reason: str) -> bytes:
    """A whole response, in plain text."""
    text = f"{reason}\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return (head + text).encode("ascii")
