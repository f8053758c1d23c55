"""The local end of a broadcast: one message to many clients, a slice of them at a time.

A small broadcast is sent at once. A big one lets other greenlets run between its slices. Broadcasts
that come meanwhile wait in a queue, so all clients get them in the same order.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from gevent.event import Event

from wsmiddleware.net.stream import deliver

if TYPE_CHECKING:
    from wsmiddleware.listeners.instance import Instance
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.protocol.prepared import PreparedMessage

__all__ = ["Deliveries"]

#: Clients that get a broadcast in one turn of the loop: 2 to 3 ms.
_SLICE = 250


class _Delivery:
    """One broadcast that is under way."""

    __slots__ = ("ended", "members", "prepared", "reactor")

    def __init__(
        self, reactor: Reactor, members: list[Instance], prepared: PreparedMessage
    ) -> None:
        self.reactor = reactor
        self.members = iter(members)
        self.prepared = prepared
        self.ended = Event()


class Deliveries:
    """A channel's broadcasts that are under way, oldest first. Hub's thread only."""

    def __init__(self) -> None:
        self._queue: deque[_Delivery] = deque()
        self._is_running = False
        #: True in the middle of a slice.
        self._is_sending = False

    def deliver(self, reactor: Reactor, members: list[Instance], prepared: PreparedMessage) -> None:
        """Send `prepared` to `members`. In the thread of `reactor`.

        Blocks the calling greenlet until all members have been served, where there are more than a
        slice of them or other broadcasts are under way. Never blocks in the hub: there it sends
        everything at once.
        """
        if self._is_sending:
            # The caller is a signal handler or finalizer that has interrupted a slice.
            reactor.order(self.deliver, reactor, members, prepared)
            return
        if len(members) <= _SLICE and not self._queue:
            self._send(members, prepared)
            return
        delivery = _Delivery(reactor, members, prepared)
        self._queue.append(delivery)
        if reactor.is_in_hub():
            # It may not wait, and what it sends next must come after this.
            while not delivery.ended.is_set():
                self._step()
            return
        # Not in the calling greenlet: a stop or a time-out that ends its callback here would leave
        # clients without the message.
        if not self._is_running:
            reactor.pool.submit(self._run)
        delivery.ended.wait()

    def _run(self, worker: Worker) -> None:
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._queue:
                reactor = self._queue[0].reactor
                self._step()
                reactor.wait_for_turn()
        finally:
            self._is_running = False
            if self._queue:  # raised, for lack of memory: go on later
                self._queue[0].reactor.pool.submit(self._run)

    def _step(self) -> None:
        """Send the next slice of the oldest broadcast."""
        delivery = self._queue[0]
        members = list(islice(delivery.members, _SLICE))
        try:
            self._send(members, delivery.prepared)
        finally:
            if len(members) < _SLICE:
                self._queue.popleft()
                delivery.ended.set()

    def _send(self, members: list[Instance], prepared: PreparedMessage) -> None:
        self._is_sending = True
        try:
            deliver(members, prepared)
        finally:
            self._is_sending = False
