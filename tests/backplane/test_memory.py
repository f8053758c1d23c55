"""The engine in memory keeps the interface's promises, and its faults break what they say."""

from __future__ import annotations

import pytest

from wsmiddleware.backplane.engine import (
    SEQUENCE_TTL,
    Announcement,
    Entry,
    Fork,
    History,
    Link,
    LinkDown,
    Outcome,
    Publication,
    Reading,
    ReadRequest,
    Status,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, Kind, decode, decode_head, encode
from wsmiddleware.backplane.faults import Faults
from wsmiddleware.backplane.memory import MemoryBus, MemoryEngine

CHAT = Subject("chat")
THREE = History(3, 300)


class Node:
    """A receiver that writes down what it is told."""

    def __init__(self, bus: MemoryBus, name: bytes = b"nodenode") -> None:
        self.engine: MemoryEngine = bus.engine()
        self.told: list[tuple[object, ...]] = []
        self.texts: list[bytes] = []
        self.engine.open(name, self)
        self.numbers = 0

    def opened(self, link: Link) -> None:
        self.told.append(("opened", link))

    def lost(self, link: Link, reason: str) -> None:
        self.told.append(("lost", link))

    def subscribed(self, subject: Subject) -> None:
        self.told.append(("subscribed", subject))

    def arrived(self, subject: Subject, data: bytes) -> None:
        self.texts.append(decode(data).payload)

    def asked(self, question: bytes) -> bytes | None:
        return question.upper() if question != b"?" else None

    def publish(self, text: str, history: History | None = THREE) -> Outcome:
        [outcome] = self.engine.publish([self.publication(text, history)])
        return outcome

    def publication(self, text: str, history: History | None = THREE) -> Publication:
        self.numbers += 1
        data = encode(Envelope(CHAT, Kind.TEXT, text.encode()))
        return Publication(CHAT, data, history, "me", self.numbers)

    def read(self, since: int | None = None, count: int = 1000) -> Reading:
        [reading] = self.engine.read([ReadRequest(CHAT, THREE, since, count)])
        return reading


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bus(clock: Clock) -> MemoryBus:
    return MemoryBus(clock)


@pytest.fixture
def node(bus: MemoryBus) -> Node:
    node = Node(bus)
    node.engine.subscribe([CHAT])
    return node


@pytest.fixture
def faults(bus: MemoryBus) -> Faults:
    return Faults(bus)


def texts(entries: tuple[Entry, ...]) -> list[str]:
    return [decode(entry.data).payload.decode() for entry in entries]


def test_links_open_and_a_subscription_is_confirmed(node: Node) -> None:
    links = [("opened", Link.READING), ("opened", Link.WRITING)]
    assert node.told == [*links, ("subscribed", CHAT)]


def test_what_has_no_history_goes_to_who_is_there(bus: MemoryBus, node: Node) -> None:
    other = Node(bus)
    assert node.publish("hi", None) == Outcome(Status.PUBLISHED)
    assert (node.texts, other.texts) == ([b"hi"], [])
    assert node.read(0).entries == ()


def test_history_counts_and_keeps_the_last(node: Node) -> None:
    offsets = [node.publish(text).position.offset for text in "abcde"]  # type: ignore[union-attr]
    assert offsets == [1, 2, 3, 4, 5]
    reading = node.read(0)
    assert (reading.top, texts(reading.entries)) == (5, ["c", "d", "e"])
    assert texts(node.read(3).entries) == ["d", "e"]
    assert texts(node.read(0, count=1).entries) == ["c"]
    assert node.read().entries == ()


def test_what_arrives_is_stamped(bus: MemoryBus, node: Node) -> None:
    heads = []
    node.arrived = lambda subject, data: heads.append(decode_head(data))  # type: ignore[method-assign]
    position = node.publish("a").position
    assert [(head.epoch, head.offset) for head in heads] == [position]


def test_old_entries_are_let_go_and_the_top_stays(node: Node, clock: Clock) -> None:
    node.publish("a")
    clock.now += THREE.ttl + 1
    assert node.read(0) == Reading(node.read().epoch, 1)


def test_meta_outlives_its_stream_and_ends(bus: MemoryBus, node: Node, clock: Clock) -> None:
    node.publish("a")
    epoch = node.read().epoch
    clock.now += THREE.meta_ttl - 1
    assert node.read().epoch == epoch  # and is used by that
    clock.now += THREE.meta_ttl + 1
    bus.stream(Subject("other"), THREE)
    assert list(bus.streams) == [Subject("other")]
    assert node.read().epoch != epoch


def test_repetition_is_carried_out_once(node: Node, clock: Clock) -> None:
    first, second = node.publication("a"), node.publication("b")
    node.engine.publish([first, second])
    again = node.engine.publish([first, second])
    assert [outcome.status for outcome in again] == [Status.PUBLISHED] * 2
    assert texts(node.read(0).entries) == ["a", "b"]
    clock.now += SEQUENCE_TTL + 1
    node.engine.publish([first])
    assert texts(node.read(0).entries) == ["a", "b", "a"]


def test_numbers_are_forgotten(bus: MemoryBus, node: Node, clock: Clock) -> None:
    node.publish("a")
    clock.now += SEQUENCE_TTL + 1
    bus.stream(CHAT, THREE)
    assert bus.streams[CHAT].numbers == {}


def test_what_follows_a_refused_one_waits(node: Node, faults: Faults) -> None:
    faults.refuse(1)
    outcomes = node.engine.publish([node.publication("a"), node.publication("b")])
    assert [outcome.status for outcome in outcomes] == [Status.AGAIN] * 2
    assert node.publish("c").status is Status.PUBLISHED


def test_cut_reading_link_ends_subscriptions(node: Node, faults: Faults) -> None:
    faults.cut(link=Link.READING)
    faults.cut(link=Link.READING)
    with pytest.raises(LinkDown):
        node.engine.subscribe([CHAT])
    assert node.publish("a").status is Status.PUBLISHED
    faults.heal()
    assert node.told[-2:] == [("lost", Link.READING), ("opened", Link.READING)]
    node.publish("b")
    assert node.texts == []


def test_cut_writing_link_carries_nothing(node: Node, faults: Faults) -> None:
    faults.cut(node.engine, Link.WRITING)
    assert node.publish("a").status is Status.AGAIN
    for verb in (node.read, lambda: node.engine.announced("chat")):
        with pytest.raises(LinkDown):
            verb()


def test_lost_arrivals_are_in_the_stream(node: Node, faults: Faults) -> None:
    faults.lose(1)
    node.publish("a")
    node.publish("b")
    assert node.texts == [b"b"]
    assert texts(node.read(0).entries) == ["a", "b"]


def test_hung_one_carries_out_late_what_was_not_carried_out(node: Node, faults: Faults) -> None:
    faults.hang()
    hung = node.publication("a")
    assert node.engine.publish([hung])[0].status is Status.UNKNOWN
    with pytest.raises(LinkDown):
        node.read()
    faults.wake()
    assert node.engine.publish([hung])[0].status is Status.PUBLISHED
    assert node.texts == [b"a"]


def test_failover_loses_the_end_and_says_where(node: Node, faults: Faults) -> None:
    for text in "abc":
        node.publish(text)
    old = node.read().epoch
    faults.failover(lost=2)
    reading = node.read(0)
    assert (reading.top, texts(reading.entries)) == (1, ["a"])
    assert reading.forks == (Fork(old, 1),)
    assert node.publish("d").position == (reading.epoch, 2)


def test_failover_can_lose_the_beginning_of_an_epoch(node: Node, faults: Faults) -> None:
    node.publish("a")
    first = node.read().epoch
    faults.failover()
    node.publish("b")
    faults.failover(lost=2)
    reading = node.read(0)
    assert (reading.forks, texts(reading.entries)) == ((Fork(first, 1),), ["a"])


def test_failover_can_lose_all(node: Node, faults: Faults) -> None:
    node.publish("a")
    epoch = node.read().epoch
    faults.failover(lost=2)
    assert node.read(0) == Reading(node.read().epoch, 0)
    assert node.read().epoch != epoch


def test_lost_publication_can_be_tried_again(node: Node, faults: Faults) -> None:
    first, second = node.publication("a"), node.publication("b")
    node.engine.publish([first, second])
    faults.failover(lost=1)
    node.engine.publish([first, second])
    assert texts(node.read(0).entries) == ["a", "b"]


def test_no_more_forks_than_eight_are_remembered(node: Node, faults: Faults) -> None:
    epochs = []
    for _ in range(12):
        epochs.append(node.read().epoch)
        faults.failover()
    node.read()
    assert [fork.epoch for fork in node.read().forks] == epochs[-8:]


def test_restart_keeps_all_or_nothing(node: Node, faults: Faults) -> None:
    node.publish("a")
    epoch = node.read().epoch
    faults.restart()
    assert (node.read().forks, texts(node.read(0).entries)) == ((Fork(epoch, 1),), ["a"])
    faults.restart(empty=True)
    assert node.read(0) == Reading(node.read().epoch, 0)


def test_channels_are_announced_for_thirty_days(node: Node, clock: Clock) -> None:
    with pytest.raises(LookupError, match="chat"):
        node.engine.announced("chat")
    node.engine.announce(Announcement(b"nodenode", {"chat": THREE, "plain": None}))
    assert node.engine.announced("chat") == THREE
    assert node.engine.announced("plain") is None
    clock.now += 31 * 24 * 3600
    with pytest.raises(LookupError):
        node.engine.announced("chat")


def test_question_names_who_is_missing(bus: MemoryBus, node: Node, faults: Faults) -> None:
    other = Node(bus, b"othernod")
    assert node.engine.ask(b"hi").answers == {b"nodenode": b"HI", b"othernod": b"HI"}
    faults.cut(other.engine)
    assert node.engine.ask(b"hi").missing == {b"othernod"}


def test_who_has_closed_is_told_nothing(bus: MemoryBus, node: Node, faults: Faults) -> None:
    other = Node(bus)
    assert node.engine.has_others
    other.engine.subscribe([CHAT])
    other.engine.close()
    other.engine.close()
    assert not node.engine.has_others
    told = list(other.told)
    node.publish("a")
    faults.cut()
    assert (other.texts, other.told) == ([], told)
    assert bus.subscribers == {}
