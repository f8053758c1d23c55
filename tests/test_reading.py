"""How requests are read, on real sockets: as stock gevent reads them, however they are cut."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import pytest
from gevent import pywsgi
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Server, serving, wait_until
from support.servers import read_all
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.protocol.head import HeadLimits

Serve = Callable[..., Server]


def telling(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that tells what it was asked, body included."""
    body = environ["wsgi.input"].read()
    names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "SERVER_PROTOCOL", "CONTENT_TYPE")
    asked = {name: environ.get(name) for name in (*names, "CONTENT_LENGTH")}
    asked |= {name: environ[name] for name in environ if name.startswith("HTTP_")}
    text = json.dumps([asked, body.decode("latin-1")])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [text.encode()]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Server, Server]]:
    """The same application under stock gevent, and under our handler."""
    stock = pywsgi.WSGIServer(("127.0.0.1", 0), telling, log=None, error_log=None)
    stock.start()
    with serving(telling) as ours:
        yield Server(stock.server_port), ours
    stock.stop()


def ask(server: Server, pieces: list[bytes]) -> tuple[str, Any]:
    """Send pieces, each once the one before has been read; the status, and what was told."""
    with server.socket() as sock:
        for piece in pieces:
            sock.sendall(piece)
            gevent.idle()
        head, _, text = read_all(sock).partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode()
    return status, normalised(json.loads(text)) if status == "200" else None


def normalised(told: Any) -> Any:
    """Each fold a blank, as RFC 9112, section 5.2 has it; and blanks at the ends are none."""
    environ, body = told
    values = {
        name: value and re.sub(r"[ \t]*(\r?\n[ \t]+)+", " ", value).strip()
        for name, value in environ.items()
    }
    return values, body


TOKENS = st.text("!#$%&'*+.^`|~09AZaz-", min_size=1, max_size=12)
WORDS = st.text([*map(chr, range(0x21, 0x7F)), *map(chr, range(0xA1, 0x100))], max_size=12)
VALUES = st.one_of(
    st.lists(WORDS, max_size=4).map(" ".join),
    st.sampled_from(["a=b; " * 600, '"quoted, \\" pair"', "\t x \t"]),
)
#: What would change how the request is read.
MEANINGFUL = {"connection", "content-length", "content-type", "expect", "host", "upgrade"} | {
    "transfer-encoding"
}
FIELDS = st.tuples(TOKENS.filter(lambda name: name.lower() not in MEANINGFUL), VALUES)
CONTENT_TYPES = [
    "multipart/form-data; boundary=XX",
    "multipart/mixed; boundary=XX",
    "multipart/form-data",
    "message/rfc822",
    "message/delivery-status",
    "message/external-body",
    "application/x-www-form-urlencoded",
    "text/plain; charset=utf-16",
    "nonsense",
    "",
]
BODIES = st.sampled_from(
    [b"", b"a=b", b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--XX--\r\n"]
)
TARGETS = st.sampled_from(["/", "/a/b?c=d", "/%C3%A4%00//..", "/?a=%20|^[]{}", "*"])


LARGE_FIELDS = [
    [("Cookie", "a=b; " * 1800 + "c=d")],
    [("Referer", "a" * 30000)],
    [(f"X-{number}", "y" * 300) for number in range(80)],
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A whole request that ends its connection."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "X-Y"]))
    target = (
        draw(TARGETS) if method == "OPTIONS" else draw(TARGETS.filter(lambda each: each != "*"))
    )
    fields = [*draw(st.lists(FIELDS, max_size=8)), ("Connection", "close")]
    if draw(st.booleans()):
        fields += [("Host", "example.com")]
    fields += draw(st.sampled_from([[], [], [], *LARGE_FIELDS]))
    body = draw(BODIES) if method != "GET" else b""
    if body:
        fields.append(("Content-Type", draw(st.sampled_from(CONTENT_TYPES))))
        if draw(st.booleans()):
            fields.append(("Transfer-Encoding", draw(st.sampled_from(["chunked", "Chunked"]))))
            body = b"2;a=b\r\n" + body[:2] + b"\r\n%x\r\n" % (len(body) - 2) + body[2:] + b"\r\n"
            body += draw(st.sampled_from([b"0\r\n\r\n", b"000;x\r\nTrailer: y\r\n\r\n"]))
        else:
            fields.append(("Content-Length", str(len(body))))
    end = "\r\n" if body else draw(st.sampled_from(["\r\n", "\r\n", "\n"]))
    lines = [f"{method} {target} HTTP/1.{draw(st.sampled_from('11' if body else '110'))}"]
    for name, value in draw(st.permutations(fields)):
        may_fold = name.lower() not in MEANINGFUL and " " in value
        fold = draw(st.sampled_from([" ", " ", f"{end} \t"])) if may_fold else " "
        blank = draw(st.sampled_from([" ", " ", "", "\t "]))
        lines.append(f"{name}:{blank}{value.replace(' ', fold, 1)}")
    return (end.join(lines) + end + end).encode("latin-1") + body


@settings(max_examples=150, deadline=None)
@given(requests(), st.lists(st.integers(1, 400), max_size=6))
def test_what_stock_gevent_serves_is_served_however_it_is_cut(
    both: tuple[Server, Server], request: bytes, sizes: list[int]
) -> None:
    stock, ours = both
    expected = ask(stock, [request])
    assert expected[0] == "200"
    pieces, rest = [], request
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert ask(ours, [*filter(None, pieces), rest] if rest else pieces) == expected


UPLOAD = (
    b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    b"Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: 3\r\n\r\na=b"
)


@pytest.mark.parametrize("cut", range(1, len(UPLOAD)))
def test_upload_is_served_wherever_it_is_cut(both: tuple[Server, Server], cut: int) -> None:
    assert ask(both[1], [UPLOAD[:cut], UPLOAD[cut:]]) == ask(both[0], [UPLOAD])


def test_head_that_comes_byte_by_byte_is_one(both: tuple[Server, Server]) -> None:
    pieces = [UPLOAD[start : start + 1] for start in range(len(UPLOAD))]
    assert ask(both[1], pieces) == ask(both[0], [UPLOAD])


def test_an_empty_line_before_a_request_is_none(both: tuple[Server, Server]) -> None:
    expected = ask(both[0], [UPLOAD])
    assert ask(both[1], [b"\r\n" + UPLOAD]) == ask(both[1], [b"\r", b"\n", UPLOAD]) == expected
    assert ask(both[1], [b"\r\n\r\n" + UPLOAD])[0] == "400"


def test_what_lies_at_the_ends_of_a_value_stays_where_it_is_no_blank_of_http(serve: Serve) -> None:
    with serve(telling).socket() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost:\t \xa0x\x85\x1c \t\r\nConnection: close\r\n\r\n")
        told = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])
    assert told[0]["HTTP_HOST"] == "\xa0x\x85\x1c"


