"""One subject, event by event: what is read, what goes down, who is told."""

from __future__ import annotations

import pytest

from wsmiddleware.backplane.engine import (
    Entry,
    Fork,
    Gap,
    History,
    Position,
    Reading,
    ReadRequest,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, Kind, encode
from wsmiddleware.node.subject import (
    CHECK_INTERVAL,
    EARLY_COUNT,
    TAIL_COUNT,
    TAIL_SIZE,
    Entered,
    Event,
    PlainFeed,
    Reset,
    State,
    StreamFeed,
)

CHAT = Subject("chat")
A, B, C = "a" * 16, "b" * 16, "c" * 16


def message(offset: int, epoch: str = A, payload: bytes = b"") -> Envelope:
    text = payload or b"%d" % offset
    return Envelope(CHAT, Kind.TEXT, text, b"somebody", position=Position(epoch, offset))


def entries(*offsets: int) -> tuple[Entry, ...]:
    return tuple(Entry(offset, encode(message(offset))) for offset in offsets)


class Follows:
    """A feed, and what went down from it."""

    def __init__(self, count: int = 1000) -> None:
        self.feed = StreamFeed(CHAT, History(count))
        self.now = 0.0

    def arrives(self, *offsets: int, epoch: str = A) -> None:
        for offset in offsets:
            self.feed.arrived(message(offset, epoch), self.now)

    def asks(self) -> ReadRequest:
        assert self.feed.is_wanted(self.now)
        return self.feed.request(self.now)

    def reads(
        self, epoch: str, top: int, *offsets: int, forks: tuple[Fork, ...] = ()
    ) -> int | None:
        """The offset after which it asked for entries."""
        request = self.asks()
        self.feed.reading(request, Reading(epoch, top, forks, entries(*offsets)))
        return request.since

    def goes_down(self) -> list[object]:
        events = list(self.feed.events)
        self.feed.events.clear()
        return [
            int(event.payload) if isinstance(event, Envelope) else event  # the offset
            for event in events
        ]


def live(top: int = 5, count: int = 1000) -> Follows:
    follows = Follows(count)
    follows.feed.subscribed()
    follows.reads(A, top)
    assert follows.feed.state is State.LIVE
    assert follows.goes_down() == []
    return follows


def test_nothing_is_read_before_the_subscription_is_confirmed() -> None:
    follows = Follows()
    assert not follows.feed.is_wanted(0)
    follows.feed.subscribed()
    assert follows.asks().since is None


def test_next_one_goes_down_an_old_one_does_not() -> None:
    follows = live(5)
    follows.arrives(6, 6, 5, 7)
    assert follows.goes_down() == [6, 7]
    assert follows.feed.position == (A, 7)
    assert not follows.feed.is_wanted(0)


def test_what_arrives_while_it_is_read_follows() -> None:
    follows = Follows()
    follows.feed.subscribed()
    request = follows.asks()
    follows.arrives(5, 6, 7)
    follows.feed.reading(request, Reading(A, 5))
    assert follows.goes_down() == [6, 7]


def test_hole_is_read() -> None:
    follows = live(5)
    follows.arrives(8, 9)
    assert follows.goes_down() == []
    request = follows.asks()
    assert request.since == 5
    assert not follows.feed.is_wanted(0)
    follows.feed.reading(request, Reading(A, 8, (), entries(6, 7, 8)))
    assert follows.goes_down() == [6, 7, 8, 9]
    assert follows.feed.state is State.LIVE


def test_hole_behind_the_reading_is_read_again() -> None:
    follows = live(5)
    follows.arrives(7)
    request = follows.asks()
    follows.arrives(9)
    follows.feed.reading(request, Reading(A, 7, (), entries(6, 7)))
    assert follows.goes_down() == [6, 7]
    follows.reads(A, 9, 8, 9)
    assert follows.goes_down() == [8, 9]


def test_hole_that_nobody_can_fill_is_told_and_the_rest_goes_down() -> None:
    follows = live(5)
    follows.arrives(9)
    follows.reads(A, 9, 8, 9)
    assert follows.goes_down() == [Reset(Position(A, 7), Gap(6, 7)), 8, 9]


def test_early_one_that_the_stream_has_lost_goes_down() -> None:
    follows = live(5)
    follows.arrives(7)
    follows.reads(A, 8, 8)
    assert follows.goes_down() == [Reset(Position(A, 6), Gap(6, 6)), 7, 8]


def test_expired_stream_is_told() -> None:
    follows = live(5)
    follows.arrives(9)
    follows.reads(A, 10)
    assert follows.goes_down() == [
        Reset(Position(A, 8), Gap(6, 8)),
        9,
        Reset(Position(A, 10), Gap(10, 10)),
    ]


def test_foreign_entry_is_a_hole() -> None:
    follows = live(5)
    follows.arrives(8)
    read = (*entries(6), Entry(7, b"hello"), *entries(8))
    follows.feed.reading(follows.asks(), Reading(A, 8, (), read))
    assert follows.goes_down() == [6, Reset(Position(A, 7), Gap(7, 7)), 8]


def test_part_of_foreign_entries_alone_is_passed() -> None:
    follows = live(5)
    follows.arrives(9)
    read = (Entry(6, b"hello"), Entry(7, b"hello"))
    follows.feed.reading(follows.asks(), Reading(A, 7, (), read))
    assert follows.goes_down() == [Reset(Position(A, 7), Gap(6, 7))]
    follows.reads(A, 9, 8, 9)
    assert follows.goes_down() == [8, 9]


def test_long_stream_is_read_in_parts() -> None:
    follows = live(0, count=5000)
    follows.arrives(1500)
    request = follows.asks()
    read = entries(*range(1, request.count + 1))
    follows.feed.reading(request, Reading(A, 1500, (), read))
    assert len(follows.goes_down()) == request.count
    follows.reads(A, 1500, *range(request.count + 1, 1501))
    assert follows.goes_down()[-1] == 1500


def test_what_cannot_be_kept_is_read() -> None:
    follows = live(0)
    first = 2
    follows.arrives(*range(first, first + EARLY_COUNT + 10))
    request = follows.asks()
    follows.arrives(first + EARLY_COUNT + 10)
    top = first + EARLY_COUNT + 10
    follows.feed.reading(request, Reading(A, top - 1, (), entries(*range(1, top))))
    assert follows.goes_down() == [*range(1, top)]
    follows.reads(A, top, top)
    assert follows.goes_down() == [top]


def test_quiet_subject_is_looked_at() -> None:
    follows = live(5)
    follows.now = CHECK_INTERVAL - 1
    follows.arrives(6)
    follows.now = CHECK_INTERVAL + 1
    assert not follows.feed.is_wanted(follows.now)
    follows.now = 2 * CHECK_INTERVAL
    follows.reads(A, 7, 7)  # it was lost on the way
    assert follows.goes_down() == [6, 7]
    assert follows.feed.state is State.LIVE


def test_what_arrives_during_a_look_is_not_held_up() -> None:
    follows = live(5)
    follows.now = CHECK_INTERVAL
    request = follows.asks()
    follows.arrives(6)
    assert follows.goes_down() == [6]
    follows.feed.reading(request, Reading(A, 5))
    assert follows.goes_down() == []
    assert follows.feed.position == (A, 6)


def test_reading_from_before_the_link_was_lost_says_nothing() -> None:
    follows = live(5)
    follows.arrives(7)
    request = follows.asks()
    follows.feed.lost()
    follows.feed.subscribed()
    follows.feed.reading(request, Reading(A, 7, (), entries(6, 7)))
    follows.feed.unread(request)
    assert follows.goes_down() == []
    assert follows.asks().since == 5


def test_what_could_not_be_read_is_wanted_again() -> None:
    follows = live(5)
    follows.arrives(7)
    follows.feed.unread(follows.asks())
    follows.reads(A, 7, 6, 7)
    assert follows.goes_down() == [6, 7]


# -- another epoch ---------------------------------------------------------------------------------


def test_fork_that_shares_all_is_survived() -> None:
    follows = live(5)
    follows.arrives(6, epoch=B)
    follows.reads(B, 6, 6, forks=(Fork(A, 5),))
    assert follows.goes_down() == [6]
    assert follows.feed.position == (B, 6)


def test_epoch_that_begins_during_a_reading_is_read_next() -> None:
    follows = live(5)
    follows.arrives(7)
    request = follows.asks()
    follows.arrives(8, epoch=B)
    follows.feed.reading(request, Reading(A, 7, (), entries(6, 7)))
    follows.reads(B, 8, 8, forks=(Fork(A, 7),))
    assert follows.goes_down() == [6, 7, 8]


def test_fork_that_lost_the_end_is_told() -> None:
    follows = live(5)
    follows.arrives(4, epoch=B)
    follows.reads(B, 4, forks=(Fork(A, 3),))
    assert follows.goes_down() == [Reset(Position(B, 3)), 4]


def test_fork_behind_what_was_asked_is_read_from_there() -> None:
    follows = live(5)
    follows.arrives(7, epoch=B)
    follows.reads(B, 7, 6, 7, forks=(Fork(A, 3),))
    assert follows.goes_down() == [Reset(Position(B, 3))]
    assert follows.asks().since == 3


def test_new_stream_is_told_and_delivered_from_its_beginning() -> None:
    follows = live(5)
    follows.arrives(2, epoch=B)
    follows.reads(B, 2)
    assert follows.goes_down() == [Reset(Position(B, 0))]
    follows.reads(B, 2, 1, 2)
    assert follows.goes_down() == [1, 2]


def test_who_had_nothing_loses_nothing() -> None:
    follows = live(0)
    follows.arrives(1, epoch=B)
    follows.reads(B, 1, 1)
    assert follows.goes_down() == [1]


def test_epoch_that_was_lost_itself_is_found_by_the_one_before() -> None:
    follows = live(5)
    follows.now = CHECK_INTERVAL
    follows.reads(B, 6, 6, forks=(Fork(A, 5),))
    follows.now *= 2
    follows.reads(C, 7, 7, forks=(Fork(A, 6),))  # A went on where B forked off
    assert follows.goes_down() == [6, Reset(Position(C, 5))]
    follows.reads(C, 7, 6, 7, forks=(Fork(A, 6),))
    assert follows.goes_down() == [6, 7]


def test_forgotten_epoch_is_told_and_nothing_is_doubled() -> None:
    follows = live(5)
    forks = tuple(Fork(f"{number:016x}", 5) for number in range(8))
    follows.arrives(7, epoch=B)
    follows.reads(B, 7, 6, 7, forks=forks)
    assert follows.goes_down() == [Reset(Position(B, 7))]


def test_stream_that_lost_its_end_in_secret_is_told() -> None:
    follows = live(5)
    follows.now = CHECK_INTERVAL
    follows.reads(A, 3)
    assert follows.goes_down() == [Reset(Position(A, 3))]


def test_echo_of_a_past_epoch_is_dropped() -> None:
    follows = live(5)
    follows.arrives(6, epoch=B)
    follows.reads(B, 6, 6, forks=(Fork(A, 5),))
    follows.arrives(6, 7, epoch=A)
    assert follows.goes_down() == [6]
    assert follows.feed.state is State.LIVE


# -- who enters ------------------------------------------------------------------------------------


def entered(follows: Follows, since: Position | None) -> Entered | None:
    follows.feed.enter("me", since)
    [*events] = follows.feed.events
    follows.feed.events.clear()
    found: list[Event] = [event for event in events if isinstance(event, Entered)]
    assert len(found) == len(events)
    return found[0] if found else None  # type: ignore[return-value]


def offsets(event: Entered | None) -> list[int]:
    assert event is not None
    assert event.is_recovered
    return [int(message.payload) for message in event.messages]


def followed(*given: int) -> Follows:
    follows = live(given[0] - 1)
    follows.arrives(*given)
    follows.goes_down()
    return follows


def test_client_that_has_everything_is_recovered_without_a_reading() -> None:
    event = entered(live(5), Position(A, 5))
    assert event == Entered("me", Position(A, 5), True)


def test_missed_messages_come_from_memory() -> None:
    assert offsets(entered(followed(6, 7, 8), Position(A, 6))) == [7, 8]


def test_who_comes_new_stands_at_the_top() -> None:
    assert entered(followed(6, 7, 8), None) == Entered("me", Position(A, 8), False)


@pytest.mark.parametrize("since", [Position(A, 9), Position(B, 5)], ids=["future", "foreign"])
def test_who_stood_nowhere_is_told_after_a_reading(since: Position) -> None:
    follows = followed(6, 7, 8)
    assert entered(follows, since) is None
    follows.reads(A, 8)
    assert follows.goes_down() == [Entered("me", Position(A, 8), False)]


def test_client_of_a_node_that_is_ahead_is_recovered() -> None:
    follows = followed(6, 7, 8)
    follows.feed.enter("me", Position(A, 9))
    follows.reads(A, 10, 9, 10)
    assert follows.goes_down() == [9, 10, Entered("me", Position(A, 9), True, (message(10),))]


def test_client_of_a_node_that_knows_a_newer_epoch_is_recovered() -> None:
    follows = followed(6, 7, 8)
    follows.feed.enter("me", Position(B, 9))
    follows.reads(B, 9, 9, forks=(Fork(A, 8),))
    assert follows.goes_down() == [9, Entered("me", Position(B, 9), True)]


def test_who_comes_during_a_reading_is_not_refused_by_it() -> None:
    follows = followed(6, 7, 8)
    follows.now = 2 * CHECK_INTERVAL
    request = follows.asks()
    follows.feed.enter("me", Position(A, 9))
    follows.feed.reading(request, Reading(A, 8))
    assert follows.goes_down() == []
    follows.reads(A, 9, 9)
    assert follows.goes_down() == [9, Entered("me", Position(A, 9), True)]


def test_thousands_who_missed_more_cost_one_reading() -> None:
    follows = followed(6, 7)
    for number in range(3000):
        follows.feed.enter(number, Position(A, 1 + number % 4))
    assert list(follows.feed.events) == []
    assert follows.reads(A, 7, *range(2, 8)) == 1
    events = list(follows.feed.events)
    assert len(events) == 3000
    for number, event in enumerate(events):
        assert isinstance(event, Entered)
        assert event.token == number
        assert offsets(event) == [*range(2 + number % 4, 8)]


def test_who_missed_what_is_gone_is_not_recovered() -> None:
    follows = followed(6, 7)
    assert entered(follows, Position(A, 2)) is None
    follows.reads(A, 7, 4, 5, 6, 7)
    assert list(follows.feed.events) == [Entered("me", Position(A, 7), False)]


def test_what_arrived_during_the_reading_is_missed_too() -> None:
    follows = followed(6, 7)
    assert entered(follows, Position(A, 4)) is None
    request = follows.asks()
    follows.arrives(8)
    follows.goes_down()
    follows.feed.reading(request, Reading(A, 7, (), entries(5, 6, 7)))
    assert offsets(follows.feed.events[0]) == [5, 6, 7, 8]  # type: ignore[arg-type]


def test_first_client_of_a_node_is_recovered_by_the_first_reading() -> None:
    follows = Follows()
    assert entered(follows, Position(A, 3)) is None
    follows.feed.subscribed()
    assert follows.reads(A, 5, 4, 5) == 3
    assert offsets(follows.feed.events[0]) == [4, 5]  # type: ignore[arg-type]
    follows.goes_down()
    assert offsets(entered(follows, Position(A, 4))) == [5]


def test_position_of_a_past_epoch_is_good_up_to_where_it_is_shared() -> None:
    follows = Follows()
    follows.feed.subscribed()
    follows.reads(C, 9, forks=(Fork(A, 7), Fork(B, 5)))
    follows.arrives(10, epoch=C)
    follows.goes_down()
    follows.feed.enter("lost", Position(A, 6))
    follows.feed.enter("shared", Position(A, 5))
    messages = tuple(message(offset, C) for offset in range(6, 11))
    assert follows.reads(C, 10, *range(6, 11), forks=(Fork(A, 7), Fork(B, 5))) == 5
    assert follows.goes_down() == [
        Entered("lost", Position(C, 10), False),
        Entered("shared", Position(C, 5), True, messages),
    ]


def test_client_is_let_in_while_the_link_is_away() -> None:
    follows = followed(6, 7)
    follows.feed.lost()
    assert offsets(entered(follows, Position(A, 6))) == [7]
    assert entered(follows, None) == Entered("me", Position(A, 7), False)
    assert entered(follows, Position(A, 9)) is None  # another node may know more
    follows.feed.withdraw("me")
    follows.feed.subscribed()
    follows.reads(A, 9, 8, 9)
    assert follows.goes_down() == [8, 9]


def test_memory_of_what_went_down_is_bounded() -> None:
    follows = followed(*range(1, 2 * TAIL_COUNT))
    top = 2 * TAIL_COUNT - 1
    assert len(offsets(entered(follows, Position(A, top - TAIL_COUNT)))) == TAIL_COUNT
    assert entered(follows, Position(A, top - TAIL_COUNT - 1)) is None


def test_memory_of_big_messages_is_bounded() -> None:
    follows = live(0)
    for offset in (1, 2, 3):
        follows.feed.arrived(message(offset, payload=b"x" * (TAIL_SIZE // 2)), 0)
    follows.feed.events.clear()
    follows.feed.enter("two", Position(A, 1))
    follows.feed.enter("three", Position(A, 0))
    assert [event.token for event in follows.feed.events] == ["two"]  # type: ignore[union-attr]


# -- in no stream ----------------------------------------------------------------------------------


def plain(number: int, node: bytes = b"somebody") -> Envelope:
    return Envelope(CHAT, Kind.TEXT, b"%d" % number, node, number=number)


@pytest.mark.parametrize("feed", [PlainFeed(CHAT), StreamFeed(CHAT, History(5))])
def test_what_is_late_or_twice_is_dropped(feed: PlainFeed) -> None:
    for number in (1, 3, 3, 2, 4):
        feed.arrived(plain(number), 0)
    feed.arrived(plain(1, b"another1"), 0)
    assert [event.payload for event in feed.events] == [b"1", b"3", b"4", b"1"]  # type: ignore[union-attr]


def test_plain_subject_lets_in_at_once() -> None:
    feed = PlainFeed(CHAT)
    feed.enter("me", Position(A, 1))
    feed.withdraw("me")
    assert list(feed.events) == [Entered("me")]
    feed.subscribed()
    assert feed.state is State.LIVE
    feed.lost()
    assert feed.state is State.JOINING


def test_publishers_that_are_remembered_are_bounded() -> None:
    feed = PlainFeed(CHAT)
    for number in range(3000):
        feed.arrived(plain(1, b"%8d" % number), 0)
    assert len(feed._numbers) == 1024
