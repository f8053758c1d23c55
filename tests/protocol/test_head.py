"""Header lines that are plain are read as pywsgi reads them; all others are left to it."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from gevent import pywsgi

from wsmiddleware.protocol.head import read_head

PLAIN = [
    b"Host: x\r\n\r\n",
    b"Host:x\r\nHost: y\r\n\r\n",
    b"hOST: \t x \t \r\nEmpty:\r\nBlank: \r\n\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked \r\nContent-Type: multipart/mixed\r\n\r\n",
    b"Under_Score: 1\r\nUnder-Score: 2\r\nX: a:b: c\r\n\r\n",
    b"Upper-Half: \x80\x85\xa0\xff\r\n\r\n",
    b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(99)) + b"\r\n",
]

ODD = [
    b"",
    b"\r\n",
    b"Host: x\r\n",
    b"Host: x\n\n",
    b"Host: x\r\n folded\r\n\r\n",
    b"Host: x\r\n\r folded\r\n\r\n",
    b"Host: x\rY: z\r\n\r\n",
    b"Host: x\nY: z\r\n\r\n",
    b"Host : x\r\n\r\n",
    b" Host: x\r\n\r\n",
    b": x\r\n\r\n",
    b"no colon\r\n\r\n",
    b"H\xf6st: x\r\n\r\n",
    b"Host: x\0\r\n\r\n",
    b"Host: x\x0b\x0c\x1c\r\n\r\n",
    b"Host: x\x7f\r\n\r\n",
    b"X: 1\r\n" * 100 + b"\r\n",
]


def environ_of(headers: Any) -> list[tuple[str, str]]:
    """What pywsgi makes of them for the WSGI environ."""
    handler = pywsgi.WSGIHandler.__new__(pywsgi.WSGIHandler)
    handler.headers = headers
    return list(handler._headers())


def assert_same(block: bytes) -> None:
    rfile = io.BufferedReader(io.BytesIO(block + b"behind"))  # type: ignore[arg-type]
    ours, theirs = read_head(rfile), pywsgi.headers_factory(io.BytesIO(block))
    assert ours is not None
    assert rfile.read() == b"behind"
    assert environ_of(ours) == environ_of(theirs)
    assert ours.items() == theirs.items()
    assert (ours.status, ours.typeheader) == (theirs.status, theirs.typeheader)
    for name in (*theirs.keys(), "content-length", "TRANSFER-ENCODING", "Missing"):
        assert ours.get(name, "default") == theirs.get(name, "default")
        assert ours.getheader(name) == theirs.getheader(name)


@pytest.mark.parametrize("block", PLAIN)
def test_plain_lines_are_read_as_pywsgi_does(block: bytes) -> None:
    assert_same(block)


@pytest.mark.parametrize("block", ODD)
def test_all_others_are_left_where_they_are(block: bytes) -> None:
    rfile = io.BufferedReader(io.BytesIO(block))  # type: ignore[arg-type]
    assert read_head(rfile) is None
    assert rfile.read() == block


def test_a_deleted_header_is_not_found() -> None:
    head = read_head(io.BufferedReader(io.BytesIO(PLAIN[3])))  # type: ignore[arg-type]
    assert head is not None
    del head["content-LENGTH"], head["missing"]
    assert head.get("Content-Length") is None


def test_random_lines_are_read_as_pywsgi_does_or_left() -> None:
    chance = random.Random(1)
    pieces = [b"A", b"b-C", b":", b": ", b" ", b"\t", b"\r\n", b"\r", b"\n", b"x\xff", b",", b"_"]
    taken = 0
    for _ in range(20000):
        body = b"".join(chance.choices(pieces, (8, 8, 12, 12, 2, 2, 12, 1, 1, 4, 2, 2), k=12))
        block = b"Host: x\r\n" + body + b"\r\n\r\n"
        end = block.index(b"\r\n\r\n") + 4
        if read_head(io.BufferedReader(io.BytesIO(block))) is not None:  # type: ignore[arg-type]
            assert_same(block[:end])
            taken += 1
    assert taken > 200
