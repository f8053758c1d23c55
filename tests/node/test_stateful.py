"""Publishers, nodes, clients and faults in any order: each client has the stream, or is told.

hypothesis looks for an order in which a client misses a message, gets one twice or in another order
without a `reset`, is told of one without cause, or a publication goes into the stream twice. What
is compared is what the clients read off their frames, with the bus's own account of the stream.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.figures import longer, record
from wsmiddleware.backplane.engine import (
    MAX_FORKS,
    History,
    Link,
    Outcome,
    Publication,
    Reading,
    ReadRequest,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, Kind, decode
from wsmiddleware.backplane.faults import Faults
from wsmiddleware.backplane.memory import MemoryBus, MemoryEngine
from wsmiddleware.node import subject
from wsmiddleware.node.node import Node, Task
from wsmiddleware.node.outgoing import Ticket
from wsmiddleware.node.subject import CHECK_INTERVAL, Entered, Event, Reset
from wsmiddleware.v1.client import Follower, Phase
from wsmiddleware.v1.frames import Message, Since, parse_since

KEPT = Subject("chat")
PLAIN = Subject("chat", "plain")

_tried: Counter[str] = Counter()


class Bus(MemoryBus):
    """Keeps account of what is in the stream of `KEPT`, for longer than the stream keeps it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.account: list[str] = []

    def carry_out(self, publication: Publication) -> Outcome:
        before = self._top()
        outcome = super().carry_out(publication)
        if publication.subject == KEPT and self._top() > before:
            del self.account[before:]
            is_ours = publication.producer != "tool"
            text = decode(publication.data).payload.decode() if is_ours else None
            self.account.append(text or f"foreign {publication.number}")
        return outcome

    def _top(self) -> int:
        return self.streams[KEPT].top if KEPT in self.streams else 0

    def true_account(self) -> list[str]:
        """What is in the stream, also what was trimmed."""
        return self.account[: self._top()]


class Engine(MemoryEngine):
    """Something can happen between a request and its answer."""

    def __init__(self, bus: MemoryBus) -> None:
        super().__init__(bus)
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []

    def read(self, requests: Sequence[ReadRequest]) -> list[Reading]:
        self._happen(self.before)
        readings = super().read(requests)
        self._happen(self.after)
        return readings

    def publish(self, batch: Sequence[Publication]) -> list[Outcome]:
        self._happen(self.before)
        outcomes = super().publish(batch)
        self._happen(self.after)
        return outcomes

    def _happen(self, actions: list[Callable[[], None]]) -> None:
        now, actions[:] = list(actions), []
        for action in now:
            action()


class Browser:
    """What a client knows: from its frames alone."""

    def __init__(self, name: str, since: Since | None, texts: list[str]) -> None:
        self.name = name
        self.epoch, self.offset = since.position if since else ("", 0)
        #: What it has had since `start`, where it last loaded its state.
        self.start = self.offset - len(texts)
        self.texts = texts
        self.greeted = 0
        self.resets = 0
        self.told = True
        self.is_refused = False

    def take(self, frames: list[str]) -> None:
        kinds = {"hello": self._hello, "reset": self._reset, "message": self._message}
        for text in frames:
            frame = json.loads(text)
            kinds[frame.pop("type")](frame)

    def _hello(self, frame: dict[str, Any]) -> None:
        self.greeted += 1
        assert self.greeted == 1
        assert frame["session"] == self.name
        _tried["recovered" if frame["recovered"] else "entered"] += 1
        self.is_refused = "epoch" in frame and not frame["recovered"]
        if not frame["recovered"]:
            self.start = frame.get("offset", 0)
            self.texts = []
            self.told = "epoch" in frame
        else:
            assert frame["offset"] == self.offset
        self.epoch, self.offset = frame.get("epoch", ""), frame.get("offset", 0)

    def _reset(self, frame: dict[str, Any]) -> None:
        assert self.greeted
        self.resets += self.told
        self.told = True
        self.epoch, self.offset = frame["epoch"], frame["offset"]
        self.start, self.texts = self.offset, []

    def _message(self, frame: dict[str, Any]) -> None:
        assert self.greeted
        assert frame["offset"] > self.offset, "twice, or in another order"
        self.epoch = frame.get("epoch", self.epoch)
        self.offset = frame["offset"]
        self.texts.append(frame["data"])


