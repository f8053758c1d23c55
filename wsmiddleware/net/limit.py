"""How long a greenlet may wait for its peer: for a request, for the next one, for room to send.

All waits of one kind may last equally long, so whoever began first is due first: a wait costs an
entry in a dict, and one timer serves ten thousand of them. A `gevent.Timeout` for each is 5 µs.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gevent
import gevent.ssl

from wsmiddleware.net.reactor import step_for
from wsmiddleware.net.turnstile import Turnstile

try:
    import fcntl
    import termios

    _CAN_ASK = True
except ImportError:  # Windows
    _CAN_ASK = False

__all__ = ["Late", "Limit", "Stalled", "send_all"]

#: How many waits are ended in one turn of the loop: 2 ms.
_THROWS = 64
#: Bytes of a response given to a TLS socket at once: it reports nothing before all are sent.
_PIECE = 65536


class Late(BaseException):
    """Thrown into a greenlet that has waited for its peer for too long."""


class Stalled(BrokenPipeError):
    """The peer has read nothing for too long: for the application it has gone."""


class Limit:
    """Ends the waits of one kind after `seconds`. For the greenlets of one hub's thread.

    The clock counts turns of the loop that are a step apart. So it stands still while the loop is
    held up, by a callback or because the process was stopped. And the loop looks at the sockets
    once more before the turn that ends a wait: what came in time is read first.
    """

    __slots__ = ("_loop", "_rest", "_step", "_steps", "_timer", "_turn", "_waiting", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._step = step_for(seconds)
        # One for the step that runs when a wait begins, one for the look at the sockets.
        self._steps = math.ceil(seconds / self._step) + 2
        self._turn = 0
        self._loop: Any = None
        self._timer: Any = None
        #: Goes on in the next turn of the loop, where one turn had too many waits to end.
        self._rest: Any = None
        self._waiting: OrderedDict[Any, tuple[int, Callable[[], bool] | None]] = OrderedDict()

    def begin(self, has_moved: Callable[[], bool] | None = None) -> None:
        """The calling greenlet begins to wait; one that waits already goes on.

        `Late` is thrown into it when its time is up, unless `has_moved` then says that the peer
        has done something since it was last asked: its time begins anew.
        """
        self._waiting.setdefault(gevent.getcurrent(), (self._turn + self._steps, has_moved))
        if self._timer is None:
            self._start()

    def end(self) -> None:
        """The calling greenlet waits no more. To be called right after the wait."""
        self._waiting.pop(gevent.getcurrent(), None)

    def drop_oldest(self) -> bool:
        """Throw `Late` at whoever has waited longest; False when nobody waits. Hub only."""
        if not self._waiting:
            return False
        self._waiting.popitem(last=False)[0].throw(Late())
        return True

    def forked(self) -> None:
        """In a forked child: those who wait are the parent's."""
        self._waiting.clear()
        for timer in (self._timer, self._rest):
            if timer is not None:
                timer.close()
        self._timer = self._rest = None

    def _start(self) -> None:
        self._loop = gevent.get_hub().loop
        self._timer = self._loop.timer(self._step, self._step, ref=False)
        self._timer.start(self._tick)

    def _tick(self) -> None:
        self._turn += 1
        if not self._waiting:
            # Not as soon as nobody waits: starting a timer for each connection costs too much.
            self._timer.close()
            self._timer = None
        elif self._rest is None:
            self._throw()

    def _throw(self) -> None:
        """End the waits that are due: in slices, as ten thousand at once would hold the loop up."""
        for _ in range(_THROWS):
            waiter, (due, has_moved) = next(iter(self._waiting.items()), _NOBODY)
            if due > self._turn:
                return
            del self._waiting[waiter]
            if has_moved is not None and has_moved():
                self._waiting[waiter] = (self._turn + self._steps, has_moved)
            else:
                waiter.throw(Late())
        self._rest = self._loop.timer(0, ref=False)
        self._rest.start(self._throw_rest)

    def _throw_rest(self) -> None:
        self._rest.close()
        self._rest = None
        self._throw()


_NOBODY: tuple[Any, tuple[float, None]] = (None, (math.inf, None))


def send_all(sock: Any, data: Any, limit: Limit, flow: Turnstile) -> None:
    """Send all of `data`; block as long as the peer goes on to take some of it.

    One that takes it as fast as it is sent is sent no more than `flow` lets through.

    Raises `Stalled` when it has taken nothing for as long as `limit` says, and resets the
    connection then; `OSError` when it has gone. In the greenlet that has the socket to itself.
    """
    view = memoryview(data)
    if not isinstance(sock, gevent.ssl.SSLSocket):
        # Nearly always there is room for all of it.
        with contextlib.suppress(BlockingIOError):
            view = view[sock.send(view, 0, 0.0) :]
    while view:
        flow.go_through()
        limit.begin(_Progress(sock))
        try:
            view = view[sock.send(view[:_PIECE]) :]
        except Late:
            with contextlib.suppress(OSError):
                # Else the kernel would keep unsent bytes for a quarter of an hour.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            why = f"the peer has taken nothing for {limit.seconds:g} s"
            raise Stalled(errno.EPIPE, why) from None
        finally:
            limit.end()


class _Progress:
    """Whether a peer has taken something of what was sent since the last call.

    The kernel knows. A socket counts as writable again only when much has been taken, so that a
    slow reader is for minutes like one that does not read.
    """

    __slots__ = ("_left", "_sock")

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._left = _unsent(sock)

    def __call__(self) -> bool:
        before, self._left = self._left, _unsent(self._sock)
        return self._left < before


def _unsent(sock: Any) -> int:
    """Bytes that the peer's kernel has not acknowledged; 0 where ours does not say."""
    if not _CAN_ASK:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # ValueError: it has been closed
        return 0
