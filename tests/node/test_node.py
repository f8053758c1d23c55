"""The node: up, down, and what it does when the links go. On the engine in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wsmiddleware.backplane.engine import History, Link, Position, Status, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind, encode
from wsmiddleware.backplane.faults import Faults
from wsmiddleware.backplane.memory import MemoryBus
from wsmiddleware.node.following import ENTER_TIMEOUT
from wsmiddleware.node.inbox import MAX_SIZE
from wsmiddleware.node.node import WAIT, Node, Task
from wsmiddleware.node.outgoing import Ticket
from wsmiddleware.node.subject import CHECK_INTERVAL, Entered, Event, Reset, State
from wsmiddleware.node.subscriptions import LINGER

CHAT = Subject("chat")
ROOM = Subject("chat", "room")
FIVE = History(5)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """A node, what came down in it, and what it wants to do."""

    def __init__(self, bus: MemoryBus) -> None:
        self.engine = bus.engine()
        self.came: list[tuple[Subject, Event]] = []
        self.wants: list[Task] = []
        self.node = Node(self.engine, self.down, clock=bus.clock, on_work=self.wants.append)
        self.node.open()

    def down(self, subject: Subject, event: Event) -> None:
        self.came.append((subject, event))

    def works(self) -> list[float | None]:
        """Everything that can be done now; when each task wants to be called again."""
        for _ in range(1000):
            self.wants.clear()
            delays = [self.node.send(), self.node.tend(), self.node.deliver()]
            if 0.0 not in delays and not self.wants:
                return delays
        raise AssertionError("it never ends")

    def publishes(self, text: str, subject: Subject = CHAT, **more: object) -> Ticket:
        return self.node.publish(subject, Kind.TEXT, text.encode(), **more)  # type: ignore[arg-type]

    def texts(self) -> str:
        return " ".join(event.payload.decode() for _, event in self.came if type(event) is Envelope)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bus(clock: Clock) -> MemoryBus:
    return MemoryBus(clock)


@pytest.fixture
def faults(bus: MemoryBus) -> Faults:
    return Faults(bus)


@pytest.fixture
def one(bus: MemoryBus) -> Iterator[Process]:
    process = Process(bus)
    process.node.join(CHAT, FIVE)
    process.node.join(ROOM)
    process.works()
    yield process
    process.node.close()


@pytest.fixture
def two(bus: MemoryBus) -> Iterator[Process]:
    process = Process(bus)
    process.node.join(CHAT, FIVE)
    process.node.join(ROOM)
    process.works()
    yield process
    process.node.close()


def test_without_history_it_is_delivered_here_at_once(one: Process, two: Process) -> None:
    ticket = one.publishes("hi", ROOM)
    assert (one.texts(), two.texts(), ticket.outcome) == ("hi", "", None)
    assert one.wants == [Task.SEND]
    one.works(), two.works()
    assert (one.texts(), two.texts(), bool(ticket)) == ("hi", "hi", True)


def test_alone_nothing_is_sent(one: Process) -> None:
    assert one.publishes("hi", ROOM)
    assert one.texts() == "hi"
    assert one.wants == []


def test_with_history_all_have_one_order(one: Process, two: Process) -> None:
    for text in "abc":
        one.publishes(text, history=FIVE)
        two.publishes(text.upper(), history=FIVE)
    assert one.texts() == ""
    two.works(), one.works(), two.works()
    assert one.texts() == two.texts() == "A B C a b c"


def test_what_is_for_one_user_is_not_kept(one: Process, two: Process) -> None:
    ticket = one.publishes("hi", history=FIVE, user="u1")
    one.works(), two.works()
    assert ticket.outcome is not None
    assert ticket.outcome.position is None
    [(_, event)] = two.came
    assert isinstance(event, Envelope)
    assert (event.user, event.position) == ("u1", None)


def test_ticket_tells_the_position(one: Process) -> None:
    ticket = one.publishes("hi", history=FIVE)
    one.works()
    assert ticket.outcome is not None
    [(_, event)] = one.came
    assert isinstance(event, Envelope)
    assert ticket.outcome.position == event.position


def test_waiting_is_worth_it_while_answers_come(one: Process, faults: Faults, clock: Clock) -> None:
    assert one.node.is_worth_waiting
    faults.hang()
    one.publishes("a", history=FIVE)
    one.works()
    assert one.node.is_worth_waiting
    clock.now += WAIT + 0.1
    assert not one.node.is_worth_waiting
    faults.wake()
    one.works()
    assert one.node.is_worth_waiting
    faults.cut(link=Link.WRITING)
    assert not one.node.is_worth_waiting
    assert not one.node.is_connected


def test_unconfirmed_one_is_tried_again_after_a_pause(
    one: Process, faults: Faults, clock: Clock
) -> None:
    faults.refuse(2)
    ticket = one.publishes("a", history=FIVE)
    assert one.works()[0] is not None
    for _ in range(2):
        assert not ticket
        clock.now += 0.5
        one.works()
    assert ticket
    assert one.texts() == "a"


def test_engine_that_fails_loses_nothing(one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = one.publishes("a", history=FIVE)
    with monkeypatch.context() as patch:
        patch.setattr(one.engine, "publish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.node.send()
    one.works()
    assert ticket


def test_what_waits_for_a_link_goes_when_it_is_back(one: Process, faults: Faults) -> None:
    faults.cut(link=Link.WRITING)
    ticket = one.publishes("a", history=FIVE)
    assert one.works()[0] == 1.0
    faults.heal()
    assert Task.SEND in one.wants
    one.works()
    assert ticket


def test_publication_that_is_never_confirmed_is_dropped(
    one: Process, faults: Faults, clock: Clock
) -> None:
    faults.cut()
    ticket = one.publishes("a", history=FIVE)
    clock.now += 11
    one.works()
    assert ticket.outcome is not None
    assert ticket.outcome.status is Status.FAILED
    assert one.node.dropped == {"late": 1}


def test_gap_is_healed(one: Process, two: Process, faults: Faults) -> None:
    faults.lose(1, two.engine)
    one.publishes("a", history=FIVE)
    one.publishes("b", history=FIVE)
    one.works(), two.works()
    assert two.texts() == "a b"


def test_what_was_published_while_the_link_was_away_follows(
    one: Process, two: Process, faults: Faults
) -> None:
    faults.cut(two.engine)
    one.publishes("a", history=FIVE)
    one.publishes("plain", ROOM)
    one.works(), two.works()
    assert two.texts() == ""
    faults.heal()
    two.works()
    assert two.texts() == "a"
    assert two.node.counts["links lost"] == 2


def test_lost_last_message_is_found_by_the_look_at_quiet_subjects(
    one: Process, two: Process, faults: Faults, clock: Clock
) -> None:
    faults.lose(1, two.engine)
    one.publishes("a", history=FIVE)
    one.works(), two.works()
    assert two.texts() == ""
    clock.now += CHECK_INTERVAL + 1
    two.works()
    assert two.texts() == "a"


def test_failover_is_told(one: Process, faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    one.publishes("a", history=FIVE)
    one.works()
    faults.failover(lost=1)
    one.works()
    [(_, event)] = one.came[1:]
    assert isinstance(event, Reset)
    assert one.node.counts["resets"] == 1
    assert "channel 'chat' went on at 0: a fork" in caplog.text


def test_hole_is_counted_and_logged(
    one: Process, two: Process, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.lose(7, two.engine)
    for text in "abcdefgh":
        one.publishes(text, history=FIVE)
    one.works(), two.works()
    assert two.texts() == "d e f g h"
    assert two.node.counts["missed"] == 3
    assert "1 to 3 are kept no more" in caplog.text


def test_client_enters(one: Process) -> None:
    for text in "abc":
        one.publishes(text, history=FIVE)
    one.works()
    [*positions] = [event.position for _, event in one.came if isinstance(event, Envelope)]
    one.came.clear()
    one.node.enter(CHAT, "me", positions[0])
    one.works()
    [(subject, event)] = one.came
    assert subject == CHAT
    assert isinstance(event, Entered)
    assert [message.payload for message in event.messages] == [b"b", b"c"]


def test_client_is_let_in_without_an_answer(one: Process, faults: Faults, clock: Clock) -> None:
    faults.cut()
    one.node.enter(CHAT, "me", Position("0" * 16, 7))
    one.node.enter(CHAT, "gone", Position("0" * 16, 7))
    one.node.withdraw("gone")
    one.node.withdraw("nobody")
    assert one.works()[1] == pytest.approx(ENTER_TIMEOUT)
    clock.now += ENTER_TIMEOUT
    one.works()
    assert one.came == [(CHAT, Entered("me"))]


def test_subject_is_followed_a_little_longer(bus: MemoryBus, one: Process, clock: Clock) -> None:
    one.node.join(CHAT, FIVE)
    one.node.leave(CHAT)
    one.node.leave(CHAT)
    assert one.works()[1] == pytest.approx(CHECK_INTERVAL / 6)  # it is still looked at
    clock.now += LINGER - 1
    one.works()
    assert CHAT in bus.subscribers
    one.node.join(CHAT, FIVE)
    clock.now += LINGER
    one.works()
    assert CHAT in bus.subscribers
    one.node.leave(CHAT)
    clock.now += LINGER
    one.works()
    assert CHAT not in bus.subscribers


def test_subject_that_was_left_while_the_link_was_away_is_not_subscribed_to(
    bus: MemoryBus, one: Process, faults: Faults, clock: Clock
) -> None:
    faults.cut()
    one.node.leave(CHAT)
    clock.now += LINGER
    one.works()
    faults.heal()
    one.works()
    assert list(bus.subscribers) == [ROOM]


def test_ten_thousand_subjects_come_and_go(bus: MemoryBus, clock: Clock, faults: Faults) -> None:
    process = Process(bus)
    subjects = [Subject("chat", str(number)) for number in range(10_000)]
    for subject in subjects:
        process.node.join(subject, FIVE)
    process.works()
    faults.cut()
    faults.heal()
    process.works()
    assert len(bus.subscribers) == 10_000
    for subject in subjects:
        process.node.leave(subject)
    clock.now += LINGER
    process.works()
    assert bus.subscribers == {}
    assert process.node._following._subscriptions.feeds == {}
    process.node.close()


def test_failed_engine_is_not_asked_all_the_time(one: Process, faults: Faults) -> None:
    faults.hang()
    one.node.join(Subject("other"), FIVE)
    first = one.node.tend()
    assert first == pytest.approx(0.1)
    asked: list[object] = []
    one.engine.subscribe = lambda *_: asked.append(1)  # type: ignore[method-assign, assignment]
    assert one.node.tend() == pytest.approx(0.1)
    assert asked == []


def test_hung_one_that_answers_again_is_in_step(
    one: Process, two: Process, faults: Faults, clock: Clock
) -> None:
    faults.lose(1, two.engine)
    one.publishes("a", history=FIVE)
    one.publishes("b", history=FIVE)
    one.works()
    faults.hang()
    two.works()
    faults.wake()
    clock.now += 1
    two.works()
    assert two.texts() == "a b"


PLAIN_ONE = encode(Envelope(CHAT, Kind.TEXT, b"x"))


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        encode(Envelope(ROOM, Kind.TEXT, b"x")),
        PLAIN_ONE[:34] + b"\xff\xff" + PLAIN_ONE[36:],
    ],
    ids=["text", "other subject", "impossible size"],
)
def test_foreign_message_is_ignored_counted_and_told_once(
    bus: MemoryBus, one: Process, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        bus.deliver(CHAT, data)
    one.works()
    assert one.came == []
    assert one.node.counts["foreign"] == 3
    assert caplog.text.count("none of our messages") == 1


def test_what_comes_too_fast_without_history_is_dropped_and_counted(
    one: Process, two: Process, caplog: pytest.LogCaptureFixture
) -> None:
    big = "x" * (MAX_SIZE // 3)
    for _ in range(5):
        one.publishes(big, ROOM)
        one.works()
    two.works()
    assert two.texts().count(" ") == 1
    assert two.node.counts["overflowed"] == 3
    assert caplog.text.count("channel 'chat', group 'room'") == 1


def test_what_comes_too_fast_with_history_is_read_later(one: Process, two: Process) -> None:
    big = "x" * (MAX_SIZE // 3)
    for _ in range(5):
        one.publishes(big, history=FIVE)
        one.works()
    two.works()
    assert two.texts().count(" ") == 4
    assert two.node.counts == {}


def test_other_messages_are_delivered_a_slice_at_a_time(one: Process, two: Process) -> None:
    for number in range(150):
        one.publishes(str(number), ROOM)
    one.works()
    assert two.node.deliver() == 0.0
    assert 1 < len(two.came) < 150
    two.works()
    assert two.texts().count(" ") == 149


def test_who_closes_drops_what_waits(bus: MemoryBus, faults: Faults) -> None:
    process = Process(bus)
    faults.cut()
    ticket = process.publishes("a", history=FIVE)
    process.node.close()
    assert ticket.outcome is not None
    assert not process.node.is_connected


def test_no_question_is_known_yet(one: Process) -> None:
    assert one.engine.ask(b"?").missing == {one.node.id}


def test_state_follows_the_link(one: Process, faults: Faults) -> None:
    feed = one.node._following.feed(CHAT)
    assert feed is not None
    assert feed.state is State.LIVE
    faults.cut(link=Link.READING)
    assert feed.state is State.JOINING
