"""What a signal handler or a finalizer sends in the middle of a write comes behind that frame.

Both run between any two instructions of ours. Here a tracer stands for a signal handler: it is
called in the same way, and at the k-th line, not by chance.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import gevent
import pytest

from support import Server, wait_until
from support.wire import TEXT, Log, Peer, connection_of, frame, middleware_for, narrow, peer_of
from wsmiddleware import ConnectionClosed

Serve = Callable[..., Server]

BIG = "big" * 40_000
#: Where a write runs, from its door to the socket.
FILES = ("net/outbox.py", "net/sender.py", "net/stream.py", "listeners/delivery.py")

WAYS: dict[str, Callable[[Any, str], object]] = {
    "send": lambda client, text: client.send(text),
    "send without waiting": lambda client, text: client.send(text, wait=False),
    "broadcast": lambda client, text: client.broadcast(text),
}


def interrupt(at: int, handler: Callable[[], object]) -> Callable[..., Any]:
    """A tracer that calls `handler` once, before the line of ours that is run as the `at`th."""
    left = [at]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                handler()
        return trace

    return trace


def read_all(peer: Peer, count: int) -> list[str]:
    return [peer.read_text() for _ in range(count)]


@pytest.mark.parametrize("inner", WAYS)
@pytest.mark.parametrize("outer", WAYS)
# In one piece, and header and payload apart; more than the socket takes, both.
@pytest.mark.parametrize("text", ["small" * 3000, BIG], ids=["small", "big"])
def test_what_a_signal_handler_sends_tears_no_frame(
    serve: Serve, text: str, outer: str, inner: str
) -> None:
    log = Log()
    middleware = middleware_for(log.listener(on_open=lambda self, wsclient: narrow(wsclient)))
    with peer_of(serve(middleware), receive_buffer=4096) as peer:
        wait_until(lambda: log.clients)
        client, at, interrupted = log.client, 0, True
        while interrupted:
            at += 1
            done: list[object] = []
            texts = [text, f"inner {at}", "behind"]

            def handler(done: list[object] = done, inner_text: str = texts[1]) -> None:
                sys.settrace(None)
                done.append(WAYS[inner](client, inner_text))

            sys.settrace(interrupt(at, handler))
            try:
                WAYS[outer](client, text)
            finally:
                sys.settrace(None)
            interrupted = bool(done)
            client.send("behind")
            expected = sorted(texts) if interrupted else [text, "behind"]
            assert sorted(read_all(peer, len(expected))) == sorted(expected)
        assert at > 10
        assert connection_of(middleware).outbox.size == 0


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_finalizer_sends_tears_no_reply(serve: Serve, count: int) -> None:
    class Sending:
        """In a cycle, for the collector."""

        def __init__(self, client: Any) -> None:
            self.client, self.me = client, self

        def __del__(self) -> None:
            self.client.send("finalized")

    def on_message(self: Any, wsclient: Any, message: str) -> str:
        gc.disable()
        for _ in range(count):
            Sending(wsclient)
        gc.enable()
        gc.set_threshold(1)
        return BIG

    log = Log()
    listener = log.listener(on_open=lambda self, wsclient: narrow(wsclient), on_message=on_message)
    before = gc.get_threshold()
    try:
        with peer_of(serve(middleware_for(listener)), receive_buffer=4096) as peer:
            for _ in range(3):
                peer.send(frame(TEXT, "x"))
                found = read_all(peer, count + 1)
                assert sorted(found) == sorted([BIG, *["finalized"] * count])
    finally:
        gc.set_threshold(*before)


def test_close_in_the_middle_of_a_send_comes_behind_it_or_before_it(serve: Serve) -> None:
    at, interrupted, kinds = 0, True, set()
    while interrupted:
        at += 1
        log = Log()
        listener = log.listener(on_open=lambda self, wsclient: narrow(wsclient))
        with peer_of(serve(middleware_for(listener)), receive_buffer=4096) as peer:
            wait_until(lambda log=log: log.clients)
            client, is_sent = log.client, True

            def close(client: Any = client) -> None:
                sys.settrace(None)
                client.close(4001, "enough")

            sys.settrace(interrupt(at, close))
            try:
                client.send(BIG)
            except ConnectionClosed:
                is_sent = False
            finally:
                sys.settrace(None)
            gevent.sleep(0)
            interrupted = not client.is_open()
            kinds.add(is_sent)
            if is_sent:
                assert peer.read_text() == BIG
            if interrupted:
                assert peer.read_close() == (4001, "enough")
            peer.reset()
    assert kinds == {True, False}
