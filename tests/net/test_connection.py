"""From the first byte behind the handshake to the last object."""

from __future__ import annotations

import gc
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from select import select
from typing import Any

import gevent
import pytest
from greenlet import greenlet

from support import PATIENCE, Server, wait_until, websocket_request
from support.wire import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Log,
    Peer,
    close_frame,
    connection_of,
    frame,
    middleware_for,
    peer_of,
)
from wsmiddleware.listeners.clients import WsClient
from wsmiddleware.protocol.engine import Engine

Serve = Callable[..., Server]

# -- the first bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 300, 2000])
def test_bytes_behind_the_handshake_come_first(serve: Serve, count: int) -> None:
    with peer_of(
        serve(middleware_for((log := Log()).listener())),
        behind=b"".join(frame(TEXT, f"{number}") for number in range(count)),
    ) as peer:
        peer.send(frame(TEXT, "later"))
        expected = [*(f"{number}" for number in range(count)), "later"]
        assert [peer.read_text() for _ in expected] == expected
        peer.send(close_frame(1000))
        peer.read_close()
    assert log.messages == expected


def test_bytes_behind_the_handshake_are_counted(serve: Serve) -> None:
    middleware = middleware_for(Log().listener())
    with peer_of(serve(middleware), behind=frame(TEXT, "hello")) as peer:
        peer.send(frame(TEXT, "hello"))
        assert [peer.read_text(), peer.read_text()] == ["hello", "hello"]
        assert connection_of(middleware).bytes_received == 2 * 11


def test_idle_connections_cost_no_greenlet_and_no_thread(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener()))

    def running() -> tuple[int, int]:
        gc.collect()
        found = [each for each in gc.get_objects() if isinstance(each, greenlet)]
        return sum(not each.dead for each in found), len(os.listdir("/proc/self/task"))

    with ExitStack() as stack:
        peers = [stack.enter_context(peer_of(server))]
        wait_until(lambda: log.clients)
        before = running()
        peers += [stack.enter_context(peer_of(server)) for _ in range(30)]
        for peer in peers:
            peer.send(frame(TEXT, "hello"))
            assert peer.read_text() == "hello"
        wait_until(lambda: running() <= before, lambda: f"{running()} after {before}")


@pytest.mark.parametrize("step", [1, 7, 50])
def test_handshake_and_first_frames_in_pieces(serve: Serve, step: int) -> None:
    data = websocket_request("/ws/test") + frame(TEXT, "one") + frame(TEXT, "two" * 50)
    with serve(middleware_for(Log().listener())).socket() as sock:
        for start in range(0, len(data), step):
            sock.sendall(data[start : start + step])
            gevent.sleep(0)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(1)
        peer = Peer(sock)
        assert [peer.read_text(), peer.read_text()] == ["one", "two" * 50]


@pytest.mark.parametrize("cut", [1, 5, 50])
def test_half_a_frame_behind_the_handshake(serve: Serve, cut: int) -> None:
    wire = frame(TEXT, "one") + frame(TEXT, "two" * 50)
    with peer_of(serve(middleware_for(Log().listener())), behind=wire[:cut]) as peer:
        peer.send(wire[cut:])
        assert [peer.read_text(), peer.read_text()] == ["one", "two" * 50]


def test_close_frame_behind_the_handshake(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener()))
    with peer_of(server, behind=frame(TEXT, "hi") + close_frame(4000)) as peer:
        assert peer.read_text() == "hi"
        assert peer.read_close() == (4000, "")
    wait_until(lambda: log.closes)
    assert log.closes == [(4000, "")]


# -- order ------------------------------------------------------------------------------------


def test_callbacks_run_one_at_a_time_and_in_order(serve: Serve) -> None:
    running: list[str] = []

    def on_message(self: Any, wsclient: Any, message: Any) -> Any:
        running.append(message)
        gevent.sleep(0.001)
        assert running == [message]
        running.clear()
        return message

    server = serve(middleware_for((log := Log()).listener(on_message=on_message)))
    with peer_of(server) as peer:
        messages = [f"{number}" for number in range(50)]
        for message in messages:
            peer.send(frame(TEXT, message))
            gevent.sleep(0)
        assert [peer.read_text() for _ in messages] == messages
    assert log.errors == []


