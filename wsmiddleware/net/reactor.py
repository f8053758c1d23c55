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

#: How many things with time-outs are looked at before the loop gets its turn: 2 ms of pings.
_LOOKS = 200
#: Seconds after which a look that was asked for is given up: there was no memory for the call.
_LOOK_PATIENCE = 1.0
#: The longest that something is watched without a look, in seconds.
_LONGEST = 60.0
# Of mallopt(3), in <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def step_for(*timeouts: float) -> float:
    """A clock's step, in seconds, that is fine enough for these time-outs; 0 is none."""
    return max(0.005, min([0.25, *(timeout / 16 for timeout in timeouts if timeout)]))


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next messages, up to 128 MiB, unless told otherwise.

    It gives back what is free at the end of the heap, all of it at once, and each 4 KiB that are
    asked for again cost a page fault: two thirds of an echo of 1 MiB, half of it where the replies
    to a hundred clients come and go together.
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

    #: When it is looked at next, 0 if never; the reactor's own.
    due_step: int

    def tick(self, now: float) -> float:
        """Act on what is due; when to look again. Runs in the hub: must not block.

        Where it raises, that is logged, and it is called again at the next step.
        """
        ...

    def forked(self) -> None:
        """This is a forked child, and all of it the parent's."""
        ...


class Reactor(Ready):
    """One hub's loop, clock and workers. Made in the thread of the hub, after any fork.

    `now` is the reactor's time in seconds: monotonic, `step` seconds coarse, and
    **standing still while the loop is held up**, so that a callback that hogs the processor makes
    nobody else late. One timer serves all connections and runs only while there are any.
    """

    def __init__(self, step: float = 0.25, progress: Callable[[], object] = lambda: None) -> None:
        _keep_freed_memory()
        self.hub: Hub = gevent.get_hub()
        self.loop = self.hub.loop
        super().__init__(WorkerPool(self.hub))
        self._thread_id = _get_thread_id()
        #: What differs once a callback has ended and another has begun; for who holds the loop.
        self.progress = progress
        self._hold_ups = HoldUps.of(self.hub, self._thread_id)
        self._step = step
        #: What is watched, by the step of the clock at which it is looked at.
        self._wheel: dict[int, set[Ticking]] = {}
        #: The last step that was; and what is due since then and has not been looked at.
        self._last_step = 0
        self._overdue: deque[Ticking] = deque()
        #: The rest of that has its look in the next turn: one, though the clock ticks meanwhile.
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
        """In a forked child: what is watched and what waits is the parent's; new ones may come."""
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

        From any thread and from hub callbacks; never blocks. The one place where what another
        thread asks for enters the loop.
        """
        if self.is_here():
            self.loop.run_callback(self._take_order, function, args)
        else:
            self.order(function, *args)

    def order(self, function: Callable[..., object], *args: object) -> None:
        """As `defer`, whatever this thread is in the middle of: a finalizer's way, for one."""
        # Not run_callback_threadsafe(): it counts up, while the loop counts down without the GIL,
        # what the loop holds for its reasons to live. After a few million such calls it holds too
        # few and ends, with whoever waits for it (`LoopExit`).
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

        A plain callback would run before that, again and again: what shares the processor fairly
        between connections must let the loop poll in between.
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
        # A waiter, not the greenlet's own switch: should a stop be thrown in meanwhile, nothing
        # wakes the greenlet a second time.
        waiter = Waiter(self.hub)
        self.next_turn(functools.partial(waiter.switch, None))
        waiter.get()

    def watch(self, ticking: Ticking, at: float) -> None:
        """Call ``ticking.tick(now)`` at that time, or a step of the clock later.

        Sooner, if it is watched already and due before that. What is far from due costs nothing:
        5,000 idle connections are looked at some hundred times a second, not 5,000 times.
        """
        step = max(math.ceil(min(at, self.now + _LONGEST) / self._step), self._last_step + 1)
        if not ticking.due_step or step < ticking.due_step:
            # First: should there be no memory, it is watched as it was.
            self._wheel.setdefault(step, set()).add(ticking)
            self.forget(ticking)
            ticking.due_step = step
            self.start_clock()

    def forget(self, ticking: Ticking) -> None:
        """Stop calling it."""
        step, ticking.due_step = ticking.due_step, 0
        watched = self._wheel.get(step)
        if watched is not None:
            watched.discard(ticking)
            if not watched:
                del self._wheel[step]

    def start_clock(self) -> None:
        """Let `now` go on, and deadlines hold, until nothing is left to watch or to run."""
        if self._timer is None:
            self._last = time.monotonic()
            timer = self.loop.timer(self._step, self._step)
            timer.start(self._tick)
            self._timer = timer
            self._hold_ups.set_clock()
            self._hold_ups.start(self)

    def _tick(self) -> None:
        """Once a step. Whatever fails here is tried again at the next one."""
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
        """What waits has been asked for; in vain, where there was no memory for the call."""
        if self._next:
            self._ask_for_turn()
        self.resubmit()
        self._take_orders()

    def _look(self) -> None:
        """Look at what is due, not at ten thousand at once: that would hold up the loop."""
        self._is_look_due = False
        for _ in range(min(_LOOKS, len(self._overdue))):
            ticking = self._overdue[0]
            if ticking.due_step:  # nobody has forgotten it meanwhile
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
                    ticking.due_step = step  # there was no memory: it is due as it was
