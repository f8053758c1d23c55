"""A crowd of greenlets goes through a few at a time, in order, and the loop turns in between."""

from __future__ import annotations

import time
from itertools import pairwise

import gevent
import pytest

from support import wait_until
from wsmiddleware.net.turnstile import Turnstile


def crowd(turnstile: Turnstile, count: int, through: list[int]) -> list[gevent.Greenlet]:
    def go(number: int) -> None:
        turnstile.go_through()
        through.append(number)

    greenlets = [gevent.spawn(go, number) for number in range(count)]
    gevent.sleep(0)
    return greenlets


def turns(through: list[int], count: int) -> list[int]:
    """How many were through after each turn of the loop."""
    seen = [len(through)]
    while seen[-1] < count:
        loop = gevent.get_hub().loop
        timer = loop.timer(0)
        turned = gevent.event.Event()
        timer.start(turned.set)
        turned.wait()
        timer.close()
        seen.append(len(through))
        assert len(seen) < 100
    return seen


def test_few_go_through_at_once() -> None:
    through: list[int] = []
    gevent.joinall(crowd(Turnstile(9.0, 8), 8, through))
    assert through == list(range(8))


def test_crowd_goes_through_in_order_a_few_at_a_turn() -> None:
    through: list[int] = []
    greenlets = crowd(Turnstile(9.0, 4), 42, through)
    seen = turns(through, 42)
    gevent.joinall(greenlets)
    assert through == list(range(42))
    assert seen[0] <= 8
    assert max(b - a for a, b in pairwise(seen)) <= 8


def test_those_who_come_later_stand_behind() -> None:
    through: list[int] = []
    turnstile = Turnstile(9.0, 1)
    first = crowd(turnstile, 5, through)
    turnstile.go_through()
    assert through == list(range(5))
    gevent.joinall(first)


@pytest.mark.parametrize("number", [0, 3, 9])
def test_one_that_is_killed_holds_nobody_up(number: int) -> None:
    through: list[int] = []
    greenlets = crowd(Turnstile(9.0, 2), 10, through)
    greenlets[number].kill()
    gevent.joinall(greenlets, timeout=2)
    assert set(through) >= set(range(10)) - {number}


def test_free_turnstile_has_no_timer() -> None:
    turnstile = Turnstile(9.0, 2)
    turnstile.go_through()
    wait_until(lambda: turnstile._timer is None)


def test_time_lets_through_no_more_than_it_has_room_for() -> None:
    """One at a turn goes through in any case."""
    through: list[int] = []
    turnstile = Turnstile(0.005)

    def go(number: int) -> None:
        turnstile.go_through()
        through.append(number)
        end = time.monotonic() + (0.006 if number < 5 else 0.0)
        while time.monotonic() < end:
            pass

    greenlets = [gevent.spawn(go, number) for number in range(20)]
    gevent.sleep(0)
    seen = turns(through, 20)
    gevent.joinall(greenlets)
    assert through == list(range(20))
    # Of the first five each fills a turn.
    assert seen[0] <= 2
    assert len(seen) >= 4


def test_one_that_goes_on_without_a_wait_gives_the_loop_its_turn() -> None:
    turned = 0

    def tell() -> None:
        nonlocal turned
        turned += 1

    timer = gevent.get_hub().loop.timer(0.001, 0.001)
    timer.start(tell)
    turnstile = Turnstile(0.005)
    end = time.thread_time() + 1
    while turned < 3 and time.thread_time() < end:
        turnstile.go_through()
    timer.close()
    assert turned == 3
