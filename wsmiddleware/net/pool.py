"""The greenlets that run callbacks, reused from one connection to the next.

A fresh greenlet costs 8-10 µs, a reused one 0.2 µs. What must not outlive a callback is therefore
cleared by hand (`Worker.rest`), and what still comes for one that has ended is ignored.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable

from gevent.hub import Hub
from greenlet import GreenletExit, greenlet

__all__ = ["CallbackStopped", "Task", "Worker", "WorkerPool"]

_log = logging.getLogger("websocket")

#: Idle workers kept; more than this many callbacks have to block at once to be paid for anew.
_MAX_IDLE = 128
#: Seconds that a stopped callback has to clean up before it is stopped again.
_CLEANUP_TIME = 1.0


class CallbackStopped(BaseException):
    """Thrown into a callback that has run for too long; ``except Exception`` lets it pass."""


class Worker(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A greenlet of the pool. Only its own task and the reactor's tick touch it.

    Slots for our own attributes, so that `__dict__` holds nothing but what callbacks put there:
    gevent's greenlet-locals, its spawn-tree locals, attributes set on ``gevent.getcurrent()``.
    """

    __slots__ = ("_links", "_pool", "deadline", "task")

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(None, pool.hub)
        self._pool = pool
        self._links: list[Callable[[Worker], object]] = []
        #: What to run next.
        self.task: Task | None = None
        #: When what runs now is stopped, in the ticker's time; infinite between callbacks.
        self.deadline = math.inf

    def run(self) -> None:
        """Run tasks until the pool has enough idle workers, or dismisses this one."""
        pool = self._pool
        try:
            while self.task is not None:
                self._run_task()
                if len(pool.idle) < _MAX_IDLE:
                    self._await_task()
        finally:
            pool.workers.discard(self)

    def _run_task(self) -> None:
        # No name of an idle worker's frame may keep the task, and so its connection, alive.
        task, self.task = self.task, None
        assert task is not None
        try:
            task(self)
        except KeyboardInterrupt:
            # Ctrl-C belongs to the main greenlet, wherever the signal happened to find us.
            self._pool.hub.handle_error(self, *sys.exc_info())
        except BaseException:
            _log.exception("internal error in %r: please report it", task)
        finally:
            self.rest()

    def _await_task(self) -> None:
        idle = self._pool.idle
        idle.append(self)
        while self.task is None:
            try:
                # Not by its result: a callback that has ended may have left somebody its switch().
                self._pool.hub.switch()
            except GreenletExit:
                if self in idle:
                    idle.remove(self)
                return
            except BaseException as exc:
                _log.warning("%r came for a callback that has ended: ignored", exc)

    def rawlink(self, callback: Callable[[Worker], object]) -> None:
        """Called by gevent with what is to be called at this greenlet's end (its protocol)."""
        self._links.append(callback)

    def rest(self) -> None:
        """Between callbacks: no stop that comes late, and no local value of what has run."""
        self.deadline = math.inf
        if self._links or self.__dict__:
            self._forget_locals()

    def _forget_locals(self) -> None:
        """Do what gevent does when a greenlet ends."""
        self.__dict__.clear()
        links, self._links = self._links, []
        for link in links:
            link(self)

    def stop_if_due(self, now: float) -> None:
        """Stop the running callback when its deadline has passed. Hub only."""
        if now >= self.deadline:
            # Again later, should the callback swallow even this.
            self.deadline = now + _CLEANUP_TIME
            self.throw(CallbackStopped())


Task = Callable[[Worker], None]


class WorkerPool:
    """Idle and running workers of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()
        self._due = 0

    def run(self, task: Task) -> None:
        """Run `task` in a worker until it first blocks or ends. Hub only."""
        if self.idle:
            worker = self.idle.pop()
        else:
            worker = Worker(self)
            self.workers.add(worker)
        worker.task = task
        worker.switch()

    def submit(self, task: Task) -> None:
        """Run `task` in a worker soon. From any greenlet of the hub's thread; never blocks."""
        self._due += 1
        self.hub.loop.run_callback(self._run_due, task)

    def _run_due(self, task: Task) -> None:
        self._due -= 1
        self.run(task)

    @property
    def is_idle(self) -> bool:
        """True when no worker has anything to do, now or soon."""
        return not self._due and len(self.idle) == len(self.workers)

    def tick(self, now: float) -> None:
        """Stop what has run past its deadline. Hub only."""
        for worker in tuple(self.workers):
            worker.stop_if_due(now)

    def dismiss(self) -> None:
        """End the idle workers. Hub only.

        A suspended greenlet is never garbage: without this a pool would outlive its middleware.
        """
        for worker in tuple(self.idle):
            worker.throw(GreenletExit())
