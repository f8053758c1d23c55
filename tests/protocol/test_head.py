"""The head of a request, as bytes: what is read as pywsgi reads it, and what is refused."""

from __future__ import annotations

import contextlib
import io
import random
import time

import pytest
from gevent import pywsgi

from wsmiddleware.protocol.head import (
    Head,
    HeadError,
    HeadLimits,
    RequestLine,
    parse_fields,
    parse_request_line,
)

#: Header lines that mean the same to everybody, and to stock gevent.
SERVED = [
    b"\r\n",
    b"Host: x\r\n\r\n",
    b"Host:x\r\nHost: y\r\n\r\n",
    b"hOST: \t x \t \r\nEmpty:\r\nBlank: \r\n\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked \r\nContent-Type: multipart/mixed\r\n\r\n",
    b"Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: 5\r\n\r\n",
    b"Content-Type: message/rfc822\r\nContent-Type: text/html\r\n\r\n",
    b"Under_Score: 1\r\nUnder-Score: 2\r\nX: a:b: c\r\n\r\n",
    b"Upper-Half: \x80\xe4\xff.\r\n\r\n",
    b"Control: a\x01\x0b\x1c\x7fb\r\n\r\n",
    b'(Name): 1\r\nX[]{}@=?/\\"<>;,: 2\r\n\r\n',
    b"Cookie: " + b"a=b; " * 1800 + b"c=d\r\n\r\n",
    b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(99)) + b"\r\n",
    b"Host: x\n\n",
    b"Host: x\nY: z\r\n\r\n",
    b"Host: x\r\nY: z\n\r\n",
    b"Host: x\r\n folded\r\n\r\n",
    b"Host: x\r\n\tfolded\n \t twice\r\nY: z\r\n\r\n",
    b"X:\r\n folded\r\n\r\n",
]

REFUSED = [
    b" Host: x\r\n\r\n",
    b"\tHost: x\r\nY: z\r\n\r\n",
    b"Host : x\r\n\r\n",
    b"Host\t: x\r\n\r\n",
    b": x\r\n\r\n",
    b"no colon\r\n\r\n",
    b"Host: x\r\nno colon\r\nContent-Length: 3\r\n\r\n",
    b"H\xf6st: x\r\n\r\n",
    b"H\0st: x\r\n\r\n",
    b"Host: x\0\r\n\r\n",
    b"Host: x\rY: z\r\n\r\n",
    b"Host: x\r\r\n\r\n",
    b"Host: x\r\n\r folded\r\n\r\n",
    b"Content-Length:\r\n 5\r\n\r\n",
    b"X: 1\r\nContent-Length: 5\r\n\t\r\n\r\n",
    b"content-length: 5\n 0\r\n\r\n",
    b"TRANSFER-ENCODING: chunked\r\n ,x\r\n\r\n",
]


def stock_fields(block: bytes) -> list[tuple[str, str]]:
    """What pywsgi puts into the environ, each fold a blank (RFC 9112, section 5.2)."""
    handler = pywsgi.WSGIHandler.__new__(pywsgi.WSGIHandler)
    handler.headers = pywsgi.headers_factory(io.BytesIO(block))
    return [(name, unfolded(value)) for name, value in handler._headers()]


def unfolded(value: str) -> str:
    lines = value.replace("\r\n", "\n").split("\n")
    return " ".join([lines[0], *(line.lstrip(" \t") for line in lines[1:])]).strip()


def our_fields(head: Head) -> list[tuple[str, str]]:
    return [
        ("HTTP_" + name.replace("-", "_").upper(), value.strip())
        for name, value in head.items()
        if "_" not in name and name.lower() not in ("content-type", "content-length")
    ]


def assert_same(block: bytes) -> None:
    ours, theirs = parse_fields(block, HeadLimits()), pywsgi.headers_factory(io.BytesIO(block))
    assert our_fields(ours) == stock_fields(block)
    for name in ("Content-Type", "content-length"):
        value = theirs.get(name)
        assert ours.getheader(name, "none") == ("none" if value is None else value.strip(" \t"))
    assert ours.status == theirs.status


@pytest.mark.parametrize("block", SERVED)
def test_what_pywsgi_serves_is_read_as_by_pywsgi(block: bytes) -> None:
    assert_same(block)


