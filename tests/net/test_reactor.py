"""What other threads ask of a reactor leaves the loop's count of its reasons to live as it is."""

from __future__ import annotations

import subprocess
import sys

import gevent

from wsmiddleware.net.reactor import Reactor

# In a process of its own, where nothing else is counted. Without the GIL the loop takes off its
# count the one-shot timers that have fired; with run_callback_threadsafe() in `defer` the count
# was wrong by 2 to 20 after some seconds of this.
_SCRIPT = """
import time
import _thread
import gevent
from wsmiddleware.net.reactor import Reactor

reactor = Reactor()
before, given, taken, ended = reactor.loop.activecnt, [0, 0], [0, 0], []
deadline = time.monotonic() + 4

def take(number, order):
    assert order == taken[number], (number, order, taken)
    taken[number] += 1

def give(number):
    while time.monotonic() < deadline:
        if given[number] - taken[number] < 100_000:
            reactor.defer(take, number, given[number])
            given[number] += 1
    ended.append(number)

def turn(timer):
    timer.close()
    if len(ended) < 2:
        timer = reactor.loop.timer(0)
        timer.start(turn, timer)

for number in range(2):
    _thread.start_new_thread(give, (number,))
for _ in range(20):
    timer = reactor.loop.timer(0)
    timer.start(turn, timer)
while len(ended) < 2 or taken != given:
    gevent.sleep(0.05)
gevent.sleep(0.2)
print(min(given) > 1000, reactor.loop.activecnt - before)
"""


def test_orders_of_other_threads_leave_the_loop_its_reasons_to_live() -> None:
    found = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("True 0\n", "")


def test_reactor_goes_with_its_last_user() -> None:
    before = gevent.get_hub().loop.activecnt
    for _ in range(3):
        Reactor()
    assert gevent.get_hub().loop.activecnt == before
