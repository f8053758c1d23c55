"""The same over TLS: records, pressure, the end."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from support import Server, wait_until
from support.servers import Tls
from support.wire import (
    BINARY,
    TEXT,
    Log,
    close_frame,
    connection_of,
    frame,
    middleware_for,
    peer_of,
)
from wsmiddleware import WebSocketMiddleware

Serve = Callable[[WebSocketMiddleware], Server]


@pytest.fixture
def serve_tls(serve: Callable[..., Server], tmp_path: Path) -> Serve:
    tls = Tls(tmp_path)
    # An end without a close alert is an error for this client.
    tls.client.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return lambda app: serve(app, ssl_context=tls.server, client_ssl=tls.client)


@pytest.mark.parametrize("size", [0, 125, 16383, 16384, 16385, 40_000, 1_000_000])
def test_echo_of_any_number_of_records(serve_tls: Serve, size: int) -> None:
    with serve_tls(middleware_for(Log().listener())).connect("/ws/test", max_size=None) as ws:
        for letter in (b"a", b"b"):
            ws.send(letter * size)
            assert ws.recv(timeout=10) == letter * size


def test_messages_split_over_records_and_behind_the_handshake(serve_tls: Serve) -> None:
    server = serve_tls(middleware_for(Log().listener()))
    messages = [f"{number}" * 100 for number in range(300)]
    with peer_of(server, behind=b"".join(frame(TEXT, each) for each in messages[:150])) as peer:
        for each in messages[150:]:
            peer.send(frame(TEXT, each)[:7])
            peer.send(frame(TEXT, each)[7:])
        assert [peer.read_text() for _ in messages] == messages


def test_closing_handshake_ends_with_an_alert(serve_tls: Serve) -> None:
    with peer_of(serve_tls(middleware_for((log := Log()).listener()))) as peer:
        peer.send(close_frame(4000, "bye"))
        assert peer.read_close() == (4000, "bye")
        peer.read_end()  # SSLEOFError without the alert
    wait_until(lambda: log.closes)
    assert log.closes == [(4000, "bye")]


def test_own_close(serve_tls: Serve) -> None:
    with peer_of(serve_tls(middleware_for((log := Log()).listener()))) as peer:
        wait_until(lambda: log.clients)
        log.client.close(4000)
        assert peer.read_close() == (4000, "")
        peer.send(close_frame(4000))
        peer.read_end()
    wait_until(lambda: log.closes)
    assert log.closes == [(4000, "")]


def test_peer_that_goes_without_an_alert(serve_tls: Serve) -> None:
    with peer_of(serve_tls(middleware_for((log := Log()).listener()))) as peer:
        wait_until(lambda: log.clients)
        peer.reset()
    wait_until(lambda: log.closes)
    assert log.closes == [(1006, "")]


def test_unread_input_does_not_destroy_our_close_frame(serve_tls: Serve) -> None:
    middleware = middleware_for((log := Log()).listener())
    with peer_of(serve_tls(middleware)) as peer:
        wait_until(lambda: log.clients)
        connection = connection_of(middleware)
        sender = gevent.spawn(peer.send, b"\x81\x02hi", b"x" * 2_000_000)
        wait_until(lambda: connection.sent_code)
        assert peer.read_close()[0] == 1002
        sender.get(timeout=10)
        peer.read_end()
        assert middleware.registry.unfinished == 1, "the socket was closed before all was read"
    wait_until(lambda: log.closes)


def test_slow_reader_is_stalled_then_gets_all(serve_tls: Serve) -> None:
    log = Log()
    middleware = middleware_for(log.listener(), send_queue_size=16 * 2**20)
    with peer_of(serve_tls(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        outbox = connection_of(middleware).outbox
        log.client.send(b"y" * 8_000_000)
        log.client.send("last")
        assert outbox.is_stalled
        # Counted slice by slice: the TLS layer tells nothing before it has taken all it was given.
        assert outbox.size < 8_000_000
        size = outbox.size
        assert peer.read() == (BINARY, b"y" * 8_000_000)
        assert size > 0
        assert peer.read_text() == "last"


def test_full_inbox_stops_reading_and_nothing_is_lost(serve_tls: Serve) -> None:
    release = gevent.event.Event()

    def on_message(self: Any, wsclient: Any, message: Any) -> str | None:
        release.wait()
        return "done" if message == "last" else None

    log = Log()
    middleware = middleware_for(log.listener(on_message=on_message))
    with peer_of(serve_tls(middleware)) as peer:
        wait_until(lambda: log.clients)
        sender = gevent.spawn(peer.send, *[frame(BINARY, b"x" * 20_000)] * 1000)
        wait_until(lambda: connection_of(middleware).is_paused)
        assert not sender.dead, "20 MB went through: nothing pushed back"
        release.set()
        sender.get(timeout=20)
        peer.send(frame(TEXT, "last"))
        assert peer.read_text() == "done"
    assert len(log.messages) == 1001


def test_idle_connection_costs_no_processor(serve_tls: Serve) -> None:
    server = serve_tls(middleware_for((log := Log()).listener()))
    with peer_of(server) as peer:
        peer.send(frame(TEXT, "x" * 20_000))
        peer.read_text()
        before = time.process_time()
        gevent.sleep(0.5)
        assert time.process_time() - before < 0.25
    wait_until(lambda: log.closes)
