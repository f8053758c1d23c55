"""The greenlets that run callbacks and requests, reused from one connection to the next.

A fresh greenlet costs 8-10 µs, a reused one 0.2 µs. Nothing of what has run in one may reach what
runs in it next:

- What is ours lies in a `Worker`, beside its greenlet: no attribute that a callback sets on
  ``gevent.getcurrent()`` is one of ours. What it has set, and its greenlet-locals, `Worker.rest`
  clears.
- A time-out that was left running, a ``kill`` or ``switch`` to come hold on to the greenlet. The
  greenlet is the token of one piece of work, then: it ends with it, and what comes late finds it
  dead and is dropped, with a line in the log. So who has blocked, or left a reference to its
  greenlet, goes back to the hub, which alone can count the references.
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

#: Idle workers kept; more than this many callbacks have to block at once to be paid for anew.
_MAX_IDLE = 128
#: Seconds that a stopped callback has to clean up before it is stopped again.
_CLEANUP_TIME = 1.0
#: References to an idle worker's greenlet: the worker's, and that of the call that counts.
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
        """As any greenlet's; dropped where what it is meant for has ended."""
        worker: Worker | None = _get_worker(self)
        # Without a deadline it is we who wait for something behind a callback.
        if worker is None or worker.deadline == math.inf:
            what = args[0] if args else GreenletExit()
            _log.warning("%r came for a callback that has ended: ignored", what)
            return None
        return _throw(self, *args)


# The slot is ours, and no attribute: whatever a callback sets lies in the greenlet's `__dict__`.
_get_worker, _set_worker = _Greenlet._worker.__get__, _Greenlet._worker.__set__
del _Greenlet._worker


class Worker:
    """One greenlet of the pool and what is ours of it. For its tasks and the reactor's tick."""

    __slots__ = ("_count", "_pool", "deadline", "greenlet", "is_fresh", "links", "task")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        #: What gevent wants called at the end of what runs now.
        self.links: list[Callable[[Any], object]] = []
        #: What to run next.
        self.task: Task | None = None
        #: When what runs now is stopped, in the ticker's time; infinite between callbacks.
        self.deadline = math.inf
        #: It has not blocked since the hub has switched to it.
        self.is_fresh = False
        self.greenlet = _Greenlet(self._run, pool.hub)
        _set_worker(self.greenlet, self)
        #: References to the greenlet when the hub has switched to it.
        self._count = 0

    def is_alone(self) -> bool:
        """True while nobody can have kept the greenlet: what is another's may run in it next."""
        return self.is_fresh and getrefcount(self.greenlet) <= self._count

    def _run(self) -> None:
        """Run tasks until the pool has enough idle workers, or dismisses this one."""
        pool = self._pool
        idle, tasks = pool.idle, pool.tasks
        # Not gevent's own method, which first looks for somebody to tell: 2 % of an echo of 32 B.
        switch = _switch.__get__(pool.hub)
        try:
            # All in one frame: one more for each task and for each wait is 4 % of a small echo.
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
                    # No name of an idle worker's frame may keep the task, and so its connection,
                    # alive.
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
                        # Not by its result: a callback that has ended may have left somebody its
                        # switch().
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
        """Between callbacks: no stop that comes late, and no local value of what has run."""
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
            # Again later, should the callback swallow even this.
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

        After what the loop has found to do in this turn, one task behind the other in one worker
        until one blocks: what would be two switches of greenlets for each is two for all.

        Where it raises (there was no memory), nothing was submitted.
        """
        self.tasks.append(task)
        # What was asked for, the loop knows: a state of ours could be wrong for ever.
        if self._asked is None or not self._asked.pending:
            self.ask()

    def ask(self) -> None:
        """Have the loop see to what waits."""
        # Where there is no memory even then, the reactor's tick asks, or who submits next.
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
                self.ask()  # something was raised: there was no memory

    def _run_next(self) -> None:
        """Run the first task; it is still the first one where that raises."""
        worker = self._take_worker()
        worker.task = task = self.tasks.popleft()
        worker.is_fresh = True
        try:
            _switch(worker.greenlet)
        finally:
            worker.is_fresh = False  # it has blocked, or ended
            if worker.task is not None:  # or there was no memory to begin
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
