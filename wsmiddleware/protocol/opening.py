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

__all__ = [
    "MAX_BODY_SIZE",
    "MAX_HEADERS",
    "MAX_HEAD_SIZE",
    "Agreement",
    "Opening",
    "Response",
    "header_lines",
]

MAX_HEAD_SIZE = 65536
"""Bytes that the status line and headers of an answer may have, interim answers included."""

MAX_HEADERS = 256
"""Header lines that an answer may have."""

MAX_BODY_SIZE = 16384
"""Bytes of a refusal's body that are kept; the rest is not read."""

_MAX_CHUNK_LINE = 256
_SHOWN_BODY = 200
_SHOWN_VALUE = 80

_STATUS = re.compile(
    rb"HTTP/1\.(?P<minor>[0-9]) (?P<status>[1-9][0-9]{2})(?: (?P<reason>[^\r\n]*))?\Z"
)
# With the blanks around the value, which a pattern would look for at each of its bytes.
_FIELD = re.compile(rb"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):(?P<value>[^\x00\r\n]*)\Z")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
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
        #: Where the end of a head may begin: nothing is searched twice.
        self._searched = 0
        self._response: Response | None = None
        self._body: _Body | None = None
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
        if self._body is None:
            self._body = _Body(self._response)
        is_whole = self._body.feed(self._data) or not data
        return self.refusal() if is_whole else None

    def refusal(self) -> Response | None:
        """The answer, with as much of its body as has come; None before its head."""
        if self._response is None or self._body is None:
            return None
        head = self._response
        return Response(head.status, head.reason, head.headers, bytes(self._body.data))

    def _read_head(self, *, is_end: bool) -> None:
        while self._response is None:
            end = self._data.find(b"\r\n\r\n", self._searched)
            if self._head_size + (len(self._data) if end < 0 else end) > MAX_HEAD_SIZE:
                raise HandshakeError(f"the answer's headers have more than {MAX_HEAD_SIZE} bytes")
            if end < 0:
                # What is no HTTP at all is told at its first line: nobody waits for a second one.
                if (start := bytes(self._data[:7])) != b"HTTP/1."[: len(start)] or is_end:
                    raise _no_http(bytes(self._data))
                self._searched = max(0, len(self._data) - 3)
                return
            head = bytes(self._data[:end])
            del self._data[: end + 4]
            self._searched = 0
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
    if len(lines) > MAX_HEADERS:
        raise HandshakeError(f"the answer has more than {MAX_HEADERS} headers")
    headers = []
    for line in lines:
        field = _FIELD.match(line)
        if field is None:
            raise HandshakeError(f"the answer has a broken header: {_say(line.decode('latin-1'))}")
        value = field["value"].strip(b" \t").decode("latin-1")
        headers.append((field["name"].decode().lower(), value))
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


class _Body:
    """A refusal's body as it comes, `MAX_BODY_SIZE` of it at most; no byte is looked at twice."""

    __slots__ = ("_is_chunked", "_left", "_skip", "data")

    def __init__(self, response: Response) -> None:
        self.data = bytearray()
        has_none = response.status in (204, 304)
        coding = ", ".join(response.get_all("transfer-encoding"))
        self._is_chunked = not has_none and has_token(coding, "chunked")
        #: Bytes that are still to come of the body, or of its chunk.
        self._left = 0 if has_none or self._is_chunked else _body_size(response)
        #: Bytes of the line end behind the last chunk.
        self._skip = 0

    def feed(self, data: bytearray) -> bool:
        """Take what `data` has of it; true when no more is wanted."""
        if self._is_chunked:
            return self._dechunk(data) or len(self.data) == MAX_BODY_SIZE
        self._take(data)
        return not self._left

    def _take(self, data: bytearray) -> None:
        self.data += data[: min(self._left, MAX_BODY_SIZE - len(self.data))]
        taken = min(self._left, len(data))
        self._left -= taken
        del data[:taken]

    def _dechunk(self, data: bytearray) -> bool:
        """Undo chunked coding (RFC 7230 section 4.1); true at its end, or where it is broken."""
        while True:
            self._take(data)
            end = -1 if self._left else data.find(b"\r\n", self._skip)
            if end < 0:
                return not self._left and len(data) > _MAX_CHUNK_LINE
            digits = bytes(data[self._skip : end]).partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(digits) or not int(digits, 16):
                return True  # broken: what came before is good enough for a message
            self._left, self._skip = int(digits, 16), 2
            del data[: end + 2]


def _body_size(response: Response) -> int:
    length = response.get("content-length")
    # Not int() of any length: Python refuses thousands of digits.
    if length is None or not (length.isascii() and length.isdigit()) or len(length) > 18:
        return MAX_BODY_SIZE
    return min(int(length), MAX_BODY_SIZE)


def _describe_refusal(response: Response) -> str:
    reason = response.reason
    if not reason.isprintable() or len(reason) > _SHOWN_VALUE:
        reason = _say(reason)
    told = f"the server answered {response.status} {reason}".rstrip()
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
