"""What we serve, nginx and llhttp (Node's parser) read as the same requests: none is smuggled.

Each may refuse what another serves; but as far as two of them read a connection, they agree on
which requests it holds, and with which bodies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from gevent import pywsgi
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support import Server, serving
from support.nginx import free_port, running_nginx
from support.readers import Reading, read_by_llhttp
from support.servers import read_all

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

CONFIGURATION = """
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
        proxy_ignore_client_abort on;
    }}
}}
"""


class Log(list[str]):
    """A server's log."""

    write = list.append


def telling(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that answers with its target and the body of the request."""
    body = environ["wsgi.input"].read().decode("latin-1")
    text = json.dumps([environ["PATH_INFO"], body]).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


class Readers(NamedTuple):
    """Our server, and nginx in front of stock gevent, which gets each body with its length."""

    ours: Server
    nginx: Server


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    stock = pywsgi.WSGIServer(("127.0.0.1", 0), telling, log=None, error_log=Log())
    stock.start()
    port = free_port()
    text = CONFIGURATION.format(port=port, upstream=stock.server_port)
    folder = tmp_path_factory.mktemp("nginx")
    with serving(telling, error_log=Log()) as ours, running_nginx(folder, text, port):
        yield Readers(ours, Server(port))
    stock.stop()


def read_by(server: Server, data: bytes) -> tuple[list[Reading], int]:
    """The requests that a server has served of what is sent at once, and its last status."""
    with server.socket() as sock:
        sock.sendall(data)
        sock.shutdown(1)
        rest = read_all(sock)
    readings, status = [], 0
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if status == 200:
            target, body = json.loads(rest[:length])
            readings.append(Reading(target, body.encode("latin-1")))
        rest = rest[length:]
    return readings, status


def agree(one: list[Reading], other: list[Reading]) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))


def request(fields: list[bytes], body: bytes, *, version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\nHost: x\r\n" + b"".join(fields) + b"\r\n" + body


LENGTHS = [
    *(
        b"5",
        b"05",
        b"0",
        b"16",
        b"+5",
        b"-5",
        b"5_0",
        b"0x5",
        b"5,5",
        b"5, 6",
        b"5 5",
        b"",
        b"\xb2",
    ),
    *(
        b"5\x0b",
        b"\xa05",
        b"5.0",
        b"18446744073709551621",
        b"\t5 ",
        b"5\r\n ",
        b"5\r\n 0",
        b"\r\n 5",
    ),
]
CODINGS = [
    *(b"chunked", b"Chunked", b"chunked ", b"\tchunked", b"xchunked", b"chunked, chunked", b"gzip"),
    *(b"gzip, chunked", b"chunked, gzip", b"identity", b"\x0bchunked", b"chunked;a", b'"chunked"'),
    *(b"", b"chun ked", b"chunked\r\n ", b"chunked\r\n , x", b"\r\n chunked", b"\xffchunked"),
]
NAMES = [
    *(b"%b:", b"%b: ", b"%b :", b"%b\t:", b" %b:", b"X: y\r\n %b:", b"X: y\n%b:", b"X: y\r%b:"),
    *(b"X: y\0%b:", b"%b\0:", b"X\r\n%b:", b":%b:", b"X: y\r\r\n%b:", b"(%b):", b"\xa0%b:"),
]
SIZES = [
    *(
        b"5",
        b"05",
        b"+5",
        b"5 ",
        b" 5",
        b"0x5",
        b"5_",
        b"5;a",
        b"5;a=b",
        b'5;a="b"',
        b"5;",
        b"5;\n",
    ),
    *(
        b"5;a\n",
        b"5\n",
        b"5\r",
        b"G",
        b"",
        b"-5",
        b"5,",
        b"10000000000000005",
        b"fffffffffffffffff",
    ),
    *(b"5;a=\r", b"5;\r\r", b"5;\xff", b"5;a\0", b"00000000000000005", b"5\x0b", b"5;a b"),
]
ENDS = [b"\r\n", b"\r\n", b"\n", b"\r", b"", b"x", b"xx", b"\r\r\n", b"\n\n", b" \r\n"]
TRAILERS = [b"", b"", b"", b"X: y\r\n", b"X\r\n", b" X: y\r\n", b"X: y\n", b"Content-Length: 9\r\n"]

#: A body that is the same to all; those that are odd in one place; and requests within one.
PIECES = st.one_of(
    st.just(b"hello"), st.sampled_from([NEXT, b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"])
)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    name, value = draw(
        st.one_of(
            st.tuples(st.just(b"Content-Length"), st.sampled_from(LENGTHS)),
            st.tuples(st.just(b"Transfer-Encoding"), st.sampled_from(CODINGS)),
        )
    )
    shape = draw(st.one_of(st.just(b"%b: "), st.sampled_from(NAMES)))
    return shape % name + value + draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b" \r\n"]))


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    usual = st.just(b"5")
    size = draw(st.one_of(usual, st.sampled_from(SIZES)))
    after_size = draw(st.one_of(st.just(b"\r\n"), st.sampled_from(ENDS)))
    after_data = draw(st.one_of(st.just(b"\r\n"), st.sampled_from(ENDS)))
    last = draw(st.sampled_from([b"0\r\n", b"0\r\n", b"000;a\r\n", b"0\n", b"0 \r\n", b"0;\r\n"]))
    data = draw(st.sampled_from([b"hello", b"hell\n", b"\r\n\r\n0", b"0\r\n\r\n"]))
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]))
    return size + after_size + data + after_data + last + draw(st.sampled_from(TRAILERS)) + end


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(fields(), min_size=1, max_size=2),
    st.one_of(chunks(), PIECES),
    st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]),
)
@example([b"Transfer-Encoding: xchunked\r\n"], NEXT, b"1.1")
@example([b"Content-Length: +5\r\n"], b"hello", b"1.1")
@example([b"Transfer-Encoding: chunked\r\n"], b"5;\nhello\r\n0\r\n\r\n", b"1.1")
def test_no_two_readers_find_different_requests(
    readers: Readers, lines: list[bytes], body: bytes, version: bytes
) -> None:
    data = request(lines, body, version=version) + NEXT
    ours, status = read_by(readers.ours, data)
    assert status in (200, 400, 501)
    theirs = read_by_llhttp(data)
    assert agree(ours, theirs), f"llhttp reads {theirs}, we {ours}"
    behind_nginx, _ = read_by(readers.nginx, data)
    assert agree(ours, behind_nginx), f"nginx reads {behind_nginx}, we {ours}"


CHUNKED = [b"Transfer-Encoding: chunked\r\n"]

SERVED = {
    "a length": request([b"Content-Length: 5\r\n"], b"hello"),
    "none": request([], b""),
    "chunks": request(CHUNKED, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    "extensions": request(CHUNKED, b'5;a;b=c;d="e"\r\nhello\r\n0;x\r\n\r\n'),
    "trailers": request(CHUNKED, b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
}


@pytest.mark.parametrize("case", SERVED)
def test_what_is_right_is_served_by_all(readers: Readers, case: str) -> None:
    data = SERVED[case] + NEXT
    expected = [Reading("/", b"" if case == "none" else b"hello"), Reading("/next", b"")]
    assert read_by(readers.ours, data) == (expected, 200)
    assert read_by(readers.nginx, data) == (expected, 200)
    assert read_by_llhttp(data) == expected


@pytest.mark.parametrize("shape", NAMES[2:])
@pytest.mark.parametrize("lines", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_hidden_length_never_has_a_second_reading(
    readers: Readers, shape: bytes, lines: bytes
) -> None:
    name, _, value = lines.partition(b": ")
    for body in (b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n"):
        data = request([shape % name + value], body) + NEXT
        ours, _ = read_by(readers.ours, data)
        assert agree(ours, read_by_llhttp(data))
        assert agree(ours, read_by(readers.nginx, data)[0])
