"""The greenlets that run callbacks, reused from one connection to the next.

A fresh greenlet costs 8-10 µs, a reused one 0.2 µs. What must not outlive a callback is therefore
cleared by hand: greenlet-locals (`Worker.forget_locals`) and a stop that came too late
(`Worker.deadline`).
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable

from gevent.hub import Hub
from greenlet import greenlet

__all__ = ["CallbackStopped", "Task", "Worker", "WorkerPool"]

_log = logging.getLogger("websocket")

#: Idle workers kept; more than this many callbacks have to block at once to be paid for anew.
_MAX_IDLE = 128


class CallbackStopped(BaseException):
    """Thrown into a callback that has run for too long; ``except Exception`` lets it pass."""


class Worker(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A greenlet of the pool. Only its own task and the reactor's tick touch it."""

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(None, pool.hub)
        self._pool = pool
        #: What removes the greenlet-locals that the running callback has set.
        self.links: list[Callable[[Worker], object]] = []
        #: When what runs now is stopped, in the ticker's time; infinite between callbacks.
        self.deadline = math.inf

    def run(self, task: Task) -> None:
        """Run tasks until the pool has enough idle workers."""
        pool = self._pool
        try:
            while True:
                self._run_task(task)
                if len(pool.idle) >= _MAX_IDLE:
                    return
                pool.idle.append(self)
                task = pool.hub.switch()
        finally:
            pool.workers.discard(self)

    def _run_task(self, task: Task) -> None:
        try:
            task(self)
        except KeyboardInterrupt:
            # Ctrl-C belongs to the main greenlet, wherever the signal happened to find us.
            self._pool.hub.handle_error(self, *sys.exc_info())
        except BaseException:
            _log.exception("internal error in %r: please report it", task)
        finally:
            self.deadline = math.inf
            self.forget_locals()

    def rawlink(self, callback: Callable[[Worker], object]) -> None:
        """Called by `gevent.local` with what removes this greenlet's values (its protocol)."""
        self.links.append(callback)

    def forget_locals(self) -> None:
        """Remove every greenlet-local value, as if the greenlet had ended."""
        if not self.links:
            return
        links, self.links = self.links, []
        for key in [key for key in self.__dict__ if key.startswith("_gevent_local_localimpl_")]:
            del self.__dict__[key]
        for link in links:
            link(self)

    def stop_if_due(self, now: float) -> None:
        """Stop the running callback when its deadline has passed. Hub only."""
        if now >= self.deadline:
            # Again at the next tick, should the callback swallow even this.
            self.deadline = now
            self.throw(CallbackStopped())


Task = Callable[[Worker], None]


class WorkerPool:
    """Idle and running workers of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()

    def run(self, task: Task) -> None:
        """Run `task` in a worker until it first blocks or ends. Hub only."""
        if self.idle:
            self.idle.pop().switch(task)
        else:
            worker = Worker(self)
            self.workers.add(worker)
            worker.switch(task)

    def submit(self, task: Task) -> None:
        """Run `task` in a worker soon. From any greenlet of the hub's thread; never blocks."""
        self.hub.loop.run_callback(self.run, task)

    @property
    def is_idle(self) -> bool:
        """True when no worker has anything to do."""
        return len(self.idle) == len(self.workers)

    def tick(self, now: float) -> None:
        """Stop what has run past its deadline. Hub only."""
        for worker in tuple(self.workers):
            worker.stop_if_due(now)
