"""``wsgi.input``: as pywsgi's for bodies that are right, strict and frugal for all others."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import flask
import gevent
import pytest
from gevent import pywsgi
from hypothesis import given
from hypothesis import strategies as st

from support import Server
from support.servers import read_all
from wsmiddleware.body import Body, BodyError, check_chunks, is_broken

Serve = Callable[..., Server]

TEXTS = st.binary(max_size=40).map(lambda data: data.replace(b"\x80", b"\n"))
READS = st.lists(
    st.tuples(st.sampled_from(["read", "readline"]), st.one_of(st.none(), st.integers(-1, 30))),
    max_size=12,
)


def chunked(chunks: Iterable[bytes]) -> bytes:
    """The chunks as they are sent; empty ones are none."""
    pieces = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return b"".join(pieces) + b"0\r\n\r\n"


def results(body: Any, reads: list[tuple[str, int | None]]) -> list[bytes]:
    return [*(getattr(body, name)(size) for name, size in reads), body.read(), body.read()]


@given(st.lists(TEXTS, max_size=5), READS)
def test_body_is_read_as_by_pywsgi(
    chunks: list[bytes], reads: list[tuple[str, int | None]]
) -> None:
    wire, plain = chunked(chunks), b"".join(chunks)
    ours, theirs = io.BytesIO(wire + b"next"), io.BytesIO(wire + b"next")
    assert results(Body(ours, None, None, True), reads) == results(
        pywsgi.Input(theirs, None, None, True), reads
    )
    assert ours.read() == b"next"
    ours, theirs = io.BytesIO(plain + b"next"), io.BytesIO(plain + b"next")
    assert results(Body(ours, len(plain)), reads) == results(
        pywsgi.Input(theirs, len(plain)), reads
    )
    assert ours.read() == b"next"


def test_lines_and_trailers() -> None:
    wire = b"3\r\na\nb\r\n1;x\r\nc\r\n0\r\nX: y\r\nZ:\r\n\r\nnext"
    rfile = io.BytesIO(wire)
    assert list(Body(rfile, None, None, True)) == [b"a\n", b"bc"]
    assert rfile.read() == b"next"


BROKEN = {
    "no digit": b"x\r\n",
    "nothing": b"\r\n\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a blank": b"3 \r\nabc\r\n0\r\n\r\n",
    "LF": b"3\nabc\r\n0\r\n\r\n",
    "LF in an extension": b"3;a\nabc\r\n0\r\n\r\n",
    "CR": b"3\rabc\r\n0\r\n\r\n",
    "more than 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "longer": b"3\r\nabcd\r\n0\r\n\r\n",
    "shorter": b"3\r\nab\r\n0\r\n\r\n",
    "no CRLF behind": b"3\r\nabc0\r\n\r\n",
    "LF behind": b"3\r\nabc\n0\r\n\r\n",
    "an endless size": b"0" * 10000,
    "an endless extension": b"3;" + b"a" * 10000,
    "no trailer": b"3\r\nabc\r\n0\r\nx\r\n\r\n",
    "LF behind the last": b"0\r\n\n",
    "folded trailer": b"0\r\nx: y\r\n z\r\n\r\n",
    "endless trailers": b"0\r\n" + b"x: y\r\n" * 20000,
    "endless trailer": b"0\r\nx: " + b"y" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_chunks_that_are_none_are_an_error_at_each_read(case: str) -> None:
    body = Body(io.BytesIO(BROKEN[case]), None, None, True)
    for _ in range(2):
        with pytest.raises(BodyError):
            body.read()
        assert is_broken(body)
    body._discard()  # and nothing more is read
    with pytest.raises(BodyError):
        check_chunks(BROKEN[case])


@given(st.lists(TEXTS, max_size=4), st.integers(0, 200))
def test_beginning_of_what_is_right_is_no_error_yet(chunks: list[bytes], size: int) -> None:
    check_chunks(chunked(chunks)[:size])


@pytest.mark.parametrize("claimed", [2**40, 2**63 - 1])
def test_length_that_is_only_claimed_takes_no_memory(claimed: int) -> None:
    tracemalloc.start()
    try:
        bodies = [
            Body(io.BytesIO(b"abc"), claimed),
            Body(io.BytesIO(b"%x\r\nabc" % claimed), None, None, True),
        ]
        for body in bodies:
            with pytest.raises(BodyError, match="ended within the body"):
                body.read()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# -- on sockets -----------------------------------------------------------------------------------


class Log(list[str]):
    """A server's log."""

    write = list.append


NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def careless(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that takes a broken body for an empty one."""
    try:
        data = environ["wsgi.input"].read()
    except OSError:
        data = b""
    start_response("200 OK", [("Content-Length", "0")])
    return [data[:0]]


def deaf(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that reads no body."""
    start_response("200 OK", [("Content-Length", "0")])
    return []


@pytest.mark.parametrize("app", [careless, deaf])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_body_is_a_400_and_the_end(serve: Serve, case: str, app: Any) -> None:
    with serve(app, error_log=Log()).socket() as sock:
        sock.sendall(CHUNKED + BROKEN[case] + NEXT)
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 ") == 1
    # Of what is long, the end is not looked at before the application is called.
    assert answers.startswith(b"HTTP/1.1 400 ") or "endless" in case


@pytest.mark.parametrize("app", [careless, deaf])
def test_body_that_breaks_later_ends_the_connection(serve: Serve, app: Any) -> None:
    with serve(app, error_log=Log()).socket() as sock:
        sock.sendall(CHUNKED)
        gevent.idle()
        sock.sendall(b"zz\r\n" + NEXT)
        assert read_all(sock).count(b"HTTP/1.1 ") == 1


def test_flask_answers_a_body_that_breaks_later_with_400_and_no_traceback(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    app = flask.Flask("app")
    app.post("/")(lambda: flask.request.get_data())
    with serve(app, error_log=Log()).socket() as sock:
        sock.sendall(CHUNKED + b"3\r\nabc\r\n")
        gevent.idle()
        sock.sendall(b"zz\r\n" + NEXT)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("head", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_body_that_breaks_off_is_one_line_in_the_log(
    serve: Serve, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        return deaf(environ, start_response)

    errors = Log()
    with serve(reading, error_log=errors).socket() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n5\r\nab")
        sock.shutdown(1)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert len(errors) == 1 and "ended within the body" in errors[0]
    assert "Traceback" not in capfd.readouterr().err


def test_continue_is_sent_when_the_body_is_asked_for(serve: Serve) -> None:
    def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        data = environ["wsgi.input"].read()
        start_response("200 OK", [("Connection", "close")])
        return [data]

    with serve(reading).socket() as sock:
        sock.sendall(CHUNKED.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(chunked([b"abc"]))
        assert read_all(sock).endswith(b"abc")
