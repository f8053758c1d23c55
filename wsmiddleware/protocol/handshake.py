"""Pure helpers of the opening handshake (RFC 6455 section 4): header values in, decisions out."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence

from wsmiddleware.settings import shorten

__all__ = [
    "MAX_LIST_ITEMS",
    "MAX_LIST_SIZE",
    "Extension",
    "accept_key",
    "has_token",
    "is_short_enough",
    "is_valid_key",
    "parse_extensions",
    "parse_tokens",
    "select_subprotocol",
]

Extension = tuple[str, list[tuple[str, "str | None"]]]
"""An extension's name and its parameters in order; a parameter without ``=`` has ``None``."""

MAX_LIST_SIZE = 8192
"""Bytes of a header that is a list; a longer one is not taken apart. It may hold a user's token."""

MAX_LIST_ITEMS = 100
"""Items of such a list, parameters included."""

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# RFC 7230 section 3.2.6. No alternative can match the same text in two ways: the time is linear.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SPACE = re.compile(r"[ \t]*")
_NAME = re.compile(_TOKEN)
_VALUE = re.compile(rf'({_TOKEN})|"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def accept_key(key: str) -> str:
    """Give the ``Sec-WebSocket-Accept`` value for a valid ``Sec-WebSocket-Key`` (section 4.2.2)."""
    # SHA-1 is what the RFC prescribes; it guards nothing here.
    digest = hashlib.sha1((key + _GUID).encode("ascii"), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def is_valid_key(key: str) -> bool:
    """Tell whether ``key`` is base64 of 16 bytes, no more and no less (section 4.1)."""
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def is_short_enough(header: str) -> bool:
    """Tell whether a list is within `MAX_LIST_SIZE` and `MAX_LIST_ITEMS`: to read it is cheap."""
    size = len(header)
    if size < MAX_LIST_ITEMS:  # nearly all of them
        return True
    return size <= MAX_LIST_SIZE and header.count(",") + header.count(";") < MAX_LIST_ITEMS


def has_token(header: str, token: str) -> bool:
    """Tell whether a comma-separated header holds ``token``, in any case (section 4.2.1)."""
    wanted = token.lower()
    return header.lower() == wanted or wanted in map(str.lower, parse_tokens(header))


def parse_tokens(header: str) -> list[str]:
    """Split a comma-separated header; empty elements are skipped (RFC 7230 section 7).

    One that is not `is_short_enough` counts as empty.
    """
    if not is_short_enough(header):
        return []
    return [token for part in header.split(",") if (token := part.strip(" \t"))]


def parse_extensions(header: str) -> list[Extension]:
    """Parse a ``Sec-WebSocket-Extensions`` value (section 9.1), quoted values included.

    A malformed header is a `ValueError` that names the place, and so is one that is not
    `is_short_enough`.
    """
    if not is_short_enough(header):
        raise ValueError(
            f"extensions {shorten(header)}: more than {MAX_LIST_SIZE} bytes or "
            f"{MAX_LIST_ITEMS} items"
        )
    extensions: list[Extension] = []
    pos = _skip_space(header, 0)
    while pos < len(header):
        if header[pos] != ",":
            name, pos = _read_name(header, pos)
            parameters, pos = _read_parameters(header, pos)
            extensions.append((name, parameters))
        if pos < len(header) and header[pos] != ",":
            raise ValueError(f"extensions {shorten(header)}: expected ',' or ';' at {pos}")
        pos = _skip_space(header, pos + 1)
    return extensions


def _read_parameters(header: str, pos: int) -> tuple[list[tuple[str, str | None]], int]:
    parameters: list[tuple[str, str | None]] = []
    while header[pos : pos + 1] == ";":
        name, pos = _read_name(header, _skip_space(header, pos + 1))
        value: str | None = None
        if header[pos : pos + 1] == "=":
            value, pos = _read_value(header, _skip_space(header, pos + 1))
        parameters.append((name, value))
    return parameters, pos


def _read_name(header: str, pos: int) -> tuple[str, int]:
    match = _NAME.match(header, pos)
    if match is None:
        raise ValueError(f"extensions {shorten(header)}: expected a name at {pos}")
    return match[0], _skip_space(header, match.end())


def _read_value(header: str, pos: int) -> tuple[str, int]:
    match = _VALUE.match(header, pos)
    if match is None:
        raise ValueError(f"extensions {shorten(header)}: expected a value at {pos}")
    value = match[1]
    if value is None:
        # Section 9.1: what a quoted string holds must be a token once it is unescaped.
        value = _ESCAPE.sub(r"\1", match[2])
        if _NAME.fullmatch(value) is None:
            raise ValueError(f"extensions {shorten(header)}: quoted value at {pos} is no token")
    return value, _skip_space(header, match.end())


def _skip_space(header: str, pos: int) -> int:
    match = _SPACE.match(header, pos)
    return pos if match is None else match.end()


def select_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """Choose the first of ``supported`` that the client offered, compared exactly, or ``None``."""
    return next((subprotocol for subprotocol in supported if subprotocol in offered), None)
