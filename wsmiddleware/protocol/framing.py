"""How long the body of an HTTP request is: RFC 9112, sections 6 and 7.

Whoever reads a length in another way than the proxy in front takes a piece of one client's request
for the next one's. What is not to the letter is refused, and the connection ends.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from wsmiddleware.protocol.head import Head, HeadError

__all__ = ["find_length", "is_trailer", "parse_chunk_size"]

# What a signed number of 64 bits holds: nobody in front can have counted further.
_MAX_LENGTH = 2**63 - 1

# Plain digits: int() takes signs, underscores, blanks and other scripts' digits.
_LENGTH = re.compile("[0-9]{1,19}")

# Section 7.1. Extensions are passed over, as it asks for, but only what is one.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSION = rb";[ \t]*%b[ \t]*(?:=[ \t]*(?:%b|%b)[ \t]*)?" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:%b)*\r\n" % _EXTENSION)
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n")


def find_length(head: Head, version: str) -> int | None:
    """The ``Content-Length`` of a request of HTTP `version`; `None` for no body and a chunked one.

    Raises `HeadError` for what leaves any doubt.
    """
    length, coding = head.get("content-length"), head.get("transfer-encoding")
    if length is None and coding is None:
        return None
    if head.has_bare_lf:
        raise _bad("a body behind header lines that end with LF alone")
    if coding is not None:
        _check_coding(head, coding, version)
        return None
    assert length is not None
    if head.count("content-length") > 1:
        raise _bad("more than one Content-Length")
    if not _LENGTH.fullmatch(length) or int(length) > _MAX_LENGTH:
        raise _bad("a Content-Length that is no number", length)
    return int(length)


def _check_coding(head: Head, coding: str, version: str) -> None:
    """Section 6.1: chunked, and nothing beside it."""
    if head.get("content-length") is not None:
        raise _bad("both Content-Length and Transfer-Encoding")
    if version != "HTTP/1.1":
        raise _bad(f"Transfer-Encoding in {version}")
    if head.count("transfer-encoding") > 1:
        raise _bad("more than one Transfer-Encoding")
    if coding.lower() != "chunked":
        # Section 6.3: where the last coding is another one, nobody can know the length.
        is_known = coding.lower().rpartition(",")[2].strip(" \t") == "chunked"
        status = HTTPStatus.NOT_IMPLEMENTED if is_known else HTTPStatus.BAD_REQUEST
        raise HeadError(status, "a Transfer-Encoding other than chunked", coding.encode("latin-1"))


def _bad(reason: str, found: str = "") -> HeadError:
    return HeadError(HTTPStatus.BAD_REQUEST, reason, found.encode("latin-1"))


def parse_chunk_size(line: bytes) -> int:
    """The size of the chunk that begins with `line`, its line end included; 0 is the last one.

    Raises `ValueError` for what is no such line.
    """
    match = _CHUNK.fullmatch(line)
    size = -1 if match is None else int(match[1], 16)
    if not 0 <= size <= _MAX_LENGTH:
        raise ValueError("a line that is no chunk size")
    return size


def is_trailer(line: bytes) -> bool:
    """True for a header line, its line end included, that may stand behind the last chunk."""
    return _TRAILER.fullmatch(line) is not None