def test_sends_of_many_greenlets_never_interleave(serve: Serve) -> None:
    log = Log()
    with peer_of(serve(middleware_for(log.listener()))) as peer:
        wait_until(lambda: log.clients)

        def send(letter: bytes) -> None:
            for size in range(0, 200_000, 20_000):
                log.client.send(letter * (1 + size))
                gevent.sleep(0)

        senders = [gevent.spawn(send, letter) for letter in (b"a", b"b", b"c")]
        sizes: dict[bytes, list[int]] = {b"a": [], b"b": [], b"c": []}
        for _ in range(30):
            opcode, payload = peer.read()
            assert opcode == BINARY
            assert payload == payload[:1] * len(payload)
            sizes[payload[:1]].append(len(payload))
        assert all(each == sorted(each) and len(each) == 10 for each in sizes.values())
        gevent.joinall(senders, raise_error=True)


def test_pings_are_answered_while_a_callback_blocks(serve: Serve) -> None:
    release = gevent.event.Event()
    listener = Log().listener(on_message=lambda *args: release.wait() and None)
    with peer_of(serve(middleware_for(listener))) as peer:
        peer.send(frame(TEXT, "block"))
        for number in range(3):
            peer.send(frame(PING, f"{number}"))
            assert peer.read() == (PONG, f"{number}".encode())
        peer.send(*(frame(PING, f"{number}") for number in range(1000)))
        for number in range(1000):
            assert peer.read() == (PONG, f"{number}".encode())
        release.set()


def test_broadcast_goes_on_past_a_client_whose_socket_breaks(serve: Serve) -> None:
    log = Log()
    server = serve(middleware_for(log.listener(), send_queue_size=1000))
    with peer_of(server) as first, peer_of(server) as second:
        wait_until(lambda: len(log.clients) == 2)
        broken = log.clients[0]._connection
        broken.outbox.enqueue(b"x" * 2000)  # past the mark, and the next write fails
        broken._transport.shutdown(1)
        assert log.clients[1].broadcast("news")
        assert second.read_text() == "news"
        assert not broken.is_open
        first.read_end()


def has_come(peer: Peer) -> bool:
    """Something is there for the peer; waits for it without letting anyone else run."""
    return bool(select([peer.sock.fileno()], [], [], PATIENCE)[0])


def test_what_a_callback_sends_goes_before_the_next_callback(serve: Serve) -> None:
    def on_message(self: Any, wsclient: WsClient, message: str) -> None:
        came.append([has_come(peers[name]) for name in done])
        wsclient.send("now")
        done.append(message)

    log = Log()
    done: list[str] = []
    came: list[list[bool]] = []
    server = serve(middleware_for(log.listener(on_message=on_message)))
    with peer_of(server) as one, peer_of(server) as other:
        peers = {"one": one, "other": other}
        wait_until(lambda: len(log.clients) == 2)
        one.send(frame(TEXT, "one"))  # both have come when the loop looks
        other.send(frame(TEXT, "other"))
        wait_until(lambda: len(done) == 2)
    assert came == [[], [True]]


def test_what_comes_from_elsewhere_does_not_wait_for_the_callback_that_blocks(serve: Serve) -> None:
    def on_message(self: Any, wsclient: WsClient, message: str) -> None:
        if message == "block":
            blocked.append(wsclient)
            go.wait(PATIENCE)
        else:
            blocked[0].send("now")
            came.append(has_come(one))
            wsclient.broadcast("news", exclude=wsclient)

    go = gevent.event.Event()
    log = Log()
    blocked: list[WsClient] = []
    came: list[bool] = []
    server = serve(middleware_for(log.listener(on_message=on_message)))
    with peer_of(server) as one, peer_of(server) as other:
        one.send(frame(TEXT, "block"))
        wait_until(lambda: blocked)
        other.send(frame(TEXT, "send"))
        assert one.read_text() == "now"
        assert one.read_text() == "news"
        go.set()
    assert came == [True]


# -- faults and traces ------------------------------------------------------------------------


