"""Real nodes on a real Redis: what the property tests hold in memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.event import Event

from support import wait_until
from support.backplane import SUBJECT
from support.redis import RedisServer, redis_server
from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import History, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind
from wsmiddleware.backplane.redis import RedisEngine
from wsmiddleware.node.node import Node, Task
from wsmiddleware.node.subject import Entered, Reset

pytestmark = pytest.mark.once

KEPT = History(10_000, 300)


class Running:
    """A node whose tasks run in greenlets; what went down of one subject."""

    def __init__(self, url: str) -> None:
        self.texts: list[str] = []
        self.resets: list[Reset] = []
        self.is_live = Event()
        self._wake = {task: Event() for task in Task}
        engine = RedisEngine(Address.parse(url))
        self.node = Node(
            engine, self._down, clock=time.monotonic, on_work=lambda task: self._wake[task].set()
        )
        node = self.node
        works = {Task.SEND: node.send, Task.TEND: node.tend, Task.DELIVER: node.deliver}
        self._greenlets = [
            gevent.spawn(self._run, self._wake[t], work) for t, work in works.items()
        ]
        node.open()
        node.join(SUBJECT, KEPT)
        node.enter(SUBJECT, self)

    def _run(self, wake: Event, work: Callable[[], float | None]) -> None:
        while True:
            wake.clear()
            wake.wait(work())

    def _down(self, subject: Subject, event: object) -> None:
        if isinstance(event, Envelope):
            self.texts.append(event.payload.decode())
        elif isinstance(event, Reset):
            self.resets.append(event)
        elif isinstance(event, Entered):
            self.is_live.set()

    def publish(self, text: str) -> object:
        return self.node.publish(SUBJECT, Kind.TEXT, text.encode(), history=KEPT)

    def close(self) -> None:
        self.node.close()
        gevent.killall(self._greenlets)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@contextlib.contextmanager
def running(server: RedisServer, count: int) -> Iterator[list[Running]]:
    nodes = [Running(server.url) for _ in range(count)]
    try:
        wait_until(lambda: all(node.node.is_connected and node.is_live.is_set() for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            node.close()


def test_four_nodes_publish_at_once_while_links_are_cut(server: RedisServer) -> None:
    with running(server, 4) as nodes:
        for n in range(300):
            for name, node in zip("abcd", nodes, strict=True):
                node.publish(f"{name}{n}")
            if n % 60 == 30:
                server.kill_clients("pubsub" if n % 120 == 30 else "normal")
            gevent.sleep(0.002)
        wait_until(
            lambda: [len(node.texts) for node in nodes] == [1200] * 4,
            lambda: f"{[len(node.texts) for node in nodes]}",
            30,
        )
        orders = [node.texts for node in nodes]
        assert orders[0] == orders[1] == orders[2] == orders[3]
        for name in "abcd":
            assert [t for t in orders[0] if t[0] == name] == [f"{name}{n}" for n in range(300)]
        assert not any(node.resets for node in nodes)


def test_every_node_is_told_of_an_old_snapshot(server: RedisServer) -> None:
    with running(server, 2) as nodes:
        assert server.cli("SAVE") == "OK"
        nodes[0].publish("lost")
        wait_until(lambda: all(node.texts[-1:] == ["lost"] for node in nodes))
        server.stop()
        server.start()
        wait_until(lambda: all(node.resets for node in nodes), timeout=20)
        nodes[1].publish("after")
        wait_until(lambda: all(node.texts[-1:] == ["after"] for node in nodes), timeout=20)
        assert [len(node.resets) for node in nodes] == [1, 1]
