"""How long a connection may keep a greenlet and a descriptor: waiting, sending, and who pays."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import pywsgi

from support import Server, wait_until
from support.accepting import Accepting, read_head, refusing
from support.room import hold_up_thread
from support.servers import UPGRADE, Tls, read_all
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.net.limit import Late, Limit, send_all
from wsmiddleware.net.turnstile import Turnstile
from wsmiddleware.server import WSGIServer

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = 8 * 2**20


@contextlib.contextmanager
def limited(app: Any, tls: Tls | None = None, **limits: float) -> Iterator[tuple[Any, Server]]:
    """Our server with these limits, and ways to talk to it."""
    options = {} if tls is None else {"ssl_context": tls.server}
    server = WSGIServer(("127.0.0.1", 0), app, log=None, **options)
    for name, seconds in limits.items():
        setattr(server, name, seconds)
    server.start()
    try:
        yield server, Server(server.server_port, None if tls is None else tls.client)
    finally:
        server.stop()


def is_idle(server: Any) -> bool:
    """True when no connection is served any more."""
    return not server.handlers._running


# -- who says nothing -------------------------------------------------------------------------


def say_nothing(sock: socket.socket) -> None:
    """Not a byte."""


def say_half(sock: socket.socket) -> None:
    """A head that does not end."""
    sock.sendall(GET[:-4])


def say_it_once(sock: socket.socket) -> None:
    """A request, and nothing behind it."""
    sock.sendall(GET)
    read_head(sock)
    assert sock.recv(2) == b"no"


def say_it_and_a_half(sock: socket.socket) -> None:
    """A request, and half of the next."""
    say_it_once(sock)
    sock.sendall(GET[:-4])


PLAIN = [say_nothing, say_half, say_it_once, say_it_and_a_half]


@pytest.mark.parametrize("is_secure", [False, True])
@pytest.mark.parametrize("say", PLAIN)
def test_connection_that_waits_without_end_is_ended(
    tmp_path: Path, say: Callable[..., None], is_secure: bool
) -> None:
    tls = Tls(tmp_path) if is_secure else None
    with limited(refusing, tls, handshake_timeout=0.2, keep_alive=0.2) as (server, client):
        with client.socket() as sock:
            say(sock)
            rest = read_all(sock)
        if say in (say_half, say_it_and_a_half):
            assert rest.startswith(b"HTTP/1.1 408 ")
        else:
            assert rest == b""
        wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_nothing_is_said_before_a_tls_handshake(tmp_path: Path, start: bytes) -> None:
    with limited(refusing, Tls(tmp_path), handshake_timeout=0.2) as (server, client):
        with Server(client.port).socket() as sock:
            sock.sendall(start)
            assert read_all(sock) == b""
        wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("say", PLAIN)
def test_foreign_server_ends_them_too(say: Callable[..., None]) -> None:
    class Handler(WebSocketHandler):
        handshake_timeout = keep_alive = 0.2

    server = pywsgi.WSGIServer(("127.0.0.1", 0), refusing, handler_class=Handler, log=None)
    server.start()
    try:
        client = Server(server.server_port)
        with client.socket() as sock:
            say(sock)
            assert read_all(sock)[:12] in (b"", b"HTTP/1.1 408")
    finally:
        server.stop()


def test_each_wait_has_its_own_limit() -> None:
    limits = {"handshake_timeout": 30, "keep_alive": 0.2}
    with (
        limited(refusing, **limits) as (_, client),
        client.socket() as silent,
        client.socket() as idle,
    ):
        say_it_once(idle)
        assert read_all(idle) == b""
        say_it_once(silent)  # its clock is another one
        assert read_all(silent) == b""


def test_without_keep_alive_each_request_is_the_last() -> None:
    with limited(refusing, keep_alive=0) as (_, client), client.socket() as sock:
        sock.sendall(GET * 2)
        answer = read_all(sock)
        assert b"\r\nConnection: close\r\n" in answer and answer.count(b"HTTP/1.1") == 1


def test_no_limit_counts_a_body_an_application_or_a_websocket() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_UPGRADE" in environ:
            return accepting(environ, start_response)
        gevent.sleep(0.2)
        start_response("200 OK", [("Content-Length", "5")])
        return [environ["wsgi.input"].read(5)]

    accepting = Accepting()
    limits = dict.fromkeys(("handshake_timeout", "keep_alive", "send_timeout"), 0.1)
    with (
        limited(app, **limits) as (_, client),
        client.socket() as websocket,
        client.socket() as sock,
    ):
        websocket.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE)
        read_head(websocket)
        transport, _ = accepting.got.get(timeout=5)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
        gevent.sleep(0.4)
        sock.sendall(b"llo")
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert sock.recv(5) == b"hello"
        transport.send(b"still here")
        assert websocket.recv(100) == b"still here"
        transport.close()


@pytest.mark.parametrize("say", [say_nothing, say_half, say_it_once])
def test_what_came_in_time_is_heard_however_long_the_loop_was_held_up(
    say: Callable[..., None],
) -> None:
    limits = {"handshake_timeout": 0.3, "keep_alive": 0.3}
    with limited(refusing, **limits) as (_, client), client.socket() as sock:
        say(sock)
        gevent.sleep(0.05)  # within its time, as the rest is, which nobody can read yet
        rest = GET[-4:] if say is say_half else GET
        assert sock._sock.send(rest) == len(rest)  # type: ignore[attr-defined]
        hold_up_thread(1)
        assert read_head(sock).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("start", [GET[:1], GET[:-4]])
def test_callback_that_hogs_the_processor_makes_nobody_late(start: bytes, is_first: bool) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hog":
            hold_up_thread(0.6)
        return refusing(environ, start_response)

    limits = {"handshake_timeout": 0.3, "keep_alive": 0.3}
    with limited(app, **limits) as (_, client), client.socket() as hog, client.socket() as sock:
        gevent.sleep(0.05)
        # At one turn of the loop, in the one order and in the other.
        parts = [(sock, start), (hog, GET.replace(b"/ ", b"/hog "))]
        for each, data in parts if is_first else reversed(parts):
            each._sock.send(data)  # type: ignore[attr-defined]
        assert read_head(hog).startswith(b"HTTP/1.1 403")
        gevent.sleep(0.05)
        sock.sendall(GET[len(start) :])
        assert read_head(sock).startswith(b"HTTP/1.1 403")


# -- who does not read ------------------------------------------------------------------------


def as_list(start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"x" * BIG]


def as_pieces(start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return (b"x" * 10_000 for _ in range(BIG // 10_000))


def by_write(start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", str(BIG))])(b"x" * BIG)
    return []


def as_refusal(start_response: Any) -> Iterable[bytes]:
    start_response("403 Forbidden", [("Content-Length", str(BIG))])
    return [b"x" * BIG]


WAYS = [as_list, as_pieces, by_write, as_refusal]


@pytest.mark.parametrize("is_secure", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_response_that_nobody_reads_is_dropped(
    tmp_path: Path, way: Callable[..., Iterable[bytes]], is_secure: bool
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return way(start_response)

    tls = Tls(tmp_path) if is_secure else None
    with limited(app, tls, send_timeout=0.2) as (server, client), client.socket() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE if way is as_refusal else GET)
        wait_until(lambda: not is_idle(server))
        wait_until(lambda: is_idle(server))
        got = bytearray()
        with contextlib.suppress(OSError):
            while piece := sock.recv(65536):
                got += piece
        assert len(got) < BIG


class Filling:
    """A page that fills all room for sending, so that what comes next has none."""

    handler: WebSocketHandler

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_EXPECT" in environ:
            self.close()
            environ["wsgi.input"].read(1)  # asks for 100 Continue
        start_response("200 OK", [("Content-Length", "0")])
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter([])

    def close(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.handler.socket.send(b"x" * 65536, 0, 0.0)


@pytest.mark.parametrize(
    "request_",
    [
        GET + b"no request\r\n\r\n",  # 400
        GET + GET[:-4],  # 408
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
    ],
)
def test_answers_of_the_server_itself_wait_no_longer(request_: bytes) -> None:
    class Handler(WebSocketHandler):
        handshake_timeout = send_timeout = 0.2

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            app.handler = self

    app = Filling()
    server = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None, handler_class=Handler)
    server.start()
    try:
        with Server(server.server_port).socket() as sock:
            sock.sendall(request_)
            wait_until(lambda: not is_idle(server))
            wait_until(lambda: is_idle(server))
    finally:
        server.stop()


@pytest.mark.parametrize("is_secure", [False, True])
def test_slow_reader_that_goes_on_gets_it_all(tmp_path: Path, is_secure: bool) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return by_write(start_response)

    got, tls = bytearray(), Tls(tmp_path) if is_secure else None
    with limited(app, tls, send_timeout=1) as (_, client), client.socket() as sock:
        sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        for _ in range(50):  # 64 KiB make a window, which a fifth of a second brings
            got += sock.recv(16384)
            gevent.sleep(0.05)
        got += read_all(sock)
    assert len(got.partition(b"\r\n\r\n")[2]) == BIG


# -- descriptors ------------------------------------------------------------------------------


def limit_for(count: int) -> int:
    """The limit of descriptors that leaves so many free, whatever other tests have left open."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in itertools.count() if number not in taken)
    return next(itertools.islice(free, count, None))


