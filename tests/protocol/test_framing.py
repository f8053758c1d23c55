"""How long a body is: to the letter, or not at all."""

from __future__ import annotations

import pytest

from wsmiddleware.protocol.framing import find_length, is_trailer, parse_chunk_size
from wsmiddleware.protocol.head import HeadError, HeadLimits, parse_fields

#: Header lines, and what they say.
LENGTHS = {
    "": None,
    "Host: x\n": None,
    "Content-Length: 0\r\n": 0,
    "content-LENGTH:\t 0012 \t\r\nX: y\r\n": 12,
    "Content-Length: 9223372036854775807\r\n": 2**63 - 1,
    "Content_Length: x\r\n": None,
    "Transfer-Encoding: chunked\r\n": None,
    "TRANSFER-encoding:Chunked\t\r\n": None,
}

NO_LENGTHS = [
    *(
        "",
        "+5",
        "-5",
        "-0",
        "1_0",
        "0x5",
        "5.0",
        "5e0",
        "5 0",
        "5,5",
        "5, 5",
        "5;",
        "\xb2",
        "\xa05",
    ),
    *("5\x0b", "\x0c5", "5\x85", "9223372036854775808", "0" * 20, "1" * 5000),
]

NO_CODINGS = [
    *("", "identity", "xchunked", "chunkedx", "chunked,", ",chunked", "chunked, chunked"),
    *("gzip", "gzip, chunked", "chunked, gzip", "chunked;q=1", '"chunked"', "\x0bchunked"),
    *("chunked\x0c", "\xa0chunked", "chunked\x85", "chun ked", "chun\tked"),
]


def find(lines: str, version: str = "HTTP/1.1") -> int | None:
    return find_length(parse_fields(lines.encode("latin-1") + b"\r\n", HeadLimits()), version)


@pytest.mark.parametrize("lines", LENGTHS)
def test_length_is_found(lines: str) -> None:
    assert find(lines) == LENGTHS[lines]


@pytest.mark.parametrize("value", NO_LENGTHS)
def test_other_than_plain_digits_is_a_400(value: str) -> None:
    with pytest.raises(HeadError) as caught:
        find(f"Content-Length: {value}\r\n")
    assert caught.value.status == 400


@pytest.mark.parametrize("value", NO_CODINGS)
def test_other_than_chunked_is_a_400_or_a_501(value: str) -> None:
    with pytest.raises(HeadError) as caught:
        find(f"Transfer-Encoding: {value}\r\n")
    # RFC 9112, section 6.3 wants 400 where the last coding is another one.
    is_last = value.lower().endswith("chunked") and value.lower()[-8:-7] in (",", " ")
    assert caught.value.status == (501 if is_last else 400)


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nX: y\r\nCONTENT-length: 6\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "X: y\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nX: y\n",
        "Content-Length: 5\n",
        "Transfer-Encoding: chunked\n",
    ],
)
def test_two_lengths_and_lines_that_may_be_one_are_a_400(lines: str) -> None:
    with pytest.raises(HeadError) as caught:
        find(lines)
    assert caught.value.status == 400


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9"])
def test_chunked_is_unknown_before_http_1_1(version: str) -> None:
    with pytest.raises(HeadError):
        find("Transfer-Encoding: chunked\r\n", version)
    assert find("Content-Length: 5\r\n", version) == 5


CHUNKS = {
    b"0\r\n": 0,
    b"000\r\n": 0,
    b"aF\r\n": 0xAF,
    b"7fffffffffffffff\r\n": 2**63 - 1,
    b"5;a\r\n": 5,
    b'5;a=b;c="d; \\"";e\r\n': 5,
    b"5; a = b\t; c\r\n": 5,
}

NO_CHUNKS = [
    *(b"\r\n", b"5", b"5\n", b"5\r", b"5\r\r\n", b"\n5\r\n", b" 5\r\n", b"5 \r\n", b"+5\r\n"),
    *(b"0x5\r\n", b"5_0\r\n", b"g\r\n", b"5,\r\n", b";a\r\n", b"\xb2\r\n", b"8000000000000000\r\n"),
    *(b"0" * 17 + b"\r\n", b"5;\r\n", b"5;;a\r\n", b"5;a=\r\n", b"5;a b\r\n", b"5;a\nb\r\n"),
    *(b"-5\r\n", b"5;a\n", b"5;a\rb\r\n", b"5;a\0\r\n", b'5;a="b\r\n', b'5;a="\n"\r\n'),
    *(b"5;a=b=c\r\n", b"5 ;a\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("line", CHUNKS)
def test_chunk_size_is_read(line: bytes) -> None:
    assert parse_chunk_size(line) == CHUNKS[line]


@pytest.mark.parametrize("line", NO_CHUNKS)
def test_what_is_no_chunk_size_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="no chunk size"):
        parse_chunk_size(line)


def test_trailers_are_header_lines() -> None:
    assert is_trailer(b"A-b: \t c\x80\r\n") and is_trailer(b"a:\r\n")
    for line in (
        b"a\r\n",
        b": b\r\n",
        b" a: b\r\n",
        b"a : b\r\n",
        b"a: b\n",
        b"a: b\0\r\n",
        b"a: b\rc\r\n",
    ):
        assert not is_trailer(line)