@pytest.mark.parametrize("block", REFUSED)
def test_what_two_readers_could_read_in_two_ways_is_a_400(block: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        parse_fields(block, HeadLimits())
    assert caught.value.status == 400


def test_random_lines_are_read_as_pywsgi_does_or_refused() -> None:
    chance = random.Random(1)
    pieces = [b"A", b"b-C", b":", b": ", b" ", b"\t", b"\r\n", b"\r", b"\n", b"x\xff", b",", b"_"]
    taken = 0
    for _ in range(20000):
        body = b"".join(chance.choices(pieces, (8, 8, 12, 12, 2, 2, 12, 1, 1, 4, 2, 2), k=12))
        block = b"Host: x\r\n" + body + b"\r\n\r\n"
        ends = [end for mark in (b"\n\n", b"\n\r\n") if (end := block.find(mark) + len(mark)) > 2]
        block = block[: min(ends)]
        try:
            parse_fields(block, HeadLimits())
        except HeadError:
            continue
        assert_same(block)
        taken += 1
    assert taken > 1000


def test_get_finds_the_first_of_several_by_any_case() -> None:
    head = parse_fields(b"X: 1\r\nx: 2\r\nContent-Type: a/b\r\n\r\n", HeadLimits())
    assert (head.get("x"), head.get("Y"), head.get("Y", "no")) == ("1", None, "no")
    assert (head.typeheader, head.count("x"), head.count("y")) == ("a/b", 2, 0)


# -- the request line -------------------------------------------------------------------------

LINES = {
    b"GET / HTTP/1.1\r\n": RequestLine("GET", "/", "HTTP/1.1", None),
    b"get /%20a?b=c#d HTTP/1.0\n": RequestLine("get", "/%20a?b=c#d", "HTTP/1.0", None),
    b'M-SEARCH /[]{}|^`"<>\\ HTTP/1.2\r\n': RequestLine(
        "M-SEARCH", '/[]{}|^`"<>\\', "HTTP/1.2", None
    ),
    b"GET //x/../y HTTP/0.9\r\n": RequestLine("GET", "//x/../y", "HTTP/0.9", None),
    b"GET http://h:1/a?b HTTP/1.1\r\n": RequestLine("GET", "/a?b", "HTTP/1.1", "h:1"),
    b"GET WS://h?b HTTP/1.1\r\n": RequestLine("GET", "/?b", "HTTP/1.1", "h"),
    b"OPTIONS * HTTP/1.1\r\n": RequestLine("OPTIONS", "*", "HTTP/1.1", None),
    b"CONNECT h:443 HTTP/1.1\r\n": RequestLine("CONNECT", "h:443", "HTTP/1.1", None),
}

NO_LINES = [
    b"\r\n",
    b"GET\r\n",
    b"GET /\r\n",
    b"GET / \r\n",
    b" GET / HTTP/1.1\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / x HTTP/1.1\r\n",
    b"GET\t/ HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\r\n",
    b"GET / HTTP/1.1\r",
    b"GET / HTTP/1.1",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/1.10\r\n",
    b"GET / HTTP/1\r\n",
    b"GET / HTTP/1.\xb2\r\n",
    b"GET / http/1.1\r\n",
    b"GET / HTTP/1.1x\r\n",
    b"G(T / HTTP/1.1\r\n",
    b"G\xcbT / HTTP/1.1\r\n",
    b"GET x HTTP/1.1\r\n",
    b"GET * HTTP/1.1\r\n",
    b"GET :/ HTTP/1.1\r\n",
]


@pytest.mark.parametrize("line", LINES)
def test_request_line_is_read(line: bytes) -> None:
    assert parse_request_line(line) == LINES[line]


@pytest.mark.parametrize("line", NO_LINES)
def test_what_is_no_request_line_is_a_400(line: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        parse_request_line(line)
    assert caught.value.status == 400


@pytest.mark.parametrize("place", ["GE%sT / HTTP/1.1\r\n", "GET /a%s HTTP/1.1\r\n"])
def test_no_byte_but_visible_ascii_is_part_of_method_or_target(place: str) -> None:
    for byte in [*range(0x21), *range(0x7F, 0x100)]:
        with pytest.raises(HeadError):
            parse_request_line((place % chr(byte)).encode("latin-1"))


# -- limits, and time -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "most", "more"),
    [
        (HeadLimits(), b"X: 1\r\n" * 100, b"X: 1\r\n" * 101),
        (HeadLimits(fields=2), b"X: 1\r\nY: 2\r\n", b"X: 1\r\nY: 2\r\n 3\r\n"),
        (HeadLimits(field_size=8), b"X: 45678\r\n" * 3, b"A: 1\r\nX: 456789\r\n"),
        (HeadLimits(field_size=8), b"X: 4\r\n 678\r\n", b"X: 4\r\n 6789\r\n"),
    ],
)
def test_larger_is_a_431(limits: HeadLimits, most: bytes, more: bytes) -> None:
    parse_fields(most + b"\r\n", limits)
    with pytest.raises(HeadError) as caught:
        parse_fields(more + b"\r\n", limits)
    assert caught.value.status == 431


def test_no_limit_of_their_own() -> None:
    limits = HeadLimits(line=0, fields=0, field_size=0)
    assert limits.line_size == limits.size
    assert len(parse_fields(b"X:\r\n" * 1000 + b"\r\n", limits).items()) == 1000


def test_the_errors_text_is_short_and_ascii() -> None:
    with pytest.raises(HeadError) as caught:
        parse_fields(b"\x1b[31m\x80" * 1000 + b"\r\n\r\n", HeadLimits())
    text = str(caught.value)
    assert text.isascii() and text.isprintable() and len(text) < 400
    assert "31m" not in caught.value.reason


SHAPES = {
    "blanks": lambda size: b"X: " + b" " * size + b"\0\r\n\r\n",
    "blanks between": lambda size: b"X: a" + b" \t" * (size // 2) + b"b\r\n\r\n",
    "names": lambda size: b"a" * size + b"\r\n\r\n",
    "colons": lambda size: b":" * size + b"\r\n\r\n",
    "returns": lambda size: b"X: " + b"\r" * size + b"\n\r\n",
    "folds": lambda size: b"X: 1" + b"\r\n " * (size // 3) + b"\0\r\n\r\n",
    "folds of blanks": lambda size: b"X: 1\n" + b" " * size + b"\0\r\n\r\n",
    "many lines": lambda size: b"a:\r\n" * (size // 4) + b"\0\r\n\r\n",
    "lengths": lambda size: b"Content-Length:" * (size // 15) + b"\r\n\r\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear(shape: str) -> None:
    def seconds(size: int) -> float:
        block, limits = SHAPES[shape](size), HeadLimits(fields=0)
        best = 10.0
        for _ in range(5):
            start = time.process_time()
            with contextlib.suppress(HeadError):
                parse_fields(block, limits)
            best = min(best, time.process_time() - start)
        return best

    # Squared it would be 64 times as long.
    assert seconds(512_000) < 24 * seconds(64_000) + 0.001
