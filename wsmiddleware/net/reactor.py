"""What the connections of one event loop share: the loop, coarse time, and the callback workers."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent import monkey
from gevent.hub import Hub, Waiter

from wsmiddleware.log import log as _log
from wsmiddleware.net.fork import forget_in_children
from wsmiddleware.net.holdups import HoldUps
from wsmiddleware.net.pool import Worker, WorkerPool
from wsmiddleware.net.stream import Ready

__all__ = ["Reactor", "Ticking", "step_for"]

# The thread's own id: the patched get_ident() tells greenlets apart, and we ask for threads.
_get_thread_id: Callable[[], int] = monkey.get_original("threading", "get_ident")

#: How many time-outs are looked at in one turn of the loop: 2 ms, where each sends a ping.
_LOOKS = 200
#: Seconds after which `_look` is called again, should the loop have lost the call (no memory).
_LOOK_PATIENCE = 1.0
#: Everything that is watched is looked at once in so many seconds at least.
_LONGEST = 60.0
# Of mallopt(3), in <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def step_for(*timeouts: float) -> float:
    """A clock's step, in seconds, that is fine enough for these time-outs; 0 is none."""
    return max(0.005, min([0.25, *(timeout / 16 for timeout in timeouts if timeout)]))


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next messages, up to 128 MiB, unless told otherwise.

    By default it returns the free end of the heap to the system at once, and each 4 KiB that are
    needed again cost a page fault. Saves 67 % of 1 MiB, batch 1, and 50 % where a hundred clients
    get their replies together.
    """
    told = " ".join([*os.environ, os.environ.get("GLIBC_TUNABLES", "")])
    if sys.platform != "linux" or re.search(r"MALLOC_(TRIM|MMAP)_|malloc\.(trim|mmap)_", told):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def _wake_up(reference: weakref.ref[Reactor]) -> None:
    reactor = reference()
    if reactor is not None:
        reactor._take_orders()


class Ticking(Protocol):
    """Something with time-outs."""

    #: The step of the clock at which `tick` is called next, 0 for none. Set by the reactor only.
    due_step: int

    def tick(self, now: float) -> float:
        """Act on what is due; give the time of the next look. Runs in the hub: must not block.

        What it raises is logged, and it is called again at the next step.
        """
        ...

    def forked(self) -> None:
        """This is a forked child: let go of everything, it is the parent's."""
        ...


