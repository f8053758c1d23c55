"""A node that works by itself: who waits for an answer, and what an error does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from support import wait_until
from wsmiddleware.backplane.engine import History, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind
from wsmiddleware.backplane.faults import Faults
from wsmiddleware.backplane.memory import MemoryBus
from wsmiddleware.node.greenlets import WorkingNode
from wsmiddleware.node.node import WAIT
from wsmiddleware.node.outgoing import Ticket
from wsmiddleware.node.subject import Event

CHAT = Subject("chat")
FIVE = History(5)


class Process(WorkingNode):
    """A node, and the texts that came down."""

    def __init__(self, bus: MemoryBus) -> None:
        self.texts: list[str] = []
        self.fails = 0
        super().__init__(bus.engine(), self.take)

    def take(self, subject: Subject, event: Event) -> None:
        if self.fails:
            self.fails -= 1
            raise ZeroDivisionError("on purpose")
        if isinstance(event, Envelope):
            self.texts.append(event.payload.decode())

    def says(self, text: str, history: History | None = FIVE) -> Ticket:
        return self.publish(CHAT, Kind.TEXT, text.encode(), history=history)


@contextmanager
def opened(bus: MemoryBus) -> Iterator[Process]:
    process = Process(bus)
    process.open()
    process.join(CHAT, FIVE)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def one(bus: MemoryBus) -> Iterator[Process]:
    with opened(bus) as process:
        wait_until(lambda: CHAT in bus.subscribers)
        gevent.sleep(0)
        yield process


@pytest.fixture
def two(bus: MemoryBus, one: Process) -> Iterator[Process]:
    with opened(bus) as process:
        wait_until(lambda: len(bus.subscribers[CHAT]) == 2)
        gevent.sleep(0)
        yield process


def test_who_publishes_waits_for_the_answer(one: Process, two: Process) -> None:
    for text in "abc":
        assert one.wait(one.says(text))
    wait_until(lambda: one.texts == two.texts == list("abc"))


def test_without_history_nobody_waits(one: Process, two: Process, bus: MemoryBus) -> None:
    Faults(bus).cut(one.engine)  # type: ignore[arg-type]
    assert one.wait(one.says("a", None))
    assert one.texts == ["a"]
    Faults(bus).heal()
    wait_until(lambda: two.texts == ["a"])


def test_wait_ends(one: Process, bus: MemoryBus) -> None:
    Faults(bus).hang()
    began = time.monotonic()
    ticket = one.says("a")
    assert not one.wait(ticket)
    assert WAIT - 0.1 < time.monotonic() - began < 10
    began = time.monotonic()
    assert not one.wait(one.says("b"))  # no sooner than the one before it
    assert time.monotonic() - began < WAIT / 2
    Faults(bus).wake()
    wait_until(lambda: one.texts == ["a", "b"])
    assert ticket


def test_link_that_is_down_is_not_waited_for(one: Process, bus: MemoryBus) -> None:
    Faults(bus).cut()
    began = time.monotonic()
    assert not one.wait(one.says("a"))
    assert time.monotonic() - began < WAIT / 2


def test_hub_does_not_wait(one: Process) -> None:
    answers: list[bool] = []
    gevent.get_hub().loop.run_callback(lambda: answers.append(one.wait(one.says("a"))))
    wait_until(lambda: one.texts == ["a"])
    assert answers == [False]


def test_error_ends_no_task(one: Process, caplog: pytest.LogCaptureFixture) -> None:
    one.fails = 1
    one.says("a")
    wait_until(lambda: not one.fails)
    one.says("b")
    wait_until(lambda: one.texts == ["b"])
    assert "backplane: deliver failed and is tried again" in caplog.text


def test_closed_node_leaves_no_greenlet(bus: MemoryBus) -> None:
    with opened(bus) as process:
        gevent.sleep(0)
    assert all(greenlet.dead for greenlet in process._greenlets)
    assert bus.subscribers == {}
