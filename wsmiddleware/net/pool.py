"""The greenlets that run callbacks and requests, reused from one connection to the next.

A fresh greenlet costs 8-10 µs, a reused one 0.2 µs. Nothing of what has run in one may reach what
runs in it next:

- Our own state is in a `Worker`, not in its greenlet. So a callback that sets attributes on
  ``gevent.getcurrent()`` cannot change it. `Worker.rest` clears what a callback has set there, and
  its greenlet-locals.
- A time-out that was left running, or a ``kill`` or ``switch`` to come, has a reference to the
  greenlet. Then the greenlet is not used again: it ends, and what comes late finds it dead and is
  dropped, with a line in the log. So a worker whose callback has blocked, or has left a reference,
  returns to the hub, where the references can be counted.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any

from gevent.hub import Hub
from greenlet import GreenletExit, greenlet

from wsmiddleware.django import close_connections
from wsmiddleware.log import log as _log

__all__ = ["NEVER", "CallbackStopped", "Task", "Worker", "WorkerPool"]

#: Idle workers kept. Only where more callbacks than this block at once are new ones made.
_MAX_IDLE = 128
#: Seconds that a stopped callback has to clean up before it is stopped again.
_CLEANUP_TIME = 1.0
#: References to an idle worker's greenlet: the worker's own, and the one of `getrefcount`.
_OWN_REFERENCES = 2
#: The deadline of what may run for ever.
NEVER = sys.float_info.max

_switch, _throw = greenlet.switch, greenlet.throw


class CallbackStopped(BaseException):
    """Thrown into a callback that has run for too long; ``except Exception`` lets it pass."""


class _Greenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """What user code gets from ``gevent.getcurrent()``."""

    __slots__ = ("_worker",)

    def rawlink(self, callback: Callable[[Any], object]) -> None:
        """Called by gevent with what is to be called at this greenlet's end (its protocol)."""
        worker: Worker | None = _get_worker(self)
        if worker is not None:
            worker.links.append(callback)

    def throw(self, *args: Any) -> Any:
        """As any greenlet's; ignored where the callback that it is meant for has ended."""
        worker: Worker | None = _get_worker(self)
        # Without a deadline no callback runs: our own code waits for something.
        if worker is None or worker.deadline == math.inf:
            what = args[0] if args else GreenletExit()
            _log.warning("%r came for a callback that has ended: ignored", what)
            return None
        return _throw(self, *args)


# The slot is ours, and no attribute: whatever a callback sets lies in the greenlet's `__dict__`.
_get_worker, _set_worker = _Greenlet._worker.__get__, _Greenlet._worker.__set__
del _Greenlet._worker


class Worker:
    """One greenlet of the pool and our state of it. For its tasks and the reactor's tick."""

    __slots__ = ("_count", "_pool", "deadline", "greenlet", "is_fresh", "links", "task")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        #: What gevent wants called at the end of what runs now.
        self.links: list[Callable[[Any], object]] = []
        #: What to run next.
        self.task: Task | None = None
        #: When what runs now is stopped, in the reactor's time; infinite between callbacks.
        self.deadline = math.inf
        #: True while it has not blocked since the hub switched to it.
        self.is_fresh = False
        self.greenlet = _Greenlet(self._run, pool.hub)
        _set_worker(self.greenlet, self)
        #: References to the greenlet when the hub switched to it.
        self._count = 0

    def is_alone(self) -> bool:
        """True while nobody else can have a reference to the greenlet: it may be used again."""
        return self.is_fresh and getrefcount(self.greenlet) <= self._count

    def _run(self) -> None:
        """Run tasks until the pool has enough idle workers, or dismisses this one."""
        pool = self._pool
        idle, tasks = pool.idle, pool.tasks
        # Not gevent's own method, which looks up more first: saves 2 % of 32 B, batch 1.
        switch = _switch.__get__(pool.hub)
        try:
            # One function for all of it: saves 4 % of 32 B, batch 1.
            while True:
                self._count = getrefcount(self.greenlet)
                while True:
                    task, self.task = self.task, None
                    assert task is not None
                    self.deadline = NEVER
                    try:
                        task(self)
                    except BaseException as exc:
                        self._failed(exc, task)
                    # The frame of an idle worker must not keep the task, and its connection, alive.
                    task = None
                    self.rest()
                    if not tasks or not self.is_alone():
                        break
                    self.task = tasks.popleft()
                if len(idle) >= _MAX_IDLE:
                    return
                idle.append(self)
                while self.task is None:
                    try:
                        # Its result says nothing: an earlier callback may have given its
                        # switch() to somebody.
                        switch()
                    except GreenletExit:
                        return
        except BaseException as exc:
            self._failed(exc, self)
        finally:
            if self in idle:
                idle.remove(self)
            pool.workers.discard(self)
            _set_worker(self.greenlet, None)
            self.greenlet.parent = pool.hub  # whatever a callback has made of it

    def _failed(self, exc: BaseException, what: object) -> None:
        if isinstance(exc, KeyboardInterrupt):
            # Ctrl-C belongs to the main greenlet, wherever the signal happened to find us.
            self._pool.hub.handle_error(self.greenlet, *sys.exc_info())
        else:
            _log.error("internal error in %r: please report it", what, exc_info=exc)

    def rest(self) -> None:
        """Call between callbacks: lifts the deadline, clears greenlet-locals. May block."""
        self.deadline = math.inf
        if self.links or self.greenlet.__dict__:
            self.forget_locals()

    def forget_locals(self) -> None:
        """Do what gevent does when a greenlet ends, and close what it would drop. May block."""
        # The callback has ended: no stop for this.
        self.deadline = math.inf
        close_connections()
        left = self.greenlet.__dict__
        left.clear()
        links = self.links.copy()
        self.links.clear()
        for link in links:
            try:
                link(self.greenlet)
            except KeyboardInterrupt as exc:
                self._failed(exc, link)
            except BaseException as exc:
                _log.error("%r, linked to a callback's greenlet, raised", link, exc_info=exc)
        left.clear()

    def stop_if_due(self, now: float) -> None:
        """Stop the running callback when its deadline has passed. Hub only."""
        if now >= self.deadline:
            # Again later, should the callback catch even this.
            self.deadline = now + _CLEANUP_TIME
            _throw(self.greenlet, CallbackStopped())

    def dismiss(self) -> None:
        """End it, while it is idle. Hub only."""
        _throw(self.greenlet, GreenletExit())