class Client:
    """A connection to a node: the state that the server has of it, and the browser's end."""

    def __init__(self, world: World, name: str, since: Since | None, texts: list[str]) -> None:
        self.world = world
        self.name = name
        self.browser = Browser(name, since, texts)
        self.has_to_recover = False
        self.follower = Follower(KEPT, name, has_history=True, since=since)
        world.clients.append(self)
        world.node.join(KEPT, world.history)
        world.node.enter(KEPT, self, self.follower.since)

    def close(self) -> None:
        self.world.clients.remove(self)
        self.world.node.withdraw(self)
        self.world.node.leave(KEPT)

    def take(self, event: Event) -> None:
        if isinstance(event, Entered):
            if event.token is self:
                self.browser.take(self.follower.entered(event))
        elif isinstance(event, Reset):
            self.browser.take(self.follower.reset(event))
        else:
            self.browser.take(self.follower.deliver(Message(event)))

    def opened(self) -> None:
        if self.follower.phase is Phase.OPENING:
            self.browser.take(self.follower.opened())


class World:
    """A process: its node, and who is connected to it."""

    def __init__(self, bus: Bus, number: int, history: History) -> None:
        self.number = number
        self.history = history
        self.engine = Engine(bus)
        self.wants: list[Task] = []
        self.node = Node(self.engine, self.down, clock=bus.clock, on_work=self.wants.append)
        self.clients: list[Client] = []
        self.plain: dict[bytes, list[int]] = {}
        self.tickets: list[tuple[str, Ticket]] = []
        self.running: set[Task] = set()
        self.node.open()
        self.node.join(PLAIN)

    def down(self, subject: Subject, event: Event) -> None:
        if subject == KEPT:
            for client in tuple(self.clients):
                client.take(event)
        elif isinstance(event, Envelope):
            self.plain.setdefault(event.node, []).append(int(event.payload))

    def run(self, task: Task) -> float | None:
        if task in self.running:
            return None  # one caller each
        self.running.add(task)
        delay: float | None = getattr(self.node, task.value)()
        self.running.discard(task)
        return delay

    def is_done(self) -> bool:
        """Everything has run that can run without the clock."""
        self.wants.clear()
        return [self.run(task) for task in Task].count(0.0) == 0 and not self.wants


def void(_: object) -> None:
    pass


tasks = st.sampled_from(Task)
links = st.sampled_from([None, *Link])
numbers = st.integers(0, 2)