def test_head_with_odd_lines_is_the_last_of_its_connection(serve: Serve) -> None:
    plain = b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n"
    for odd in (b"GET /one HTTP/1.1\r\nX: a\r\n b\r\n\r\n", b"GET /one HTTP/1.1\r\nX: a\n\n"):
        with serve(telling).socket() as sock:
            sock.sendall(odd + plain)
            assert read_all(sock).count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize("connection", ["close", "Close, TE", "te ,\tclose"])
def test_connection_that_asks_for_its_end_gets_it(serve: Serve, connection: str) -> None:
    with serve(telling).socket() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_body_beside_an_upgrade_that_is_not_made_is_read_to_its_end_only(serve: Serve) -> None:
    # nginx with a fixed `Connection "upgrade"` sends this for every form.
    request = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nContent-Length: 3\r\n\r\na=b"
        b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    with serve(telling).socket() as sock:
        sock.sendall(request)
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert b'"a=b"]' in answers and b'"PATH_INFO": "/next"' in answers


# -- refusals -----------------------------------------------------------------------------------


class Log(list[str]):
    """A server's log."""

    write = list.append


def refused(server: Server, data: bytes) -> tuple[int, bytes]:
    """The status of the one answer that bytes get before the connection ends, and its body."""
    with server.socket() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 ") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


