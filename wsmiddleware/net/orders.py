"""Calls from native threads to an object of a reactor: run there, one by one, in order.

Unlike with `Reactor.defer` the called function may block for as long as it takes. Threads that want
more calls than the limit allows wait meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsmiddleware.exceptions import SlowConsumerError, WebSocketError
from wsmiddleware.log import log as _log
from wsmiddleware.net.underway import Underway, nap

if TYPE_CHECKING:
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor

__all__ = ["Orders"]


class Orders:
    """A queue of calls, bounded in bytes. `on_error` gets a call's `WebSocketError`."""

    __slots__ = ("_is_served", "_on_error", "_queue", "_reactor", "_underway")

    def __init__(
        self, reactor: Reactor, limit: int, on_error: Callable[[WebSocketError], None]
    ) -> None:
        self._reactor = reactor
        self._underway = Underway(limit)
        self._on_error = on_error
        self._queue: list[tuple[Callable[..., None], tuple[Any, ...], int]] = []
        self._is_served = False

    def put(
        self, function: Callable[..., None], args: tuple[Any, ...], size: int, timeout: float
    ) -> None:
        """Have ``function(*args)`` called; it counts as `size` bytes. For native threads.

        Blocks the thread while the limit is reached, `SlowConsumerError` after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._underway.add(size):
            if time.monotonic() > deadline:
                raise SlowConsumerError(f"{self._underway.size} bytes wait since {timeout:g} s")
            nap()
        self._queue.append((function, args, size))
        self._reactor.defer(self._start)

    def _start(self) -> None:
        if not self._is_served:
            self._reactor.pool.submit(self._serve)

    def _serve(self, worker: Worker) -> None:
        if self._is_served:
            return
        self._is_served = True
        try:
            while self._queue:
                function, args, size = self._queue.pop(0)
                try:
                    function(*args)
                except WebSocketError as exc:
                    self._on_error(exc)
                except Exception:
                    _log.exception("internal error in %r: please report it", function)
                finally:
                    self._underway.taken(size)
        finally:
            self._is_served = False
