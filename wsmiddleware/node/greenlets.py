"""A node at work: its three tasks, each in a greenlet of its own, and who waits for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
from gevent.event import Event as Signal

from wsmiddleware.backplane.engine import Engine, Subject
from wsmiddleware.log import log as _log
from wsmiddleware.node.node import WAIT, Node, Task
from wsmiddleware.node.outgoing import KEPT, Ticket
from wsmiddleware.node.subject import Event

__all__ = ["WorkingNode"]

#: Seconds until a task that failed is called again.
_AFTER_ERROR = 1.0


class WorkingNode(Node):
    """A `Node` that works by itself between `open` and `close`. For the hub's thread."""

    def __init__(
        self,
        engine: Engine,
        down: Callable[[Subject, Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        publish_retry: float = KEPT.seconds,
    ) -> None:
        self._wakes = {task: Signal() for task in Task}
        self._greenlets: list[gevent.Greenlet] = []
        super().__init__(engine, down, clock=clock, on_work=self._wake, publish_retry=publish_retry)

    def open(self) -> None:
        """Begin, after the fork."""
        super().open()
        runs = {Task.SEND: self.send, Task.TEND: self.tend, Task.DELIVER: self.deliver}
        self._greenlets = [gevent.spawn(self._run, task, run) for task, run in runs.items()]

    def close(self) -> None:
        """End; waits for no answer. Not from within a task (`down`)."""
        super().close()
        gevent.killall(self._greenlets)

    def wait(self, ticket: Ticket) -> bool:
        """True when it was published; waits for that at most `WAIT` seconds, and never in the hub.

        What has no history has been delivered here and is on its way: true, unless it was dropped.
        """
        if ticket.publication.history is None:
            return ticket.outcome is None or bool(ticket)
        is_in_hub = gevent.getcurrent() is gevent.get_hub()
        if ticket.outcome is None and self.is_worth_waiting and not is_in_hub:
            settled = Signal()
            ticket.on_settled = settled.set
            settled.wait(WAIT)
        return bool(ticket)

    def _wake(self, task: Task) -> None:
        self._wakes[task].set()

    def _run(self, task: Task, run: Callable[[], float | None]) -> None:
        wake = self._wakes[task]
        while True:
            wake.clear()  # what comes while it works is not overlooked
            try:
                delay = run()
            except Exception:
                _log.exception("backplane: %s failed and is tried again", task.value)
                delay = _AFTER_ERROR
            if delay == 0.0:
                gevent.sleep(0)
            else:
                wake.wait(delay)
