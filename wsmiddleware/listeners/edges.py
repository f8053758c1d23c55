"""The edges of a channel: `on_first_open` and `on_last_close`, one after the other.

An edge is queued at the moment that the channel gets its first open connection or loses its last.
A worker, there only while edges are due, runs them in order; so neither runs twice for one edge nor
beside the other, whatever the interleaving of the connections.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from gevent.event import Event

from wsmiddleware.listeners.hints import hint_for
from wsmiddleware.listeners.scope import describe
from wsmiddleware.log import log as _log

if TYPE_CHECKING:
    from contextvars import Context

    from wsmiddleware.listeners.clients import WsClients
    from wsmiddleware.listeners.contract import Contract
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.settings import Settings

__all__ = ["Edge", "Edges"]


class Crowd(Protocol):
    """What `Edges` needs of its channel."""

    name: str
    contract: Contract
    settings: Settings
    metrics: Metrics
    wsclients: WsClients
    new_context: Callable[[], Context]

    @property
    def unfinished(self) -> Collection[object]:
        """Connections whose last callback has not ended."""

    def size(self) -> int:
        """How many clients are open."""

    def settle(self) -> None:
        """Tell whoever waits for it that nothing runs or is due any more."""


class Edge:
    """One edge: which callback, and how far it has come."""

    __slots__ = ("ended", "entered", "is_in_grace", "name", "worker")

    def __init__(self, name: str) -> None:
        self.name = name
        #: The callback has blocked for the first time, or ended.
        self.entered = Event()
        self.ended = Event()
        #: The last client has gone, so `grace_period` limits its time.
        self.is_in_grace = False
        self.worker: Worker | None = None


class Edges:
    """A channel's queue of edges. Hub's thread only; only `_run` blocks."""

    def __init__(self, channel: Crowd) -> None:
        self._channel = channel
        self._queue: deque[Edge] = deque()
        self._current: Edge | None = None
        self._is_running = False
        # Set when `on_last_close` need not wait any longer for the last `on_close`.
        self._news = Event()

    @property
    def is_idle(self) -> bool:
        """True when no edge callback is due or running."""
        return not self._is_running

    def opened(self, reactor: Reactor) -> Edge | None:
        """The channel got its first connection; `None` where the class does not care."""
        self._news.set()
        return self._add(reactor, "on_first_open")

    def emptied(self, reactor: Reactor) -> None:
        """The channel lost its last connection."""
        edge = self._current
        if edge is not None and edge.worker is not None:
            grace = reactor.now + self._channel.settings.grace_period
            if grace < edge.worker.deadline:
                edge.worker.deadline = grace
                edge.is_in_grace = True
        self._add(reactor, "on_last_close")

    def wake(self) -> None:
        """The last `on_close` has ended."""
        self._news.set()

    def _add(self, reactor: Reactor, name: str) -> Edge | None:
        if name not in self._channel.contract.callbacks:
            return None
        edge = Edge(name)
        self._queue.append(edge)
        self._news.set()
        reactor.start_clock()
        if not self._is_running:
            self._is_running = True
            reactor.pool.submit(functools.partial(self._run, reactor))
        return edge

    def _run(self, reactor: Reactor, worker: Worker) -> None:
        while self._queue:
            if self._queue[0].name == "on_last_close":
                self._await_last_close()
            self._current = edge = self._queue.popleft()
            reactor.pool.submit(functools.partial(self._run_edge, edge, reactor))
            # The loop runs its callbacks in order: the edge, until it first blocks, then this.
            reactor.loop.run_callback(edge.entered.set)
            edge.ended.wait()
            self._current = None
        self._is_running = False
        self._channel.settle()

    def _await_last_close(self) -> None:
        """Wait until every `on_close` has ended, or somebody new has come. Blocks."""
        while self._channel.unfinished and not self._channel.size() and len(self._queue) == 1:
            self._news.clear()
            self._news.wait()

    def _run_edge(self, edge: Edge, reactor: Reactor, worker: Worker) -> None:
        channel = self._channel
        callback = getattr(channel.contract.listener_class, edge.name)
        args = (channel.wsclients,) if edge.name == "on_first_open" else ()
        edge.worker = worker
        worker.deadline = reactor.now + self._limit(edge)
        try:
            # In no request's context: an edge belongs to the channel, not to one client's request.
            channel.new_context().run(callback, *args)
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            since = "the last client had gone" if edge.is_in_grace else ""
            error = describe(
                exc, channel.contract.listener_class, edge.name, channel.settings, since
            )
            where = f"{channel.contract.listener_class.__name__}.{edge.name}"
            text = f"{error!r}{hint_for(error, edge.name, has_context=False)}"
            _log.error("channel %s: %s raised %s", channel.name, where, text, exc_info=error)
            channel.metrics.callback_errors[channel.name, edge.name] += 1
        finally:
            edge.worker = None
            worker.rest()
            edge.ended.set()

    def _limit(self, edge: Edge) -> float:
        """How long the edge's callback may run, in seconds."""
        settings = self._channel.settings
        is_over = self._queue or not self._channel.size()
        if edge.name == "on_first_open" and is_over:
            edge.is_in_grace = settings.grace_period < settings.request_timeout
            return min(settings.request_timeout, settings.grace_period)
        return settings.request_timeout
