"""What the connections of one event loop share: the loop, coarse time, and the callback workers."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent import monkey
from gevent.hub import Hub, Waiter

from wsmiddleware.net.pool import Worker, WorkerPool
from wsmiddleware.speedups import Ready

__all__ = ["Reactor", "Ticking"]

_log = logging.getLogger("websocket")

# The thread's own id: the patched get_ident() tells greenlets apart, and we ask for threads.
_get_thread_id: Callable[[], int] = monkey.get_original("threading", "get_ident")

#: Ticking things are looked at in turn, so that ten thousand of them never hold the loop at once.
_BUCKETS = 4


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next message, up to 32 MiB.

    glibc gives large blocks back to the system, and each new one costs a page fault for every
    4 KiB: two thirds of an echo of 1 MiB. Its limit follows the largest block ever freed.
    """
    bytearray(16 << 20)


def _wake_up(reference: weakref.ref[Reactor]) -> None:
    reactor = reference()
    if reactor is not None:
        reactor._take_orders()


class Ticking(Protocol):
    """Something with time-outs."""

    def tick(self, now: float) -> None:
        """Act on what is due. Runs in the hub: must not block or raise."""
        ...


class Reactor:
    """One hub's loop, clock and workers. Made in the thread of the hub, after any fork.

    `now` is the reactor's time in seconds: monotonic, a quarter of `interval` coarse, and
    **standing still while the loop is held up**, so that a callback that hogs the processor makes
    nobody else late. One timer serves all connections and runs only while there are any.
    """

    def __init__(self, interval: float = 1.0) -> None:
        _keep_freed_memory()
        self.hub: Hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.pool = WorkerPool(self.hub)
        #: Connections that the C extension runs callbacks for.
        self.ready = None if Ready is None else Ready(self.pool)
        self.now = 0.0
        self._thread_id = _get_thread_id()
        self._step = interval / _BUCKETS
        self._buckets: list[set[Ticking]] = [set() for _ in range(_BUCKETS)]
        self._turn = 0
        self._last = 0.0
        self._timer: Any = None
        self._next: list[Callable[[], object]] = []
        self._orders: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._is_serving_orders = False
        #: Tells the loop that another thread has given an order. It knows us only weakly: a loop
        #: keeps what it watches for alive.
        self._wake = self.loop.async_(ref=False)
        self._wake.start(_wake_up, weakref.ref(self))
        weakref.finalize(self, self._wake.close).atexit = False

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
            # Not run_callback_threadsafe(): it counts up, while the loop counts down without the
            # GIL, what the loop holds for its reasons to live. After a few million such calls it
            # holds too few and ends, with whoever waits for it (`LoopExit`).
            self._orders.append((function, args))
            self._wake.send()

    def _take_order(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        self._orders.append((function, args))
        self._take_orders()

    def _take_orders(self) -> None:
        if self._orders and not self._is_serving_orders:
            self._is_serving_orders = True
            self.pool.run(self._serve_orders)

    def _serve_orders(self, worker: Worker) -> None:
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
        if len(self._next) == 1:
            timer = self.loop.timer(0)
            timer.start(self._take_turn, timer)

    def _take_turn(self, timer: Any) -> None:
        timer.close()
        functions, self._next = self._next, []
        for function in functions:
            self.loop.run_callback(function)

    def pause(self) -> None:
        """Block the calling greenlet until the loop has looked at its sockets once."""
        # A waiter, not the greenlet's own switch: should a stop be thrown in meanwhile, nothing
        # wakes the greenlet a second time.
        waiter = Waiter(self.hub)
        self.next_turn(functools.partial(waiter.switch, None))
        waiter.get()

    def watch(self, ticking: Ticking) -> None:
        """Call ``ticking.tick(now)`` about once in `interval` seconds."""
        min(self._buckets, key=len).add(ticking)
        self.start_clock()

    def start_clock(self) -> None:
        """Let `now` go on, and deadlines hold, until nothing is left to watch or to run."""
        if self._timer is None:
            self._last = time.monotonic()
            self._timer = self.loop.timer(self._step, self._step)
            self._timer.start(self._tick)

    def forget(self, ticking: Ticking) -> None:
        """Stop calling it."""
        for bucket in self._buckets:
            bucket.discard(ticking)

    def _tick(self) -> None:
        clock = time.monotonic()
        self.now += min(clock - self._last, 2 * self._step)
        self._last = clock
        self._turn = (self._turn + 1) % _BUCKETS
        for ticking in tuple(self._buckets[self._turn]):
            ticking.tick(self.now)
        self.pool.tick(self.now)
        if not any(self._buckets) and self.pool.is_idle:
            self._timer.stop()
            self._timer.close()
            self._timer = None
            self.pool.dismiss()