def test_internal_error_drops_the_connection_and_is_logged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with peer_of(serve(middleware_for((log := Log()).listener()))) as peer:
        wait_until(lambda: log.clients)

        def fail(self: Engine, data: bytes, limit: int) -> list[Any]:
            raise ZeroDivisionError

        monkeypatch.setattr(Engine, "receive", fail)
        peer.send(frame(PING, "x"))
        peer.read_end()
    wait_until(lambda: log.closes)
    assert log.closes == [(1006, "")]
    assert "internal error" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_trace_shows_every_frame(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(5, "websocket")
    with peer_of(serve(middleware_for((log := Log()).listener()))) as peer:
        peer.send(frame(TEXT, "hello"), frame(PING, "p"))
        assert peer.read()[0] in (TEXT, PONG)
        assert peer.read()[0] in (TEXT, PONG)
        peer.send(close_frame(4000, "bye"))
        peer.read_close()
    wait_until(lambda: caplog.messages[-1] == f"{log.client.id}: closed")
    told = [r.getMessage() for r in caplog.records if r.levelno == 5]
    lines = [line.split(" ", 1)[1] for line in told if line.startswith(log.client.id)]
    assert "< text, 5" in lines
    assert "> text, 7 bytes with header" in lines
    assert "< Ping(payload=b'p')" in lines
    assert "> pong, 3 bytes with header" in lines
    assert "< Close(code=4000, reason='bye')" in lines
    assert "> close, 7 bytes with header" in lines
    assert lines[-1] == "closed"


def test_open_and_close_are_one_line_each(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "websocket")
    with peer_of(serve(middleware_for((log := Log()).listener()))) as peer:
        caplog.clear()
        peer.send(frame(TEXT, "hello"), close_frame(4000, "bye"))
        peer.read_text()
    wait_until(lambda: "closed" in caplog.text)
    (line,) = [r.getMessage() for r in caplog.records if log.client.id in r.getMessage()]
    assert "code 4000" in line
    assert "'bye'" in line
    assert "22 bytes in" in line


# -- nothing is left --------------------------------------------------------------------------


@contextmanager
def no_collector() -> Iterator[None]:
    """Cycles stay where they are."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


ENDS: dict[str, Callable[[Peer, Log], object]] = {
    "peer closes": lambda peer, log: (peer.send(close_frame(1000)), peer.read_close()),
    "we close": lambda peer, log: (log.client.close(), peer.send(close_frame(1000))),
    "reset": lambda peer, log: peer.reset(),
    "violation": lambda peer, log: (peer.send(b"\xff\xff"), peer.read_close()),
    "end of stream": lambda peer, log: peer.sock.shutdown(1),
}


@pytest.mark.parametrize("how", ENDS)
def test_all_objects_of_a_connection_go_without_the_collector(serve: Serve, how: str) -> None:
    log = Log()
    middleware = middleware_for(log.listener(), close_timeout=0.2)
    server = serve(middleware)
    with no_collector():
        with peer_of(server) as peer:
            peer.send(frame(TEXT, "hello"))
            assert peer.read_text() == "hello"
            (member,) = middleware.registry.members()
            client, listener = member.wsclient, member.component
            finalizers = [weakref.finalize(each, int) for each in (client, listener)]
            kinds = [type(member), type(member.connection), type(member.connection.outbox), Engine]
            del member, client, listener
            ENDS[how](peer, log)
            wait_until(lambda: log.closes)
        log.clients.clear()
        wait_until(lambda: not any(each.alive for each in finalizers), "client or listener lives")

        def left() -> list[str]:
            return [kind.__name__ for kind in kinds if any_of(kind)]

        wait_until(lambda: not left(), lambda: f"left: {left()}")


def any_of(kind: type) -> bool:
    return any(type(each) is kind for each in gc.get_objects())


def test_descriptors_and_watchers_return_to_where_they_were(serve: Serve) -> None:
    log = Log()
    middleware = middleware_for(log.listener())
    server = serve(middleware)
    loop = gevent.get_hub().loop

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def round_trip(how: str) -> None:
        count = len(log.closes)
        with peer_of(server) as peer:
            wait_until(lambda: log.clients)
            ENDS[how](peer, log)
        wait_until(lambda: len(log.closes) > count)
        log.clients.clear()

    def settled() -> tuple[int, int]:
        reactor = middleware.registry._reactor
        assert reactor
        wait_until(lambda: reactor._timer is None)
        return descriptors(), loop.activecnt

    round_trip("reset")
    before = settled()
    for how in [*ENDS] * 20:
        round_trip(how)
    wait_until(lambda: settled() == before, lambda: f"{before} before, {settled()} now")


def test_idle_connections_cost_no_processor(serve: Serve) -> None:
    server = serve(middleware_for((log := Log()).listener()))
    with peer_of(server), peer_of(server) as second:
        second.send(frame(TEXT, "x"))
        second.read_text()
        with peer_of(server) as third:
            third.reset()
        before = time.process_time()
        gevent.sleep(0.5)
        assert time.process_time() - before < 0.25
    wait_until(lambda: len(log.closes) == 3)
