"""When a link is opened, probed and given up: no socket, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.supervisor import (
    DEAF_AFTER,
    MAX_DELAY,
    MIN_DELAY,
    QUIET_AFTER,
    SLOW_DELAY,
    Todo,
    Watch,
)


def highest() -> float:
    return 1.0


def test_new_link_is_connected_at_once() -> None:
    watch = Watch()
    assert watch.todo(0.0) is Todo.CONNECT
    assert watch.due_in(0.0) == 0


def test_open_link_is_let_be_while_bytes_come() -> None:
    watch = Watch()
    watch.opened(0.0)
    for now in range(1, 100):
        assert watch.todo(now) is Todo.NOTHING
        watch.heard(now)


def test_silent_link_is_probed_then_cut_within_ten_seconds() -> None:
    watch = Watch()
    watch.opened(0.0)
    assert watch.todo(QUIET_AFTER - 0.1) is Todo.NOTHING
    assert watch.todo(QUIET_AFTER) is Todo.PROBE
    watch.probed(QUIET_AFTER)
    assert watch.todo(QUIET_AFTER + DEAF_AFTER - 0.1) is Todo.NOTHING
    assert watch.todo(QUIET_AFTER + DEAF_AFTER) is Todo.CUT
    assert QUIET_AFTER + DEAF_AFTER <= 10


def test_any_byte_after_a_probe_is_life() -> None:
    watch = Watch()
    watch.opened(0.0)
    watch.probed(QUIET_AFTER)
    watch.heard(QUIET_AFTER + 1)
    assert watch.todo(QUIET_AFTER + DEAF_AFTER) is Todo.NOTHING


def test_delays_double_to_the_longest() -> None:
    watch = Watch(dice=highest)
    delays = [watch.lost(0.0) for _ in range(9)]
    assert delays[:4] == [MIN_DELAY, 2 * MIN_DELAY, 4 * MIN_DELAY, 8 * MIN_DELAY]
    assert delays[-1] == MAX_DELAY


def test_steady_link_begins_again_with_the_shortest_delay() -> None:
    watch = Watch(dice=highest)
    for _ in range(9):
        watch.lost(0.0)
    watch.opened(10.0)
    assert watch.lost(10.0 + 2 * MAX_DELAY) == MIN_DELAY


def test_link_that_is_taken_and_thrown_out_is_tried_ever_slower() -> None:
    watch = Watch(dice=highest)
    delays = []
    for now in range(9):
        watch.opened(now)
        delays.append(watch.lost(now + 0.1))
    assert delays[-1] == MAX_DELAY


def test_what_an_operator_has_to_mend_is_tried_slowly() -> None:
    assert Watch(dice=highest).lost(0.0, is_loud=True) == SLOW_DELAY


events = st.lists(
    st.tuples(
        st.sampled_from(["opened", "heard", "probed", "lost", "loud"]),
        st.floats(min_value=0, max_value=20),
    ),
    max_size=30,
)


@given(events, st.floats(min_value=0, max_value=1))
def test_it_never_sleeps_through_what_is_due(events: list[tuple[str, float]], dice: float) -> None:
    watch, now = Watch(dice=lambda: dice), 0.0
    for event, seconds in events:
        now += seconds
        if event == "lost" or event == "loud":
            assert 0 < watch.lost(now, is_loud=event == "loud") <= SLOW_DELAY
        elif event == "opened" or watch.is_open:
            getattr(watch, event)(now)
        due_in = watch.due_in(now)
        assert 0 <= due_in <= SLOW_DELAY + 1e-6
        assert watch.todo(now + due_in + 1e-6) is not Todo.NOTHING