class Reactor(Ready):
    """One hub's loop, clock and workers. Made in the thread of the hub, after any fork.

    `now` is the reactor's time in seconds. It is monotonic, goes on in steps of `step` seconds, and
    **stands still while the loop is held up**, so that a callback that hogs the processor makes
    nobody else late. One timer serves all connections: a timing wheel, whose slots are sets of what
    is due at one step of the clock. It runs only while something is watched.
    """

    def __init__(self, step: float = 0.25, progress: Callable[[], object] = lambda: None) -> None:
        _keep_freed_memory()
        self.hub: Hub = gevent.get_hub()
        self.loop = self.hub.loop
        super().__init__(WorkerPool(self.hub))
        self._thread_id = _get_thread_id()
        #: Gives a value that changes when a callback ends and another begins. For `HoldUps`.
        self.progress = progress
        self._hold_ups = HoldUps.of(self.hub, self._thread_id)
        self._step = step
        #: The timing wheel: what is watched, by the step of the clock at which it is looked at.
        self._wheel: dict[int, set[Ticking]] = {}
        #: The number of the last step; what is due up to it and has not been looked at.
        self._last_step = 0
        self._overdue: deque[Ticking] = deque()
        #: `_look` goes on in the next turn of the loop: a tick of the clock must not call it, too.
        self._is_look_due = False
        self._look_asked = 0.0
        self._last = 0.0
        self._timer: Any = None
        self._next: deque[Callable[[], object]] = deque()
        self._turn = self.loop.timer(0)
        self._orders: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._is_serving_orders = False
        #: Tells the loop that another thread has given an order. It knows us only weakly: a loop
        #: keeps what it watches for alive.
        self._wake = self.loop.async_(ref=False)
        self._wake.start(_wake_up, weakref.ref(self))
        for watcher in (self._wake, self._turn):
            weakref.finalize(self, watcher.close).atexit = False
        forget_in_children(self)

    def forked(self) -> None:
        """In a forked child: drop what is watched and what waits, as it is the parent's."""
        for ticking in {*self._overdue}.union(*self._wheel.values()):
            ticking.forked()
        for waiting in (self._wheel, self._overdue, self._next, self._orders, self.pool.tasks):
            waiting.clear()
        self._turn.stop()
        self._is_look_due = False
        self._stop_clock()

    def is_here(self) -> bool:
        """True in the thread of this reactor's hub."""
        return _get_thread_id() == self._thread_id

    def is_in_hub(self) -> bool:
        """True in a hub callback, where nothing may block."""
        return gevent.getcurrent() is self.hub

    def defer(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` soon in a worker, in the order of the calls; it should not block long.

        From any thread and from hub callbacks; never blocks. Calls from other threads enter the
        loop only here.
        """
        if self.is_here():
            self.loop.run_callback(self._take_order, function, args)
        else:
            self.order(function, *args)

    def order(self, function: Callable[..., object], *args: object) -> None:
        """As `defer`, but safe at any point of this thread: for finalizers and signal handlers."""
        # Not run_callback_threadsafe(): it counts the loop's references up while the loop counts
        # them down without the GIL. After a few million calls the count is too low, and the loop
        # ends (`LoopExit`).
        self._orders.append((function, args))
        self._wake.send()

    def _take_order(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        self._orders.append((function, args))
        self._take_orders()

    def _take_orders(self) -> None:
        if self._orders and not self._is_serving_orders:
            self.pool.run(self._serve_orders)

    def _serve_orders(self, worker: Worker) -> None:
        if self._is_serving_orders:
            return
        self._is_serving_orders = True
        try:
            while self._orders:
                function, args = self._orders.popleft()
                try:
                    function(*args)
                except Exception:
                    _log.exception("internal error in %r: please report it", function)
        finally:
            self._is_serving_orders = False

    def next_turn(self, function: Callable[[], object]) -> None:
        """Call `function` in the hub after the loop has looked at its sockets once. Hub's thread.

        A plain callback of the loop runs before that. To share the processor fairly between
        connections the loop must poll in between.
        """
        self._next.append(function)
        self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._turn.active:
            self._turn.start(self._take_turn)

    def _take_turn(self) -> None:
        try:
            for _ in range(len(self._next)):
                self.loop.run_callback(self._next[0])
                self._next.popleft()
        finally:
            if self._next:
                self._ask_for_turn()  # there was no memory

    def wait_for_turn(self) -> None:
        """Block the calling greenlet until the loop has looked at its sockets once."""
        # A waiter, not the greenlet's own switch: that would wake the greenlet a second time
        # should a stop be thrown into it meanwhile.
        waiter = Waiter(self.hub)
        self.next_turn(functools.partial(waiter.switch, None))
        waiter.get()

    def watch(self, ticking: Ticking, at: float) -> None:
        """Call ``ticking.tick(now)`` at that time of the reactor, or up to a step later.

        If it is watched already and due earlier, that stays. Hub's thread; never blocks. What is
        far from due costs nothing: 5,000 idle connections are some hundred looks a second.
        """
        step = max(math.ceil(min(at, self.now + _LONGEST) / self._step), self._last_step + 1)
        if not ticking.due_step or step < ticking.due_step:
            # First: where this fails for lack of memory, it is watched as before.
            self._wheel.setdefault(step, set()).add(ticking)
            self.forget(ticking)
            ticking.due_step = step
            self.start_clock()

    def forget(self, ticking: Ticking) -> None:
        """Watch it no more."""
        step, ticking.due_step = ticking.due_step, 0
        watched = self._wheel.get(step)
        if watched is not None:
            watched.discard(ticking)
            if not watched:
                del self._wheel[step]

    def start_clock(self) -> None:
        """Run the clock until nothing is left to watch or to run: `now` and deadlines need it."""
        if self._timer is None:
            self._last = time.monotonic()
            timer = self.loop.timer(self._step, self._step)
            timer.start(self._tick)
            self._timer = timer
            self._hold_ups.set_clock()
            self._hold_ups.start(self)

    def _tick(self) -> None:
        """Called at each step. What fails here is tried again at the next one."""
        try:
            self._advance()
            self.pool.tick(self.now)
            self._ask_again()
        except Exception:
            _log.exception("internal error in the clock: please report it")
        if not self._wheel and not self._overdue and self.pool.is_idle:
            self._stop_clock()
            self.pool.dismiss()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
            self._hold_ups.stop(self)

    def _advance(self) -> None:
        clock = time.monotonic()
        self.now += min(clock - self._last, 2 * self._step)
        self._last = clock
        self._hold_ups.set_clock()
        while self._last_step < int(self.now / self._step):
            self._overdue.extend(self._wheel.get(self._last_step + 1, ()))
            self._last_step += 1
            self._wheel.pop(self._last_step, None)
        if not self._is_look_due or clock - self._look_asked > _LOOK_PATIENCE:
            self._look()

    def _ask_again(self) -> None:
        """Ask again for what waits: asking earlier may have failed for lack of memory."""
        if self._next:
            self._ask_for_turn()
        self.resubmit()
        self._take_orders()

    def _look(self) -> None:
        """Call `tick` of what is due: in slices, as ten thousand at once would hold the loop up."""
        self._is_look_due = False
        for _ in range(min(_LOOKS, len(self._overdue))):
            ticking = self._overdue[0]
            if ticking.due_step:  # else `forget` was called meanwhile
                self._look_at(ticking)
            self._overdue.popleft()
        if self._overdue:
            self.next_turn(self._look)
            self._is_look_due = True
            self._look_asked = time.monotonic()

    def _look_at(self, ticking: Ticking) -> None:
        try:
            at = ticking.tick(self.now)
        except Exception:
            _log.exception("internal error in %r: please report it", ticking)
            at = self.now
        step = ticking.due_step
        if step:
            ticking.due_step = 0
            try:
                self.watch(ticking, at)
            finally:
                if not ticking.due_step:
                    ticking.due_step = step  # no memory: it stays due
