"""The greenlets that run callbacks and requests, reused from one connection to the next.

A fresh greenlet costs 8-10 µs, a reused one 0.2 µs. What must not outlive a callback is therefore
cleared by hand (`Worker.rest`), and what still comes for one that has ended is ignored.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable

from gevent.hub import Hub
from greenlet import GreenletExit, greenlet

from wsmiddleware.django import close_connections

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

    __slots__ = ("_pool", "deadline", "links", "task")

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(None, pool.hub)
        self._pool = pool
        #: What gevent wants called at the end of what runs now.
        self.links: list[Callable[[Worker], object]] = []
        #: What to run next.
        self.task: Task | None = None
        #: When what runs now is stopped, in the ticker's time; infinite between callbacks.
        self.deadline = math.inf

    def run(self) -> None:
        """Run tasks until the pool has enough idle workers, or dismisses this one."""
        pool = self._pool
        idle, tasks = pool.idle, pool.tasks
        # Not gevent's own method, which first looks for somebody to tell: 2 % of an echo of 32 B.
        switch = greenlet.switch.__get__(pool.hub)
        try:
            # All in one frame: one more for each task and for each wait is 4 % of a small echo.
            while True:
                task, self.task = self.task, None
                assert task is not None
                try:
                    task(self)
                except KeyboardInterrupt:
                    # Ctrl-C belongs to the main greenlet, wherever the signal happened to find us.
                    pool.hub.handle_error(self, *sys.exc_info())
                except BaseException:
                    _log.exception("internal error in %r: please report it", task)
                # No name of an idle worker's frame may keep the task, and so its connection, alive.
                task = None
                self.rest()
                if tasks:
                    self.task = tasks.popleft()
                    continue
                if len(idle) >= _MAX_IDLE:
                    return
                idle.append(self)
                while self.task is None:
                    try:
                        # Not by its result: a callback that has ended may have left somebody its
                        # switch().
                        switch()
                    except GreenletExit:
                        if self in idle:
                            idle.remove(self)
                        return
                    except BaseException as exc:
                        _log.warning("%r came for a callback that has ended: ignored", exc)
        finally:
            pool.workers.discard(self)

    def rawlink(self, callback: Callable[[Worker], object]) -> None:
        """Called by gevent with what is to be called at this greenlet's end (its protocol)."""
        self.links.append(callback)

    def rest(self) -> None:
        """Between callbacks: no stop that comes late, and no local value of what has run."""
        self.deadline = math.inf
        if self.links or self.__dict__:
            self.forget_locals()

    def forget_locals(self) -> None:
        """Do what gevent does when a greenlet ends, and close what it would drop. May block."""
        # The callback has ended: no stop for this.
        self.deadline = math.inf
        close_connections()
        self.__dict__.clear()
        links = self.links.copy()
        self.links.clear()
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
        #: What was submitted and has not begun.
        self.tasks: deque[Task] = deque()

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
        """Run `task` in a worker soon. From any greenlet of the hub's thread; never blocks.

        After what the loop has found to do in this turn, one task behind the other in one worker
        until one blocks: what would be two switches of greenlets for each is two for all.
        """
        tasks = self.tasks
        tasks.append(task)
        if len(tasks) == 1:
            self.hub.loop.run_callback(self._run_tasks)

    def _run_tasks(self) -> None:
        while self.tasks:
            self.run(self.tasks.popleft())

    @property
    def is_idle(self) -> bool:
        """True when no worker has anything to do, now or soon."""
        return not self.tasks and len(self.idle) == len(self.workers)

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