class Traffic(RuleBasedStateMachine):
    """The world's events; `settle` looks at what has come of them."""

    now = 0.0

    @initialize(
        count=st.sampled_from([None, None, 3, 20]),
        nodes=st.integers(1, 3),
        texts=st.integers(0, 4),
        is_small=st.booleans(),
    )
    def begin(self, count: int | None, nodes: int, texts: int, is_small: bool) -> None:
        self.limits = pytest.MonkeyPatch()
        if is_small:
            for name, limit in (("EARLY_COUNT", 1), ("TAIL_COUNT", 2), ("_READ_COUNT", 2)):
                self.limits.setattr(subject, name, limit)
        #: Nothing of the stream is lost: nobody is told, everyone has everything.
        self.is_gentle = count is None
        _tried["runs"] += 1
        self.history = History(count or 1000, 1e6 if self.is_gentle else 200.0)
        self.bus = Bus(lambda: self.now)
        self.faults = Faults(self.bus)
        self.worlds = [World(self.bus, number, self.history) for number in range(nodes)]
        self.texts = 0
        self.names = 0
        #: Positions and texts of browsers whose connection broke.
        self.away: list[Browser] = []
        #: The stream may have lost something: who is told has cause.
        self.is_lossy = False
        #: Something without history may be lost.
        self.is_rough = False
        #: Arrivals were lost that nobody noticed: only the look at quiet subjects finds them.
        self.is_silent = False
        self.lines = 0
        for number in range(nodes):
            self.connect(number)
            if texts:
                self.publish(number, texts, True)

    def world(self, number: int) -> World:
        return self.worlds[number % len(self.worlds)]

    # -- traffic ------------------------------------------------------------------------------

    @rule(number=numbers, count=st.integers(1, 4), is_seen=st.booleans())
    def publish(self, number: int, count: int, is_seen: bool) -> None:
        world = self.world(number)
        for _ in range(count):
            self.texts += 1
            text = f"{self.texts}"
            ticket = world.node.publish(KEPT, Kind.TEXT, text.encode(), history=self.history)
            world.tickets.append((text, ticket))
        _tried["publications"] += count
        if self.texts > self.history.count:
            self.is_lossy = True
        if is_seen:
            self.work_all()

    @rule(number=numbers)
    def publish_plain(self, number: int) -> None:
        self.texts += 1
        self.world(number).node.publish(PLAIN, Kind.JSON, b"%d" % self.texts)

    @rule(number=numbers, task=tasks)
    def work(self, number: int, task: Task) -> None:
        self.world(number).run(task)

    def work_once(self) -> bool:
        return [world.is_done() for world in self.worlds].count(False) == 0

    @rule()
    def work_all(self) -> None:
        for _ in range(50):
            if self.work_once():
                return

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 11.0, 31.0, 61.0]), is_stalled=st.booleans())
    def advance(self, seconds: float, is_stalled: bool) -> None:
        if is_stalled:
            self.rough()  # whoever does nothing for so long drops what waits
        else:
            self.work_all()
        self.now += seconds
        if self.now > self.history.ttl:
            self.is_lossy = True

    # -- clients ------------------------------------------------------------------------------

    @rule(number=numbers)
    def connect(self, number: int) -> None:
        self.names += 1
        _tried["clients"] += 1
        Client(self.world(number), f"s{self.names}", None, [])
        self.work_all()

    @rule(number=numbers, text=st.sampled_from(["", "x", f"{'0' * 16}:3", "0123456789abcdef:1:s1"]))
    def connect_from_nowhere(self, number: int, text: str) -> None:
        self.names += 1
        Client(self.world(number), f"s{self.names}", parse_since(text), [])

    @rule(number=numbers, which=numbers)
    def opened(self, number: int, which: int) -> None:
        for client in self.world(number).clients[which : which + 1]:
            client.opened()

    @rule(number=numbers, which=numbers)
    def drop(self, number: int, which: int) -> None:
        for client in self.world(number).clients[which : which + 1]:
            client.opened()
            client.close()
            if client.browser.greeted and client.browser.epoch:
                self.away.append(client.browser)

    @rule(number=numbers, which=numbers, other=numbers, count=st.integers(0, 4))
    def reconnect(self, number: int, which: int, other: int, count: int) -> None:
        """To another node, with messages missed."""
        self.drop(number, which)
        if count:
            self.publish(other, count, True)
        if self.away:
            self.come_back(other, 0)
            self.work_all()

    @precondition(lambda self: self.away)
    @rule(number=numbers, which=numbers)
    def come_back(self, number: int, which: int) -> None:
        browser = self.away.pop(which % len(self.away))
        self.names += 1
        since = parse_since(f"{browser.epoch}:{browser.offset}:{browser.name}")
        assert since is not None
        client = Client(self.world(number), f"s{self.names}", since, browser.texts)
        client.browser.resets = browser.resets
        client.browser.start = browser.start
        client.has_to_recover = True

    # -- faults -------------------------------------------------------------------------------

    @rule(number=numbers, link=links)
    def cut(self, number: int, link: Link | None) -> None:
        self.rough()
        self.faults.cut(self.world(number).engine, link)

    @rule(number=numbers)
    def heal(self, number: int) -> None:
        self.faults.heal(self.world(number).engine)

    @rule(number=numbers, count=st.integers(1, 3))
    def lose(self, number: int, count: int) -> None:
        self.rough()
        self.is_silent = True
        self.faults.lose(count, self.world(number).engine)

    @rule(number=numbers, count=st.integers(1, 3))
    def refuse(self, number: int, count: int) -> None:
        self.rough()
        self.faults.refuse(count, self.world(number).engine)

    @rule()
    def hang(self) -> None:
        self.rough()
        self.faults.hang()

    @rule()
    def wake(self) -> None:
        self.faults.wake()

    @rule(lost=st.integers(0, 4))
    def failover(self, lost: int) -> None:
        self.another_line()
        if self.is_gentle:
            lost = 0
        self.is_lossy |= lost > 0
        self.faults.failover(lost)

    @rule(is_empty=st.booleans())
    def restart(self, is_empty: bool) -> None:
        self.another_line()
        is_empty &= not self.is_gentle
        self.is_lossy |= is_empty
        self.faults.restart(empty=is_empty)

    @rule(data=st.sampled_from([b"", b"hello", b"\xb2" + bytes(60), b"\xb1" + bytes(60)]))
    def publish_with_another_tool(self, data: bytes) -> None:
        self.bus.deliver(KEPT, data)

    @precondition(lambda self: not self.is_gentle)
    @rule()
    def insert_with_another_tool(self) -> None:
        """An entry that is none of ours: a hole that nobody can fill."""
        self.is_lossy = self.is_silent = True
        self.texts += 1
        data = b"hello" + bytes(60)
        self.bus.carry_out(Publication(KEPT, data, self.history, "tool", self.texts))

    @rule(number=numbers, other=numbers, is_after=st.booleans(), what=st.integers(0, 6))
    def meanwhile(self, number: int, other: int, is_after: bool, what: int) -> None:
        """In the middle of the next verb of a node."""
        world, second = self.world(number), self.world(other)
        actions: list[Callable[[], object]] = [
            lambda: self.publish(other, 2, False),
            lambda: second.run(Task.DELIVER),
            lambda: self.faults.cut(world.engine, Link.READING),
            lambda: self.faults.heal(world.engine),
            lambda: second is world or second.run(Task.SEND),
            lambda: self.lose_and_publish(world, other),
            lambda: (self.another_line(), self.faults.failover()),
        ]
        engine = world.engine
        (engine.after if is_after else engine.before).append(lambda: void(actions[what]()))
        if what in (2, 5, 6):
            self.rough()

    def lose_and_publish(self, world: World, other: int) -> None:
        self.is_silent = True
        self.faults.lose(1, world.engine)
        self.publish(other, 2, False)
        if self.world(other) is not world:
            self.world(other).run(Task.SEND)
        world.run(Task.DELIVER)

    @rule(number=numbers, other=numbers)
    def fall_behind(self, number: int, other: int) -> None:
        """A hole, and a second one while the first is read."""
        world = self.world(number)
        self.rough()
        world.engine.after.append(lambda: self.lose_and_publish(world, other))
        self.lose_and_publish(world, other)
        self.work_all()

    def another_line(self) -> None:
        self.rough()
        self.lines += 1
        if self.lines > MAX_FORKS:
            self.is_lossy = True  # where the first ones forked off is remembered no more

    def rough(self) -> None:
        _tried["faults"] += 1
        self.is_rough = True

    @invariant()
    def count_steps(self) -> None:
        _tried["steps"] += 1

    # -- what has come of it ------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        """All is well again, and has been for a while."""
        for world in self.worlds:
            world.engine.losing = world.engine.refusing = 0
            world.engine.before.clear()
            world.engine.after.clear()
        self.faults.wake()
        self.faults.heal()
        for _ in range(7):
            self.run_out()
        if not self.is_silent:
            self.look()
        for _ in range(3):
            self.now += CHECK_INTERVAL + 1
            self.run_out()
        self.look()
        self.is_silent = False

    def look(self) -> None:
        for world in self.worlds:
            for client in world.clients:
                client.opened()
            self.look_at(world)
        self.look_at_stream()

    def run_out(self) -> None:
        for _ in range(100):
            if self.work_once():
                break
        else:
            raise AssertionError("it never ends")
        self.now += 1.5
        self.work_once()

    def look_at(self, world: World) -> None:
        account = self.bus.true_account()
        for client in world.clients:
            browser = client.browser
            assert browser.greeted == 1
            if browser.told:
                assert browser.texts == account[browser.start :], (browser.start, account)
                assert self.bus.streams[KEPT].top == browser.offset
            if not self.is_lossy:
                assert browser.resets == 0
                assert not (client.has_to_recover and browser.is_refused)
            _tried["resets"] += browser.resets
        for _, ticket in world.tickets:
            assert ticket.outcome is not None
        for numbers in world.plain.values():
            assert all(a < b for a, b in pairwise(numbers)), numbers

    def look_at_stream(self) -> None:
        account = self.bus.true_account()
        assert len(account) == len(set(account)), "twice in the stream"
        for world in self.worlds:
            published = [text for text, ticket in world.tickets if ticket]
            if not self.is_lossy:
                assert set(published) <= set(account)
            there = {text: place for place, text in enumerate(account)}
            places = [there[text] for text, _ in world.tickets if text in there]
            assert places == sorted(places), "in another order than they were published"
            if not self.is_rough:
                assert len(published) == len(world.tickets)

    def teardown(self) -> None:
        if hasattr(self, "worlds"):
            self.settle()
            _tried["lossless"] += not self.is_lossy
            _tried["without faults"] += not self.is_rough
            self.limits.undo()
            for world in self.worlds:
                for client in tuple(world.clients):
                    client.close()
                world.node.close()


class TestTraffic(Traffic.TestCase):  # type: ignore[name-defined,misc]
    def runTest(self) -> None:
        super().runTest()
        figures = ", ".join(f"{count:,} {what}" for what, count in _tried.items())
        record("The backplane's property test", bound="no hole untold", measured=figures)


TestTraffic.settings = settings(
    max_examples=longer(150, 3000),
    stateful_step_count=longer(50, 80),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
