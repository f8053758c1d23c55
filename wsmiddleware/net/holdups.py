"""Who holds the loop: a callback that computes, or that waits in code which gevent cannot see.

Nobody else is served meanwhile, and nothing tells why. A clock around every callback would cost
what the C extension saves, and could not see a callback that blocks first and computes then. So a
native thread looks at what the loop's thread is at, some times a second, as a profiler does. It
runs while the reactor's clock does, and takes 10 µs a look.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, Protocol

from gevent import monkey
from gevent.hub import Hub

from wsmiddleware.log import log as _log

__all__ = ["HoldUps", "Watched"]

_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_start_thread: Callable[..., object] = monkey.get_original("_thread", "start_new_thread")

#: What is worth a line, in seconds; and the seconds between two looks.
_LIMIT = 0.1
_INTERVAL = 0.05
#: Seconds until the same callback is told of again.
_NEWS = 60.0

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Which files of ours call the user's callbacks.
_DOORS = tuple(
    os.path.join(_PACKAGE, *name.split("/"))
    for name in (
        *("admission.py", "net/pool.py", "net/stream.py", "listeners/scope.py"),
        *("listeners/edges.py", "listeners/invoke.py", "listeners/notify.py"),
    )
)
#: Where a hub keeps its own.
_NAME = "wsmiddleware_hold_ups"


class Watched(Protocol):
    """What is asked of a reactor."""

    #: What differs once a callback has ended and another has begun.
    progress: Callable[[], object]

    def defer(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` in the loop's thread."""


class HoldUps:
    """Watches the thread of one hub while reactors ask for it, and warns there, behind the hold.

    All but `_run` is for that thread.
    """

    def __init__(self, hub: Hub, thread_id: int) -> None:
        self._loop = hub.loop
        self._thread_id = thread_id
        #: Never changed, but replaced: the other thread reads it.
        self._reactors: tuple[weakref.ref[Watched], ...] = ()
        #: What the thread that looks now was started with.
        self._token: object = None
        #: The clock's time less the loop's.
        self._offset = 0.0
        #: By the name of a callback: when it may be told of again, and how often it was not.
        self._told: dict[str, tuple[float, int]] = {}

    @classmethod
    def of(cls, hub: Hub, thread_id: int) -> HoldUps:
        """The hub's own: two middlewares on one loop are watched once."""
        found: HoldUps | None = vars(hub).get(_NAME)
        if found is None:
            found = vars(hub)[_NAME] = cls(hub, thread_id)
        return found

    def start(self, reactor: Watched) -> None:
        """Look from now on, for this one too."""
        others = self._others(reactor)
        self._reactors = (*others, weakref.ref(reactor))
        if not others:
            self._token = token = object()
            # Where the system has no thread for it, who holds the loop stays unknown.
            with contextlib.suppress(RuntimeError):
                _start_thread(self._run, (token,))

    def stop(self, reactor: Watched) -> None:
        """Look no more for this one."""
        self._reactors = self._others(reactor)
        if not self._reactors:
            self._token = None

    def _others(self, reactor: Watched) -> tuple[weakref.ref[Watched], ...]:
        return tuple(ref for ref in self._reactors if ref() not in (None, reactor))

    def set_clock(self) -> None:
        """Compare the clock with the loop's own time; again at times, should one be put right."""
        self._loop.update_now()
        self._offset = time.monotonic() - self._loop.now()

    def _run(self, token: object) -> None:
        look, due = _Look(self._loop), time.monotonic()
        while True:
            _sleep(max(0.0, due - time.monotonic()))
            reactors = [reactor for ref in self._reactors if (reactor := ref()) is not None]
            if not reactors or self._token is not token:
                return
            now, turned = time.monotonic(), self._loop.now() + self._offset
            found = _callback(self._thread_id) if now - turned > _INTERVAL / 2 else None
            progress = [reactor.progress() for reactor in reactors]
            wait = look.at(now, due, turned, progress if found else None)
            if found and look.is_news():
                reactors[0].defer(self.tell, *found, look.since)
            due = time.monotonic() + wait
            # What is kept for the length of a sleep would end in this thread.
            reactors.clear()

    def tell(self, name: str, place: str, since: float) -> None:
        """Warn, at a bounded rate. In the loop's thread, right behind the callback's end."""
        now = time.monotonic()
        next_time, count = self._told.get(name, (0.0, 0))
        if now < next_time:
            self._told[name] = next_time, count + 1
            return
        self._told[name] = now + _NEWS, 0
        _log.warning(
            "%s held the loop for %.2f s%s: nobody else was served meanwhile. It was at %s. Pass "
            "computations to gevent.get_hub().threadpool, and wait with what gevent has patched",
            name,
            now - since,
            f" ({count} times more since this was said last)" if count else "",
            place,
        )


class _Look:
    """What the last look has seen, for the next one to compare with."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._progress: object = None
        #: When what is seen now has begun, as far as we know.
        self.since = 0.0
        #: When we looked last, and saw this first.
        self._last = self._seen = 0.0
        self._is_due = False
        self._turn = _Turn()

    def at(self, now: float, due: float, turned: float, progress: object) -> float:
        """Look, at `due` or later where nobody let us; the seconds until the next look.

        `turned` is when the loop looked at its sockets last, `progress` is None between callbacks.
        """
        before, self._progress = self._progress, progress
        last, self._last = self._last, now
        if progress is None:
            return _INTERVAL
        if progress != before or self._turn.ended:
            # Behind the other one that was seen last, if the loop has not turned since.
            self.since = max(turned, last if before else 0.0, self._turn.ended)
            # Code in C may have kept us from looking when we were due: it has been there since.
            self._seen = due
            self._is_due = True
            self._turn = _Turn()
            # Safe, for that thread is in Python code: not at the loop's list of callbacks.
            self._loop.run_callback(self._turn)
        return max(_INTERVAL / 10, min(_INTERVAL, self.since + _LIMIT - now))

    def is_news(self) -> bool:
        """True once, for what has been seen twice and has taken too long."""
        is_held = self._last - self._seen >= _INTERVAL * 0.9 and self._last - self.since >= _LIMIT
        if not (self._is_due and is_held):
            return False
        self._is_due = False
        return True


class _Turn:
    """Called by the loop as soon as it gets its turn."""

    def __init__(self) -> None:
        self.ended = 0.0

    def __call__(self) -> None:
        self.ended = time.monotonic()


def _callback(thread_id: int) -> tuple[str, str] | None:
    """The callback that a thread is in, by name, and the line of its file where it is."""
    frames = list(_frames(thread_id))
    for at in range(len(frames) - 2, -1, -1):
        if _is_theirs(frames[at]) and frames[at + 1].f_code.co_filename in _DOORS:
            inner = [frame for frame in frames[: at + 1] if _is_theirs(frame)]
            # Below the decorators that are around it.
            named = [frame for frame in inner if frame.f_code.co_name.startswith("on_")]
            code = (named or inner)[-1].f_code
            line = next(each for each in inner if each.f_code.co_filename == code.co_filename)
            return _name(code), f"{code.co_filename}, line {line.f_lineno}"
    return None


def _frames(thread_id: int) -> Iterator[FrameType]:
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_theirs(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_PACKAGE)


def _name(code: CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)  # from Python 3.11 on
    return name.rpartition("<locals>.")[2]
