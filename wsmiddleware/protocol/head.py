"""The head of an HTTP request, from bytes to values: RFC 9112, sections 2 to 5, and RFC 9110.

What stock gevent serves is read here, too, unless two readers could take it for different
requests: that is a `HeadError`. A line may end with LF alone, as section 2.2 allows, and a header
may be folded, which section 5.2 has servers refuse or unfold; how long a body is must not hang on
either (`wsmiddleware.protocol.framing`). The time is linear in the bytes: no expression below can
match the same text in two ways.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

__all__ = [
    "Head",
    "HeadError",
    "HeadLimits",
    "RequestLine",
    "parse_fields",
    "parse_request_line",
    "regular_size",
]

# How much of a peer's bytes an error shows.
_SHOWN = 60

_TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

# RFC 9112, section 3: single spaces, and no blank, control or other than ASCII in the target.
_REQUEST_LINE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/(?:0\.9|1\.[0-9]))\r?\n"
)
# Section 3.2.2: the form that proxies are asked in.
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)

# A name is what gevent takes for one, a little more than a token; a value anything but what ends
# lines somewhere (RFC 9110, section 5.5).
_FIELDS = re.compile(rb"(?:[!-9;-~]+:[^\0\r\n]*\r\n)*\r\n")
_FIELD = re.compile(rb"[!-9;-~]+:[^\0\r\n]*\r\n")
_LINE_END = re.compile(rb"\r?\n")
_FOLD = re.compile(rb"\r\n[\t ]+")
_FOLDED_LENGTH = re.compile(
    rb"^(?:content-length|transfer-encoding):[^\n]*\n[\t ]", re.IGNORECASE | re.MULTILINE
)


class HeadError(ValueError):
    """A request that is refused; `status` and `reason`, which quotes nothing, are for the peer.

    The text is for the log: the reason, and where it says more the peer's bytes, shortened and
    escaped.
    """

    def __init__(self, status: HTTPStatus, reason: str, found: bytes = b"") -> None:
        shown = ascii(found[:_SHOWN])[1:] + (" ..." if len(found) > _SHOWN else "")
        super().__init__(f"{reason}: {shown}" if found else reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be. Of the last three, which gunicorn has settings for, 0 is no limit.

    ``limit_request_line`` is `line`, ``limit_request_fields`` is `fields`, and
    ``limit_request_field_size`` is `field_size`.
    """

    #: Bytes of the request line and all header lines.
    size: int = 65536
    #: Bytes of the request line, without its line end.
    line: int = 8190
    #: Header lines.
    fields: int = 100
    #: Bytes of one header line.
    field_size: int = 0

    @property
    def line_size(self) -> int:
        """Bytes that the request line and its end may have."""
        return min(self.size, self.line + 2) if self.line else self.size


class RequestLine(NamedTuple):
    """A request line. `authority` is the host of a target that is a whole URL, else None."""

    method: str
    target: str
    version: str
    authority: str | None


class Head:
    """The header fields of one request: what pywsgi and gunicorn use of an `HTTPMessage`."""

    __slots__ = ("_fields", "_values", "has_bare_lf", "is_regular")

    #: What pywsgi finds wrong with them.
    status = ""

    def __init__(
        self, fields: list[tuple[str, str]], *, is_regular: bool, has_bare_lf: bool
    ) -> None:
        self._fields = fields
        self._values = {name.lower(): value for name, value in reversed(fields)}
        #: All lines ended with CRLF, and none was folded.
        self.is_regular = is_regular
        #: A line ended with LF alone.
        self.has_bare_lf = has_bare_lf

    def items(self) -> list[tuple[str, str]]:
        """Names and values as they came, without the blanks around them."""
        return self._fields

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of a header by its name in any case, the first one of several."""
        return self._values.get(name.lower(), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        """The ``Content-Type``."""
        return self.get("content-type")

    def count(self, name: str) -> int:
        """How many headers have this name, which is in lower case."""
        if len(self._values) == len(self._fields):  # nearly always: no two have one name
            return int(name in self._values)
        return sum(each.lower() == name for each, _ in self._fields)


def parse_request_line(line: bytes) -> RequestLine:
    """The request line with its line end, by RFC 9112, section 3. Raises `HeadError`."""
    match = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        raise HeadError(HTTPStatus.BAD_REQUEST, "this is no request line of HTTP/1.1", line)
    method, target, version = match.groups()
    if target[0] == "/":
        return RequestLine(method, target, version, None)
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        path = "/" + target[absolute.end() :].removeprefix("/")
        return RequestLine(method, path, version, absolute[1])
    if method == "CONNECT" or (method, target) == ("OPTIONS", "*"):
        return RequestLine(method, target, version, None)
    raise HeadError(HTTPStatus.BAD_REQUEST, "the target is neither a path nor a URL", line)


def regular_size(data: bytes) -> int:
    """The length of the header lines at the beginning of `data`, with the empty one behind them.

    0 where they have not come as a whole, or are not all of the usual form: for `parse_fields` to
    judge once they are here.
    """
    found = _FIELDS.match(data)
    return found.end() if found else 0


def parse_fields(block: bytes, limits: HeadLimits, *, is_regular: bool = False) -> Head:
    """The header lines, and the empty one behind them. Raises `HeadError`, but for their size.

    `is_regular` is for what `regular_size` has found.
    """
    count = block.count(b"\n") - 1
    if limits.fields and count > limits.fields:
        raise HeadError(_TOO_LARGE, f"more than {limits.fields} header lines")
    is_regular, has_bare_lf = is_regular or _FIELDS.fullmatch(block) is not None, False
    if not is_regular:
        has_bare_lf = count + 1 > block.count(b"\r\n")
        block = _unfold(_LINE_END.sub(b"\r\n", block))
    lines = block[:-2].decode("latin-1").split("\r\n")[:-1]
    if limits.field_size and lines and len(longest := max(lines, key=len)) > limits.field_size:
        name = longest.partition(":")[0].encode("latin-1")
        raise HeadError(_TOO_LARGE, f"a header of more than {limits.field_size} bytes", name)
    parts = [line.partition(":") for line in lines]
    fields = [(name, value.strip(" \t")) for name, _, value in parts]
    return Head(fields, is_regular=is_regular, has_bare_lf=has_bare_lf)


def _unfold(block: bytes) -> bytes:
    """Folded lines joined, each fold a blank, as RFC 9112, section 5.2 has it."""
    if _FOLDED_LENGTH.search(block):
        raise HeadError(HTTPStatus.BAD_REQUEST, "the length of the body is in a folded line")
    block = _FOLD.sub(b" ", block)
    if _FIELDS.fullmatch(block) is None:
        lines = (line + b"\r\n" for line in block.split(b"\r\n"))
        odd = next(line for line in lines if not _FIELD.fullmatch(line))
        raise HeadError(HTTPStatus.BAD_REQUEST, "a line that is no header", odd)
    return block