def test_strangers_leave_descriptors_to_those_who_are_connected() -> None:
    accepting, opened = Accepting(), list[socket.socket]()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with limited(accepting, handshake_timeout=60) as (_, client), client.socket() as websocket:
        websocket.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE)
        read_head(websocket)
        transport, _ = accepting.got.get(timeout=5)
        # Both ends of each are this process's.
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_for(77), hard))
        try:
            for _ in range(20):
                opened.append(socket.create_connection(("127.0.0.1", client.port)))
                gevent.sleep(0.01)
            opened += [socket.socket() for _ in range(35)]
            late = socket.create_connection(("127.0.0.1", client.port))
            opened.append(late)
            gevent.sleep(0.05)
            late.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE)
            assert read_head(late).startswith(b"HTTP/1.1 101")
            assert opened[0].recv(1) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in opened:
                each.close()
        accepting.got.get(timeout=5)[0].close()
        transport.close()


# -- the limit itself -------------------------------------------------------------------------


@pytest.mark.parametrize("is_secure", [False, True])
def test_what_is_sent_to_a_closed_socket_is_an_error_of_the_socket(
    is_secure: bool, tmp_path: Path
) -> None:
    ours, theirs = gevent.socket.socketpair()
    if is_secure:
        tls = Tls(tmp_path)
        wrapping = gevent.spawn(tls.server.wrap_socket, ours, server_side=True)
        theirs = tls.client.wrap_socket(theirs, server_hostname="localhost")
        ours = wrapping.get()
    ours.close()
    with theirs, pytest.raises(OSError):
        send_all(ours, b"x", Limit(5), Turnstile(1))


