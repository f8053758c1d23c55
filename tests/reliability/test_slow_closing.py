"""A peer that takes a few bytes at a time does not hold our end of a connection for ever."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from support import Server, wait_until
from support.figures import record
from support.wire import Log, Peer, middleware_for, narrow, peer_of

Serve = Callable[..., Server]

#: Seconds; the bound is twelve of it, one for a slow consumer.
CLOSE_TIMEOUT = 0.25


def trickle(peer: Peer, log: Log) -> None:
    """Read so little at a time that it would take minutes, and so often that it is never still."""
    while not log.closes:
        try:
            peer.sock.recv(3000)
        except OSError:
            return
        gevent.sleep(0.05)


@pytest.mark.parametrize(("code", "least", "most"), [(4000, 2.5, 6.0), (1013, 0.2, 2.0)])
def test_peer_that_trickles_is_dropped(serve: Serve, code: int, least: float, most: float) -> None:
    log = Log()

    def on_open(self: Any, wsclient: Any) -> None:
        narrow(wsclient)

    settings = {"close_timeout": CLOSE_TIMEOUT, "send_queue_size": 2**23, "send_timeout": 0.1}
    middleware = middleware_for(log.listener(on_open=on_open), **settings)
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wait_until(lambda: log.clients)
        log.client.send(b"x" * 2**23)
        if code == 1013:
            wait_until(lambda: log.client._connection.outbox.size < 2**23)
            log.client.send(b"x" * 2**20)
            with pytest.raises(Exception, match="does not take what is sent"):
                log.client.send(b"more", wait=False)
        else:
            log.client.close(code)
        started = time.monotonic()
        trickling = gevent.spawn(trickle, peer, log)
        wait_until(lambda: log.closes, timeout=most + 2)
        seconds = time.monotonic() - started
        trickling.join()
    record(
        f"8 MiB queued for a peer that trickles, closed with {code}, close_timeout 0.25 s",
        bound=f"≤ {most:g} s",
        measured=f"dropped after {seconds:.1f} s",
    )
    assert least <= seconds <= most
    assert log.closes == [(1006, "")]