Task = Callable[[Worker], None]


class WorkerPool:
    """Idle and running workers of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()
        #: What was submitted and has not begun.
        self.tasks: deque[Task] = deque()
        #: What the loop has been asked to call, to run them.
        self._asked: Any = None

    def run(self, task: Task) -> None:
        """Run `task` in a worker until it first blocks or ends. Hub only."""
        self.tasks.appendleft(task)
        self._run_next()

    def submit(self, task: Task) -> None:
        """Run `task` in a worker soon. From any greenlet of the hub's thread; never blocks.

        Tasks run after the other callbacks of this turn of the loop, one after the other in one
        worker until one blocks: two switches of greenlets for all of them, not for each.

        Raises `MemoryError`; then nothing was submitted.
        """
        self.tasks.append(task)
        # The loop's own state, as a flag of ours could stay wrong for ever.
        if self._asked is None or not self._asked.pending:
            self.ask()

    def ask(self) -> None:
        """Ask the loop to run the tasks that wait."""
        # Should both fail for lack of memory, the reactor's tick asks, or the next `submit`.
        for _ in range(2):
            try:
                self._asked = self.hub.loop.run_callback(self._run_tasks)
                return
            except MemoryError:  # not by suppress(), which asks for some
                continue

    def _run_tasks(self) -> None:
        try:
            while self.tasks:
                self._run_next()
        finally:
            if self.tasks:
                self.ask()  # raised, for lack of memory: go on later

    def _run_next(self) -> None:
        """Run the first task; it is still the first one where that raises."""
        worker = self._take_worker()
        worker.task = task = self.tasks.popleft()
        worker.is_fresh = True
        try:
            _switch(worker.greenlet)
        finally:
            worker.is_fresh = False  # it has blocked, or ended
            if worker.task is not None:  # it could not begin, for lack of memory
                worker.task = None
                self.tasks.appendleft(task)

    def _take_worker(self) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if getrefcount(worker.greenlet) <= _OWN_REFERENCES:
                return worker
            worker.dismiss()
        worker = Worker(self)
        self.workers.add(worker)
        return worker

    @property
    def is_idle(self) -> bool:
        """True when no worker has anything to do, now or soon."""
        return not self.tasks and len(self.idle) == len(self.workers)

    def tick(self, now: float) -> None:
        """Stop what has run past its deadline, see to what waits. Hub only."""
        for worker in tuple(self.workers):
            worker.stop_if_due(now)
        if self.tasks:
            self.ask()

    def dismiss(self) -> None:
        """End the idle workers. Hub only.

        A suspended greenlet is never garbage: without this a pool would outlive its middleware.
        """
        for worker in tuple(self.idle):
            worker.dismiss()