LARGE = {
    "line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
    "line without an end": (b"GET /" + b"a" * 70000, 414),
    "one header": (b"GET / HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
    "header without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * 500_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 101 + b"\r\n", 431),
    "all together": (b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 70 + b"\r\n", 431),
    "folds": (b"GET / HTTP/1.1\r\nX: 1" + b"\r\n " * 30000, 431),
    "behind a form": (b"POST / HTTP/1.1\r\nContent-Length: 9\r\nX: " + b"a" * 70000, 431),
}


@pytest.mark.parametrize("case", LARGE)
def test_head_past_its_limit_is_told_so_and_is_one_line_in_the_log(serve: Serve, case: str) -> None:
    data, status = LARGE[case]
    log, errors = Log(), Log()
    assert refused(serve(telling, log=log, error_log=errors), data)[0] == status
    assert [line.count("\n") for line in log + errors] == [1, 1]
    assert f'" {status} ' in log[0] and "Invalid request" in errors[0]
    assert "Traceback" not in errors[0] and len(errors[0]) < 500


@pytest.mark.parametrize("size", [200, 1000, 65536, 100_000])
def test_limit_of_the_head_is_exact(serve: Serve, size: int) -> None:
    class Handler(WebSocketHandler):
        head_limits = HeadLimits(size=size)

    start = b"GET / HTTP/1.1\r\nConnection: close\r\nX: "
    server = serve(telling, handler_class=Handler)
    fits = start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
    assert len(fits) == size
    assert ask(server, [fits])[0] == ask(server, [fits[:100], fits[100:]])[0] == "200"
    assert refused(server, fits.replace(b"X: ", b"X: a"))[0] == 431


@pytest.mark.parametrize(
    ("limits", "fits", "over", "status"),
    [
        (HeadLimits(line=20), b"GET /34567 HTTP/1.1\r\n\r\n", b"GET /3456789 HTTP/1.1\r\n", 414),
        (HeadLimits(fields=1), b"GET / HTTP/1.0\r\nX: 1\r\n\r\n",
         b"GET / HTTP/1.0\r\nX:\r\nY:\r\n\r\n", 431),
        (HeadLimits(field_size=4), b"GET / HTTP/1.0\r\nX: 1\r\n\r\n",
         b"GET / HTTP/1.0\r\nX: 12\r\n\r\n", 431),
        (HeadLimits(line=0), b"GET /" + b"a" * 20000 + b" HTTP/1.0\r\n\r\n",
         b"GET /" + b"a" * 70000 + b" HTTP/1.0\r\n\r\n", 414),
    ],
)  # fmt: skip
def test_limits_that_gunicorn_has_settings_for_hold(
    serve: Serve, limits: HeadLimits, fits: bytes, over: bytes, status: int
) -> None:
    class Handler(WebSocketHandler):
        head_limits = limits

    server = serve(telling, handler_class=Handler)
    assert ask(server, [fits.replace(b"1.1\r\n", b"1.0\r\n")])[0] == "200"
    assert refused(server, over)[0] == status


def test_refusal_reaches_a_peer_that_is_still_sending(serve: Serve) -> None:
    # More than is read with the head: closed at once, the kernel would answer with a reset.
    data = b"GET / HTTP/1.1\r\nno header\r\n\r\n" + b"a" * 300_000
    status, reason = refused(serve(telling), data)
    assert (status, reason) == (400, b"a line that is no header\n")


def test_second_request_that_is_none_is_not_logged_as_the_first(serve: Serve) -> None:
    log = Log()
    with serve(telling, log=log).socket() as sock:
        sock.sendall(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\nGET /two\r\n\r\n")
        assert b"\r\n\r\nthis is no request line" in read_all(sock)
    assert len(log) == 2
    assert '"GET /one HTTP/1.1" 200 ' in log[0] and '"GET /two" 400 ' in log[1]


@pytest.mark.parametrize("head", [b"GET / HT", b"GET / HTTP/1.1\r\nX: 1\r\n", UPLOAD[:60]])
def test_head_that_ends_too_early_reaches_no_application(serve: Serve, head: bytes) -> None:
    errors = Log()
    with serve(telling, error_log=errors).socket() as sock:
        sock.sendall(head)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert len(errors) == 1 and "ended within the head" in errors[0]


def test_head_that_breaks_off_is_no_traceback(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    with serve(telling, log=log).socket() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: 1\r\n")
        gevent.idle()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gevent.idle()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("size", [1, 5, 517])
def test_tls_on_a_plain_port_is_one_line_that_says_so(serve: Serve, size: int) -> None:
    log, errors = Log(), Log()
    with serve(telling, log=log, error_log=errors).socket() as sock:
        sock.sendall(
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n" + bytes(range(256)) * 3)[:size]
        )
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: errors)
    assert not log and len(errors) == 1
    assert "is it wss:// or https:// to a plain port?" in errors[0]
    assert errors[0].isascii() and errors[0].strip().isprintable()
