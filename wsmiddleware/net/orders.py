"""What native threads ask of an object that belongs to a reactor: done there, one by one, in order.

Unlike `Reactor.defer`, what is asked may block, for as long as it takes: the threads that ask for
more wait meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import monkey

from wsmiddleware.exceptions import SlowConsumerError, WebSocketError

if TYPE_CHECKING:
    from wsmiddleware.net.pool import Worker
    from wsmiddleware.net.reactor import Reactor

__all__ = ["Orders"]

_log = logging.getLogger("websocket")

# Native ones: the calling thread waits, and need not have a hub.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_allocate_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")

#: Seconds between two looks of a thread that waits; only those of a peer that is behind do.
_INTERVAL = 0.002


class Orders:
    """A queue of calls, bounded in bytes. `on_error` gets a call's `WebSocketError`."""

    __slots__ = ("_is_served", "_limit", "_lock", "_on_error", "_queue", "_reactor", "_size")

    def __init__(
        self, reactor: Reactor, limit: int, on_error: Callable[[WebSocketError], None]
    ) -> None:
        self._reactor = reactor
        self._limit = limit
        self._on_error = on_error
        self._queue: list[tuple[Callable[..., None], tuple[Any, ...], int]] = []
        self._size = 0
        self._lock = _allocate_lock()
        self._is_served = False

    def put(
        self, function: Callable[..., None], args: tuple[Any, ...], size: int, timeout: float
    ) -> None:
        """Have ``function(*args)`` called; `size` is what it holds, in bytes. For native threads.

        Blocks the thread while the limit is reached, `SlowConsumerError` after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self._take_in(function, args, size):
            if time.monotonic() > deadline:
                raise SlowConsumerError(f"{self._size} bytes wait since {timeout:g} s")
            _sleep(_INTERVAL)
        self._reactor.defer(self._start)

    def _take_in(self, function: Callable[..., None], args: tuple[Any, ...], size: int) -> bool:
        with self._lock:
            if size and self._size >= self._limit:
                return False
            self._size += size
            self._queue.append((function, args, size))
            return True

    def _start(self) -> None:
        if not self._is_served:
            self._is_served = True
            self._reactor.pool.submit(self._serve)

    def _serve(self, worker: Worker) -> None:
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
                    with self._lock:
                        self._size -= size
        finally:
            self._is_served = False
