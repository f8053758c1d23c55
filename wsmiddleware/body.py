"""``wsgi.input`` of a request with a body: pywsgi's, strict about chunks and frugal with memory.

What is wrong with a body is the peer's fault and ends its connection: it is a `BodyError`, which
Flask and werkzeug answer with 400, and which no further read gets past.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, NoReturn

from gevent import pywsgi
from werkzeug.exceptions import ClientDisconnected

from wsmiddleware.protocol.framing import is_trailer, parse_chunk_size

__all__ = ["Body", "BodyError", "check_chunks", "is_broken"]

# Bytes read at once: a length that a peer claims reserves no memory.
_PIECE = 65536

# Largest line of a chunk's size with its extensions; largest size of all trailers.
_MAX_CHUNK_LINE = 8192
_MAX_TRAILERS = 65536


class BodyError(pywsgi._InvalidClientInput, ClientDisconnected):  # type: ignore[misc]
    """A body that breaks the rules: an `OSError`, and a werkzeug exception with status 400."""

    def __init__(self, reason: str) -> None:
        OSError.__init__(self, reason)
        self.description = reason
        self.response = None

    def __str__(self) -> str:
        return f"{self.description}"


class _Truncated(BodyError):
    """A body that ended too early; what came of it is right."""


class Body(pywsgi.Input):  # type: ignore[misc]
    """The body of one request, as PEP 3333 has it; reading blocks until what was asked for is here.

    Raises `BodyError`, again at each read once it has, and `OSError` when the connection breaks.
    """

    def _do_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        self._begin()
        left = self.content_length - self.position
        size = left if length is None else min(length, left)
        data = self._take(size, use_readline)
        self.position += len(data)
        return data

    def _chunked_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        self._begin()
        pieces: list[bytes] = []
        left = length
        while self.chunk_length and left != 0:
            if self.position >= self.chunk_length:
                self._start_chunk()
                continue
            size = self.chunk_length - self.position
            piece = self._take(size if left is None else min(size, left), use_readline)
            pieces.append(piece)
            self.position += len(piece)
            if left is not None:
                left -= len(piece)
            if self.position == self.chunk_length and self._exactly(2) != b"\r\n":
                self._fail(BodyError("a chunk that is longer than its size"))
            if use_readline and piece.endswith(b"\n"):
                break
        return b"".join(pieces)

    def _begin(self) -> None:
        if self._chunked_input_error:
            raise BodyError("the body is broken")
        self._send_100_continue()

    def _start_chunk(self) -> None:
        line = self._line(_MAX_CHUNK_LINE)
        try:
            size = parse_chunk_size(line)
        except ValueError as exc:
            self._fail(BodyError(str(exc)))
        left = _MAX_TRAILERS
        while size == 0 and (line := self._line(left)) != b"\r\n":
            left -= len(line)
            if not is_trailer(line):
                self._fail(BodyError("a line behind the last chunk that is no header"))
        self.chunk_length, self.position = size, 0

    def _line(self, limit: int) -> bytes:
        line: bytes = self.rfile.readline(limit)
        if not line.endswith(b"\n"):
            is_long = len(line) == limit
            self._fail(BodyError("a line of chunks that is too long") if is_long else _ended())
        return line

    def _take(self, size: int, use_readline: bool) -> bytes:
        """The next `size` bytes, or those of them up to a line's end."""
        if not use_readline:
            return self._exactly(size)
        line: bytes = self.rfile.readline(size)
        if len(line) < size and not line.endswith(b"\n"):
            self._fail(_ended())
        return line

    def _exactly(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0:
            piece: bytes = self.rfile.read(min(size, _PIECE))
            if not piece:
                self._fail(_ended())
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _fail(self, error: BodyError) -> NoReturn:
        self._chunked_input_error = True
        raise error


def is_broken(body: Any) -> bool:
    """True once reading a request's ``wsgi.input`` has failed: what follows is no request."""
    return isinstance(body, Body) and bool(body._chunked_input_error)


def check_chunks(ahead: bytes) -> None:
    """Raise `BodyError` if a chunked body cannot begin with these bytes. Never blocks."""
    with contextlib.suppress(_Truncated):
        Body(io.BytesIO(ahead), None, None, True)._discard()


def _ended() -> BodyError:
    return _Truncated("the connection ended within the body")
