"""What waits for the backplane: bounded, in order, tried again or dropped and counted."""

from __future__ import annotations

import pytest

from wsmiddleware.backplane.engine import History, Outcome, Publication, Status, Subject
from wsmiddleware.node.outgoing import KEPT, PLAIN, Limits, Outgoing, Ticket

CHAT = Subject("chat")
PUBLISHED, AGAIN, UNKNOWN, FAILED = map(Outcome, Status)


def ticket(name: str, *, is_kept: bool = True, now: float = 0.0, size: int = 0) -> Ticket:
    data = name.encode() + bytes(size)
    return Ticket(Publication(CHAT, data, History(5) if is_kept else None), now)


def names(tickets: list[Ticket]) -> str:
    return b"".join(one.publication.data for one in tickets).decode()


def filled(text: str, *, is_kept: bool = True) -> Outgoing:
    outgoing = Outgoing()
    for name in text:
        outgoing.add(ticket(name, is_kept=is_kept))
    return outgoing


def test_batch_is_in_order_and_settles() -> None:
    outgoing = filled("abc")
    batch = outgoing.batch(0)
    assert names(batch) == "abc"
    called: list[bool] = []
    batch[0].on_settled = lambda: called.append(bool(batch[0]))
    assert outgoing.settle([PUBLISHED] * 3)
    assert called == [True]
    assert outgoing.batch(0) == []
    assert outgoing.dropped == {}


@pytest.mark.parametrize("outcome", [AGAIN, UNKNOWN])
def test_what_has_history_is_tried_again_in_order(outcome: Outcome) -> None:
    outgoing = filled("abc")
    outgoing.batch(0)
    outgoing.add(ticket("d"))
    assert not outgoing.settle([PUBLISHED, outcome, outcome])
    assert names(outgoing.batch(0)) == "bcd"


def test_what_has_none_and_was_perhaps_sent_is_not_sent_twice() -> None:
    outgoing = filled("abc", is_kept=False)
    batch = outgoing.batch(0)
    assert not outgoing.settle([PUBLISHED, UNKNOWN, AGAIN])
    assert [one.outcome for one in batch] == [PUBLISHED, UNKNOWN, None]
    assert names(outgoing.batch(0)) == "c"
    assert outgoing.dropped == {"unknown": 1}


def test_what_failed_is_counted() -> None:
    outgoing = filled("a")
    [one] = outgoing.batch(0)
    outgoing.settle([FAILED])
    assert not one
    assert outgoing.dropped == {"failed": 1}


@pytest.mark.parametrize(("is_kept", "limits"), [(True, KEPT), (False, PLAIN)])
def test_what_waits_too_long_is_dropped(is_kept: bool, limits: Limits) -> None:
    outgoing = Outgoing()
    early = ticket("a", is_kept=is_kept)
    outgoing.add(early)
    outgoing.add(ticket("b", is_kept=is_kept, now=1))
    assert outgoing.expire(limits.seconds) == 1.0
    assert early.outcome is not None
    assert names(outgoing.batch(limits.seconds)) == "b"
    assert outgoing.dropped == {"late": 1}
    outgoing.settle([AGAIN])
    assert outgoing.batch(limits.seconds + 1) == []
    assert outgoing.expire(limits.seconds + 1) is None


@pytest.mark.parametrize(("is_kept", "limits"), [(True, KEPT), (False, PLAIN)])
def test_number_that_waits_is_bounded(is_kept: bool, limits: Limits) -> None:
    outgoing = Outgoing()
    for _ in range(limits.count):
        outgoing.add(ticket("a", is_kept=is_kept))
    outgoing.batch(0)  # what is under way counts
    last = ticket("b", is_kept=is_kept)
    outgoing.add(last)
    assert last.outcome is not None
    assert outgoing.dropped == {"full": 1}


@pytest.mark.parametrize(("is_kept", "limits"), [(True, KEPT), (False, PLAIN)])
def test_bytes_that_wait_are_bounded_and_free_again(is_kept: bool, limits: Limits) -> None:
    outgoing = Outgoing()
    outgoing.add(ticket("a", is_kept=is_kept, size=limits.size - 10))
    outgoing.add(ticket("b", is_kept=is_kept, size=10))
    assert outgoing.dropped == {"full": 1}
    outgoing.batch(0)
    outgoing.settle([PUBLISHED])
    outgoing.add(ticket("c", is_kept=is_kept, size=limits.size - 10))
    assert outgoing.dropped == {"full": 1}


def test_batch_is_bounded_and_both_kinds_have_room_in_it() -> None:
    outgoing = Outgoing()
    for name, is_kept in (("k", True), ("p", False)):
        for _ in range(400):
            outgoing.add(ticket(name, is_kept=is_kept, size=3000))
    batch = outgoing.batch(0)
    kinds = {one.publication.history is None for one in batch}
    assert kinds == {True, False}
    assert sum(len(one.publication.data) for one in batch) < 2 * 1024 * 1024


def test_age_of_the_oldest_that_is_not_confirmed() -> None:
    outgoing = Outgoing()
    outgoing.add(ticket("p", is_kept=False))
    assert outgoing.oldest_kept() is None
    outgoing.add(ticket("a", now=3))
    assert outgoing.oldest_kept() == 3
    outgoing.batch(3)
    outgoing.add(ticket("b", now=4))
    assert outgoing.oldest_kept() == 3
    outgoing.settle([PUBLISHED, PUBLISHED])
    assert outgoing.oldest_kept() == 4


def test_close_drops_everything() -> None:
    outgoing = filled("ab")
    outgoing.close()
    assert outgoing.dropped == {"closed": 2}
