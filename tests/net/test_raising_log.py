"""An application's logging handler that raises costs a line, and nobody a callback or a message.

So with whatever the hub calls: what raises once is called again, and what comes behind it is done.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest

from support import Server, wait_until
from support.threads import in_thread
from support.wire import PING, TEXT, Log, Peer, close_frame, frame, middleware_for, narrow, peer_of
from wsmiddleware import WebSocketMiddleware
from wsmiddleware.log import TRACE
from wsmiddleware.net.connection import Connection

Serve = Callable[..., Server]

#: More than one slice of a broadcast.
MANY = 260
BIG = "big" * 200_000


class Raising(logging.Handler):
    """Raises for the lines that match, as often as told."""

    def __init__(self, pattern: str, times: int) -> None:
        super().__init__(TRACE)
        self.pattern, self.left, self.raised = re.compile(pattern), times, 0

    def handle(self, record: logging.LogRecord) -> bool:
        # Not `emit` alone: whatever a handler does, before its own try.
        if self.left and self.pattern.search(record.getMessage()):
            self.left -= 1
            self.raised += 1
            raise RuntimeError("a handler that raises")
        return True


class Served:
    """One channel, and the connection that something happens to."""

    def __init__(self, serve: Serve, stack: ExitStack, **settings: Any) -> None:
        self.log = Log()

        def on_message(listener: Any, wsclient: Any, message: str) -> str:
            if message == "sleep":
                gevent.sleep(0.1)
            return message

        listener = self.log.listener(on_message=on_message)
        self.middleware: WebSocketMiddleware = middleware_for(listener, **settings)
        self.server = serve(self.middleware)
        self._stack = stack

    def connect(self, **options: Any) -> Peer:
        count = len(self.log.clients)
        peer = self._stack.enter_context(peer_of(self.server, **options))
        wait_until(lambda: len(self.log.clients) > count)
        return peer

    @property
    def connection(self) -> Connection:
        """Of the last one that came."""
        return self.log.client._connection

    def fill(self) -> None:
        """Leave no room for the last one that came, which does not read."""
        narrow(self.log.client)
        while self.connection.outbox.size <= self.connection.settings.send_queue_size:
            self.log.client.send(BIG, wait=False)

    def broadcast(self, text: str) -> None:
        self.log.clients[0].broadcast(text)


def opens(served: Served) -> None:
    served.connect().send(close_frame(1000))


def is_reset(served: Served) -> None:
    served.connect().reset()


def breaks_the_protocol(served: Served) -> None:
    peer = served.connect()
    peer.send(frame(11, ""))
    assert peer.read_close()[0] == 1002


def loses_a_reply(served: Served) -> None:
    peer = served.connect()
    peer.send(frame(TEXT, "sleep"))
    wait_until(lambda: "sleep" in served.log.messages)
    peer.reset()


def answers_no_ping(served: Served) -> None:
    peer = served.connect()
    while True:
        opcode, payload = peer.read()
        if opcode != PING:
            assert struct.unpack_from("!H", payload)[0] == 1011
            return


def is_dropped_for(served: Served) -> None:
    peer = served.connect(receive_buffer=4096)
    served.fill()
    for _ in range(2):  # each time a line, at the next second
        count = served.middleware.metrics.dropped
        served.broadcast("x")
        assert served.middleware.metrics.dropped > count
        assert served.connection._dropped
        wait_until(lambda: not served.connection._dropped)
    served.broadcast("x")
    peer.reset()


def is_slow(served: Served) -> None:
    served.connect(receive_buffer=4096)
    served.fill()
    served.broadcast("to all")


def is_slow_for_a_thread(served: Served) -> None:
    peer = served.connect(receive_buffer=4096)
    served.fill()
    client = served.log.client
    in_thread(lambda: client.broadcast("from a thread"))
    wait_until(lambda: not client.is_open())
    peer.reset()


def gets_an_order_that_raises(served: Served) -> None:
    def fail() -> None:
        raise ValueError("an order")

    done: list[bool] = []
    peer = served.connect()
    reactor = served.connection.reactor
    for order in (reactor.defer, reactor.order):
        done.clear()
        order(fail)
        order(done.append, True)
        wait_until(lambda: done)
    peer.reset()


def is_ticked_by_what_raises(served: Served) -> None:
    class Faulty:
        due_step = ticks = 0

        def tick(self, now: float) -> float:
            self.ticks += 1
            if self.ticks < 3:
                raise ValueError("a tick")
            return now + 60

        def forked(self) -> None: ...

    peer = served.connect()
    reactor, faulty = served.connection.reactor, Faulty()
    reactor.watch(faulty, 0)
    wait_until(lambda: faulty.ticks == 3)
    reactor.forget(faulty)
    peer.reset()


DROP = {"slow_consumer": "drop", "send_queue_size": 2**16}
SLOW = {"send_queue_size": 2**16, "close_timeout": 0.5}

#: What happens to one connection, the line that tells of it, and the settings.
KINDS: dict[str, tuple[Callable[[Served], None], str, dict[str, Any]]] = {
    "open": (opens, ": open, channel", {}),
    "close": (opens, ": closed, channel", {}),
    "reset": (is_reset, ": closed, channel", {}),
    "violation": (breaks_the_protocol, ": failed with 1002", {}),
    "lost reply": (loses_a_reply, "1 reply lost", {}),
    "no answer to a ping": (answers_no_ping, "no answer to a ping", {}),
    "dropped": (is_dropped_for, "messages dropped for it", DROP),
    "slow consumer": (is_slow, ": slow consumer, .* closing", SLOW),
    "slow consumer of a thread": (is_slow_for_a_thread, ": slow consumer, .* closing", SLOW),
    "order": (gets_an_order_that_raises, "internal error in .*fail", {}),
    "tick": (is_ticked_by_what_raises, "internal error in .*Faulty", {}),
}


@contextmanager
def raising(pattern: str, level: int, times: int) -> Iterator[Raising]:
    log, handler = logging.getLogger("websocket"), Raising(pattern, times)
    before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@pytest.mark.parametrize(
    ("level", "times"), [(logging.INFO, 1), (TRACE, 10**6)], ids=["once", "always, traced"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_handler_that_raises_skips_nothing(serve: Serve, kind: str, level: int, times: int) -> None:
    happen, pattern, settings = KINDS[kind]
    always = times > 1
    fast = {"ping_interval": 0.1, "ping_timeout": 0.3, "close_timeout": 0.3}
    with ExitStack() as stack:
        served = Served(serve, stack, **{**fast, **settings})
        handler = stack.enter_context(raising("" if always else pattern, level, times))
        other = served.connect()
        reader = gevent.spawn(read_until, other, "the end")
        happen(served)
        # Its last callback comes; nobody else misses a message, or is closed.
        wait_until(lambda: served.log.closes)
        assert len(served.log.closes) == 1
        served.broadcast("the end")
        assert PING in reader.get(timeout=10) or kind != "no answer to a ping"
        other.send(frame(TEXT, "echo"))
        read_until(other, "echo")
        other.send(close_frame(1000))
        wait_until(lambda: len(served.log.closes) == 2)
        wait_until(lambda: served.middleware.registry.channels["test"].is_settled)
    assert handler.raised >= 1


def read_until(peer: Peer, text: str) -> list[int]:
    """Reads, and answers pings, up to that text; the opcodes."""
    opcodes = []
    while True:
        opcode, payload = peer.read()
        opcodes.append(opcode)
        if opcode == PING:
            peer.send(frame(10, payload))
        elif payload == text.encode():
            return opcodes


@pytest.mark.parametrize("caller", ["a greenlet", "the hub", "a thread"])
def test_handler_that_raises_in_a_big_broadcast_costs_nobody_the_message(
    serve: Serve, caller: str
) -> None:
    with raising(": slow consumer", logging.INFO, 10**6) as handler, ExitStack() as stack:
        served = Served(serve, stack, **SLOW)
        peers = [served.connect() for _ in range(MANY)]
        slow = []
        for _ in range(2):
            slow.append(served.connect(receive_buffer=4096))
            served.fill()
        more = [served.connect() for _ in range(MANY)]
        client = served.log.clients[0]
        if caller == "a greenlet":
            client.broadcast("one")
        elif caller == "the hub":
            gevent.get_hub().loop.run_callback(client.broadcast, "one")
        else:
            in_thread(lambda: client.broadcast("one"))
        for peer in peers + more:
            assert peer.read_text() == "one"
        client.broadcast("two")  # nothing stands in the way of the next one
        for peer in peers + more:
            assert peer.read_text() == "two"
        assert handler.raised == 2
        wait_until(lambda: len(served.log.closes) == len(slow))
