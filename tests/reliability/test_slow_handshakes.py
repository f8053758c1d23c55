"""Hundreds of peers that send a byte now and then: nobody waits for them, and they end in time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import gevent
import pytest

from support import Process, Server, wait_until, websocket_request
from support.figures import record
from support.procfs import descriptors
from support.wire import TEXT, frame, peer_of

ServeApp = Callable[..., Process]

REQUEST = websocket_request("/ws/test")
#: Seconds.
LIMIT = 1.0


def dribble(server: Server) -> tuple[float, bytes]:
    """A byte at a time, so slowly that it would take a minute; how long it went on, and the end."""
    with socket.create_connection((server.host, server.port), timeout=10) as sock:
        started = time.monotonic()
        reading = gevent.spawn(sock.recv, 65536)
        for at in range(len(REQUEST)):
            if reading.ready():
                break
            with contextlib.suppress(OSError):
                sock.sendall(REQUEST[at : at + 1])
            reading.join(0.4)
        return time.monotonic() - started, reading.get()


@pytest.mark.parametrize("way", ["run", "worker"])
def test_hundreds_of_slow_handshakes_end_in_time(serve_app: ServeApp, way: str) -> None:
    process = serve_app(way=way, handshake_timeout=LIMIT)
    peers = [gevent.spawn(dribble, process.server) for _ in range(200)]
    times = []
    with peer_of(process.server) as peer:
        while not all(each.ready() for each in peers):
            started = time.perf_counter()
            peer.send(frame(TEXT, "still here"))
            assert peer.read_text() == "still here"
            times.append(time.perf_counter() - started)
            gevent.sleep(0.02)
    # All but two, which the machine itself may have held up.
    assert sorted(times)[-3] < 0.5
    outcomes = [each.get() for each in peers]
    longest = max(seconds for seconds, _ in outcomes)
    record(
        f"200 handshakes of a byte every 0.4 s, handshake_timeout 1 s, {way}",
        bound="408 within 2.5 s",
        measured=f"408 after {longest:.1f} s",
    )
    assert {answer.split(b"\r\n")[0] for _, answer in outcomes} == {b"HTTP/1.1 408 Request Timeout"}
    assert longest < LIMIT + 1.5
    if way == "run":  # gunicorn's master opens files of its own
        wait_until(lambda: descriptors(process.popen.pid) < 20)
    assert "Traceback" not in process.output
