"""One client's flood leaves the others their turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest

from support import Server
from support.wire import PING, PONG, TEXT, Log, frame, middleware_for, peer_of

Serve = Callable[..., Server]

FLOODS = {
    "empty messages": frame(TEXT),
    "tiny messages": frame(TEXT, "x" * 10),
    "tiny fragments": frame(TEXT, fin=False) + frame(0, fin=False) * 500 + frame(0),
    "pings": frame(PING, "x"),
    "pongs": frame(PONG),
}


@contextmanager
def flood(server: Server, piece: bytes) -> Iterator[None]:
    """Sends `piece` without end, in big writes; reads what is answered."""
    wire = piece * (1 + 262144 // len(piece))
    with peer_of(server, "/ws/test") as peer:

        def send() -> None:
            while True:
                peer.sock.sendall(wire)

        def read() -> None:
            while peer.sock.recv(2**20):
                pass

        greenlets = [gevent.spawn(send), gevent.spawn(read)]
        try:
            yield
        finally:
            gevent.killall(greenlets)
            peer.reset()


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_leaves_anothers_echo_quick(serve: Serve, kind: str) -> None:
    # Hundreds of thousands of frames are under way all the time; a turn is 256 of them.
    log = Log()
    server = serve(middleware_for(log.listener(on_message=lambda self, client, message: message)))
    with peer_of(server) as other, flood(server, FLOODS[kind]):
        # All of it is in this process: its own time, not what the machine gives to others.
        times = []
        for number in range(30):
            started = time.process_time()
            other.send(frame(TEXT, f"{number}"))
            assert other.read_text() == f"{number}"
            times.append(time.process_time() - started)
        assert sorted(times)[15] < 0.1
        assert max(times) < 0.5
        assert server.get("/").status == 200


def test_slow_callbacks_of_a_batch_leave_others_their_turn(serve: Serve) -> None:
    def on_message(self: object, wsclient: object, message: str) -> str:
        until = time.perf_counter() + (0.01 if message == "slow" else 0)
        while time.perf_counter() < until:
            pass
        return message

    log = Log()
    server = serve(middleware_for(log.listener(on_message=on_message)))
    with peer_of(server) as busy, peer_of(server) as other:
        busy.send(frame(TEXT, "slow") * 100)
        assert busy.read_text() == "slow"
        before = len(log.messages)
        other.send(frame(TEXT, "quick"))
        assert other.read_text() == "quick"
        assert len(log.messages) - before < 30
        for _ in range(99):
            assert busy.read_text() == "slow"
