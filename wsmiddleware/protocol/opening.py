"""The client's side of the opening handshake (RFC 6455 section 4.1), without a socket.

`Opening.request` is what to send, `Opening.feed` takes what comes back, and `Opening.agree` holds
the answer against the RFC, to the letter. Nothing of an answer is taken that is past a limit.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsmiddleware.exceptions import HandshakeError

from .deflate import OFFER, Deflate, agree
from .handshake import accept_key, has_token
from .uri import Target

__all__ = ["MAX_BODY_SIZE", "MAX_HEAD_SIZE", "Agreement", "Opening", "Response", "header_lines"]

MAX_HEAD_SIZE = 65536
"""Bytes that the status line and headers of an answer may have, interim answers included."""

MAX_BODY_SIZE = 16384
"""Bytes of a refusal's body that are kept; the rest is not read."""

_SHOWN_BODY = 200
_SHOWN_VALUE = 80

_STATUS = re.compile(
    rb"HTTP/1\.(?P<minor>[0-9]) (?P<status>[1-9][0-9]{2})(?: (?P<reason>[^\r\n]*))?\Z"
)
_FIELD = re.compile(
    rb"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[^\x00\r\n]*?)[ \t]*\Z"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
# RFC 7230 section 3.2: visible characters, spaces, tabs, and the upper half of Latin-1.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_COOKIE_VALUE = re.compile(r"[!-+\--:<-\[\]-~]*\Z|\"[!-+\--:<-\[\]-~]*\"\Z")

# What the handshake itself says; "host" and "cookie" have rules of their own below.
_OWN = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class Response:
    """A server's answer to an opening handshake."""

    status: int
    reason: str
    #: Names in lower case, in the order of the answer; a name may come twice.
    headers: tuple[tuple[str, str], ...] = ()
    #: At most 16 KiB of it; of a 101 nothing.
    body: bytes = b""

    def get_all(self, name: str) -> list[str]:
        """The values of a header, by its name in any case."""
        return [value for key, value in self.headers if key == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of a header, the first one of several."""
        return next(iter(self.get_all(name)), None)

    @property
    def text(self) -> str:
        """The body as text; what is not UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")


class Agreement(NamedTuple):
    """What client and server agreed on."""

    subprotocol: str | None
    deflate: Deflate | None


def header_lines(
    headers: Mapping[str, str] | Iterable[tuple[str, str]], cookies: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Check what a caller wants to send along; cookies come last, in one ``Cookie`` header.

    Raises `ValueError` for a name or value that would not stay within its line (CR, LF, NUL …), and
    for a header that the handshake itself sends.
    """
    lines: list[tuple[str, str]] = []
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise ValueError(f"{name!r} is no name of a header")
        if not isinstance(value, str) or not _VALUE.match(value):
            raise ValueError(f"header {name}: the value has a character that no header may have")
        if name.lower() in _OWN:
            raise ValueError(f"header {name} is the handshake's own")
        lines.append((name, value.strip(" \t")))
    crumbs = [value for name, value in lines if name.lower() == "cookie"]
    for name, value in cookies.items():
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise ValueError(f"{name!r} is no name of a cookie")
        if not isinstance(value, str) or not _COOKIE_VALUE.match(value):
            raise ValueError(f"cookie {name}: the value has a character that no cookie may have")
        crumbs.append(f"{name}={value}")
    lines = [line for line in lines if line[0].lower() != "cookie"]
    if crumbs:
        # RFC 6265 section 5.4: never more than one such header.
        lines.append(("Cookie", "; ".join(crumbs)))
    return tuple(lines)


class Opening:
    """One opening handshake: a new key each time (section 4.1)."""

    def __init__(
        self,
        target: Target,
        *,
        headers: Sequence[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
        compression: bool = True,
    ) -> None:
        self.key = base64.b64encode(secrets.token_bytes(16)).decode("ascii")
        #: The request, as bytes to send.
        self.request = b""
        #: What came behind the answer: the server's first frames.
        self.leftover = b""
        self._target = target
        self._subprotocols = tuple(subprotocols)
        self._is_compressing = compression
        self._data = bytearray()
        self._head_size = 0
        self._response: Response | None = None
        self.request = self._build(headers)

    def _build(self, headers: Sequence[tuple[str, str]]) -> bytes:
        host = next((value for name, value in headers if name.lower() == "host"), None)
        lines = [
            f"GET {self._target.resource} HTTP/1.1",
            f"Host: {host or self._target.authority}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self.key}",
            "Sec-WebSocket-Version: 13",
        ]
        if self._subprotocols:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(self._subprotocols)}")
        if self._is_compressing:
            lines.append(f"Sec-WebSocket-Extensions: {OFFER}")
        lines += [f"{name}: {value}" for name, value in headers if name.lower() != "host"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def feed(self, data: bytes) -> Response | None:
        """Take what the server sent (``b""`` at its end); gives the answer once it is there.

        Raises `HandshakeError` for what is no HTTP answer.
        """
        self._data += data
        if self._response is None:
            self._read_head(is_end=not data)
        if self._response is None:
            return None
        if self._response.status == 101:
            self.leftover, self._data = bytes(self._data), bytearray()
            return self._response
        body = _read_body(self._response, bytes(self._data), is_end=not data)
        return None if body is None else self.refusal(body)

    def refusal(self, body: bytes | None = None) -> Response | None:
        """The answer, with as much of its body as has come; None before its head."""
        if self._response is None:
            return None
        if body is None:
            body = _read_body(self._response, bytes(self._data), is_end=True) or b""
        head = self._response
        return Response(head.status, head.reason, head.headers, body[:MAX_BODY_SIZE])

    def _read_head(self, *, is_end: bool) -> None:
        while self._response is None:
            end = self._data.find(b"\r\n\r\n")
            if self._head_size + (len(self._data) if end < 0 else end) > MAX_HEAD_SIZE:
                raise HandshakeError(f"the answer's headers have more than {MAX_HEAD_SIZE} bytes")
            if end < 0:
                # What is no HTTP at all is told at its first line: nobody waits for a second one.
                if (start := bytes(self._data[:7])) != b"HTTP/1."[: len(start)] or is_end:
                    raise _no_http(bytes(self._data))
                return
            head = bytes(self._data[:end])
            del self._data[: end + 4]
            self._head_size += end + 4
            response = _parse_head(head)
            # RFC 7231 section 6.2: interim answers (100, 103) may come first.
            if response.status >= 200 or response.status == 101:
                self._response = response

    def agree(self, response: Response) -> Agreement:
        """Hold the answer against section 4.1; `HandshakeError` names the first difference."""
        if response.status != 101:
            raise HandshakeError(_describe_refusal(response), response)
        try:
            _check_upgrade(response)
            accept = _only(response, "sec-websocket-accept")
            if accept != accept_key(self.key):
                raise ValueError(f"Sec-WebSocket-Accept {_say(accept)} does not answer our key")
            return Agreement(self._subprotocol(response), self._deflate(response))
        except ValueError as exc:
            raise HandshakeError(f"not a valid answer to the handshake: {exc}", response) from exc

    def _subprotocol(self, response: Response) -> str | None:
        subprotocol = _only(response, "sec-websocket-protocol")
        if subprotocol is not None and subprotocol not in self._subprotocols:
            raise ValueError(f"subprotocol {_say(subprotocol)} was not offered")
        return subprotocol

    def _deflate(self, response: Response) -> Deflate | None:
        extensions = _only(response, "sec-websocket-extensions")
        if extensions and not self._is_compressing:
            raise ValueError(f"extension {_say(extensions)} was not offered")
        return agree(extensions or "")


def _parse_head(head: bytes) -> Response:
    first, *lines = head.split(b"\r\n")
    match = _STATUS.match(first)
    if match is None:
        raise _no_http(head)
    headers = []
    for line in lines:
        field = _FIELD.match(line)
        if field is None:
            raise HandshakeError(f"the answer has a broken header: {_say(line.decode('latin-1'))}")
        headers.append((field["name"].decode().lower(), field["value"].decode("latin-1")))
    status = int(match["status"])
    reason = (match["reason"] or b"").decode("latin-1")
    if status == 101 and match["minor"] == b"0":
        raise HandshakeError("not a valid answer to the handshake: HTTP/1.0 knows no upgrade")
    return Response(status, reason, tuple(headers))


def _no_http(data: bytes) -> HandshakeError:
    if not data:
        return HandshakeError("the server closed the connection without an answer")
    start = data[:_SHOWN_VALUE].decode("latin-1")
    return HandshakeError(f"the answer is no HTTP: {_say(start)}")


def _check_upgrade(response: Response) -> None:
    upgrade = ", ".join(response.get_all("upgrade"))
    if upgrade.lower() != "websocket":
        raise ValueError(f"Upgrade is {_say(upgrade or None)}, must be websocket")
    connection = ", ".join(response.get_all("connection"))
    if not has_token(connection, "upgrade"):
        raise ValueError(f"Connection is {_say(connection or None)}, must hold Upgrade")


def _only(response: Response, name: str) -> str | None:
    """A header that must not come twice (section 11.3)."""
    values = response.get_all(name)
    if len(values) > 1:
        raise ValueError(f"{name} comes {len(values)} times")
    return values[0] if values else None


def _read_body(response: Response, data: bytes, *, is_end: bool) -> bytes | None:
    """What there is of a refusal's body; None while more of it is to come."""
    is_end = is_end or len(data) >= MAX_BODY_SIZE or response.status in (204, 304)
    if has_token(", ".join(response.get_all("transfer-encoding")), "chunked"):
        body, is_whole = _dechunk(data)
        return body if is_whole or is_end else None
    length = response.get("content-length")
    if length is not None and length.isascii() and length.isdigit():
        # Not int() of any length: Python refuses thousands of digits.
        size = int(length[-18:]) if len(length) <= 18 else MAX_BODY_SIZE
        return data[:size] if is_end or len(data) >= size else None
    return data if is_end else None


def _dechunk(data: bytes) -> tuple[bytes, bool]:
    """Undo chunked coding (RFC 7230 section 4.1): the body, and whether that is all of it."""
    body, pos = b"", 0
    while True:
        end = data.find(b"\r\n", pos)
        if end < 0:
            return body, False
        digits = data[pos:end].partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
            return body, True  # broken: what came before is good enough for a message
        size = int(digits, 16)
        if not size:
            return body, True
        body += data[end + 2 : end + 2 + size]
        pos = end + 2 + size + 2


def _describe_refusal(response: Response) -> str:
    told = f"the server answered {response.status} {response.reason}".rstrip()
    location = response.get("location")
    if 300 <= response.status < 400 and location:
        return f"{told}, a redirect to {_say(location)}: it is not followed"
    challenge = response.get("www-authenticate")
    if response.status == 401 and challenge:
        told += f" ({_say(challenge)})"
    text = " ".join(response.text.split())
    if len(text) > _SHOWN_BODY:
        text = text[:_SHOWN_BODY] + "…"
    return f"{told}: {text}" if text.isprintable() and text else told


def _say(value: str | None) -> str:
    if value is None:
        return "missing"
    return repr(value if len(value) <= _SHOWN_VALUE else value[:_SHOWN_VALUE] + "…")