def test_limit_throws_at_the_oldest_first_and_at_nobody_who_has_ended() -> None:
    limit, late = Limit(0.1), []

    def wait(name: str, seconds: float) -> None:
        limit.begin()
        try:
            gevent.sleep(seconds)
        except Late:
            late.append(name)
        finally:
            limit.end()

    waits = [gevent.spawn(wait, "first", 5), gevent.spawn(wait, "quick", 0.01)]
    gevent.sleep(0.05)
    waits.append(gevent.spawn(wait, "second", 5))
    gevent.joinall(waits, timeout=5, raise_error=True)
    assert late == ["first", "second"]


def test_limit_renews_the_time_of_who_moves() -> None:
    limit, asked = Limit(0.05), []

    def has_moved() -> bool:
        asked.append(True)
        return len(asked) < 4

    limit.begin(has_moved)
    with pytest.raises(Late):
        gevent.sleep(5)
    assert len(asked) == 4


def test_limit_ends_a_crowd_without_holding_the_loop_up() -> None:
    limit, ended, turns = Limit(0.1), [0], []

    def wait() -> None:
        limit.begin()
        with contextlib.suppress(Late):
            gevent.sleep(30)
        ended[0] += 1

    watcher = gevent.get_hub().loop.check()
    watcher.start(lambda: turns.append(ended[0]))
    gevent.joinall([gevent.spawn(wait) for _ in range(500)], timeout=10)
    watcher.stop()
    watcher.close()
    assert ended == [500]
    # 64, and what was left of those before them.
    assert max(after - before for before, after in itertools.pairwise(turns)) < 2 * 64
