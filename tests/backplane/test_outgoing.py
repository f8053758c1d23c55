"""What waits to be published: no engine, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.engine import History, Outcome, Publication, Status, Subject
from wsmiddleware.backplane.outgoing import Limits, Outgoing, Waiting

LIMITS = Limits(3, 100, 10.0)
SUBJECT = Subject("chat")
KEPT = History(5)


def outgoing() -> Outgoing:
    return Outgoing(LIMITS, LIMITS)


def publication(size: int = 1, *, kept: bool = True) -> Publication:
    return Publication(SUBJECT, b"x" * size, KEPT if kept else None)


def test_all_that_waits_is_one_batch_in_order() -> None:
    queue = outgoing()
    added = [queue.add(publication(), 0.0) for _ in range(3)]
    assert queue.batch() == added
    assert len(queue) == 3


def test_what_is_published_is_done_and_the_rest_waits_in_order() -> None:
    queue = outgoing()
    one, two, three = (queue.add(publication(), 0.0) for _ in range(3))
    outcomes = [Outcome(Status.PUBLISHED), Outcome(Status.AGAIN), Outcome(Status.UNKNOWN)]
    assert queue.tried([one, two, three], outcomes, 1.0) == [one]
    assert queue.batch() == [two, three]


def test_without_history_the_unknown_is_not_tried_again() -> None:
    queue = outgoing()
    waiting = queue.add(publication(kept=False), 0.0)
    assert queue.tried([waiting], [Outcome(Status.UNKNOWN)], 1.0) == [waiting]
    assert not queue.batch()


def test_what_failed_is_not_tried_again() -> None:
    queue = outgoing()
    waiting = queue.add(publication(), 0.0)
    assert queue.tried([waiting], [Outcome(Status.FAILED)], 1.0) == [waiting]


def test_it_is_tried_until_its_time_is_over() -> None:
    queue = outgoing()
    waiting = queue.add(publication(), 5.0)
    assert queue.tried([waiting], [Outcome(Status.AGAIN)], 14.9) == []
    assert queue.tried([waiting], [Outcome(Status.AGAIN)], 15.0) == [waiting]


def test_past_a_limit_it_is_dropped_at_once_and_says_so() -> None:
    queue = outgoing()
    for _ in range(3):
        assert queue.add(publication(), 0.0).outcome is None
    dropped = queue.add(publication(), 0.0)
    assert dropped.outcome is not None and dropped.outcome.status is Status.FAILED
    assert queue.add(publication(kept=False), 0.0).outcome is None  # limits of its own
    assert len(queue) == 4


def test_bytes_are_limited_but_one_message_always_fits() -> None:
    queue = outgoing()
    assert queue.add(publication(500), 0.0).outcome is None
    assert queue.add(publication(1), 0.0).outcome is not None
    [waiting] = queue.batch()
    queue.tried([waiting], [Outcome(Status.PUBLISHED)], 0.0)
    assert queue.add(publication(100), 0.0).outcome is None
    assert queue.add(publication(1), 0.0).outcome is not None


step = st.tuples(st.booleans(), st.sampled_from([1, 60]), st.lists(st.sampled_from(Status)))


@given(st.lists(step))
def test_each_is_done_with_once_and_never_out_of_order(
    steps: list[tuple[bool, int, list[Status]]],
) -> None:
    queue, added, done, now = outgoing(), list[Waiting](), list[Waiting](), 0.0
    for kept, size, statuses in steps:
        now += 1.0
        waiting = queue.add(publication(size, kept=kept), now)
        (added if waiting.outcome is None else done).append(waiting)
        batch = queue.batch()[: len(statuses)]
        outcomes = [Outcome(status) for status in statuses[: len(batch)]]
        done += queue.tried(batch, outcomes, now)
        left = queue.batch()
        assert [one for one in added if one in left and one.publication.history] == [
            one for one in left if one.publication.history
        ]
        assert not {*map(id, left)} & {*map(id, done)}
        assert len({*map(id, done)}) == len(done)
    assert {*map(id, added)} <= {*map(id, queue.batch()), *map(id, done)}
