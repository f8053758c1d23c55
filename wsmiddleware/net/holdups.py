"""Finds callbacks that hold up the loop: they compute, or wait in code that gevent cannot see.

Nobody else is served meanwhile, and no other sign tells why. Timing every callback would cost as
much as the C extension saves, and would miss a callback that blocks first and computes afterwards.
So a native thread looks several times a second at the stack of the loop's thread, as a profiler
does. It runs while the reactor's clock runs. A look takes 10 µs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from gevent import monkey
from gevent.hub import Hub

from wsmiddleware.log import log as _log

__all__ = ["HoldUps", "Watched"]

_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
_start_thread: Callable[..., object] = monkey.get_original("_thread", "start_new_thread")

#: Seconds of a hold-up that is worth a line of the log; seconds between two looks.
_LIMIT = 0.1
_INTERVAL = 0.05
#: Seconds until the log names the same callback again.
_NEWS = 60.0

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: The files of this package that call the user's callbacks.
_DOORS = tuple(
    os.path.join(_PACKAGE, *name.split("/"))
    for name in (
        *("admission.py", "net/pool.py", "net/stream.py", "listeners/scope.py"),
        *("listeners/edges.py", "listeners/invoke.py", "listeners/notify.py"),
    )
)
#: The attribute of a hub that has its `HoldUps`.
_NAME = "wsmiddleware_hold_ups"


class Watched(Protocol):
    """What `HoldUps` needs of a reactor."""

    #: Gives a value that changes when a callback ends and another begins.
    progress: Callable[[], object]

    def defer(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` in the loop's thread."""


class HoldUps:
    """Watches the thread of one hub while reactors ask for it; warns there, after the hold-up.

    All methods but `_run` are for that thread.
    """

    def __init__(self, hub: Hub, thread_id: int) -> None:
        self._loop = hub.loop
        self._thread_id = thread_id
        #: Replaced, never changed: the watching thread reads it.
        self._reactors: tuple[weakref.ref[Watched], ...] = ()
        #: Given to the thread that watches now; an older thread sees another one and ends.
        self._token: object = None
        #: The monotonic clock minus the loop's own time.
        self._offset = 0.0
        #: By name of a callback: when the log may name it again, and how often it was left out.
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
            try:
                now, turned = time.monotonic(), self._loop.now() + self._offset
            except ValueError:  # the loop has been destroyed
                return
            found = _callback(self._thread_id) if now - turned > _INTERVAL / 2 else None
            progress = [reactor.progress() for reactor in reactors]
            wait = look.at(now, due, turned, progress if found else None)
            if found and look.is_news():
                reactors[0].defer(self.tell, *found, look.since)
            due = time.monotonic() + wait
            # Not kept over the sleep: a reactor must not be freed in this thread.
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
    """What the last look saw, to compare the next one with."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._progress: object = None
        #: When the callback that is seen now has begun, as far as known.
        self.since = 0.0
        #: When the last look was; when this callback was seen first.
        self._last = self._seen = 0.0
        self._is_due = False
        self._turn = _Turn()

    def at(self, now: float, due: float, turned: float, progress: object) -> float:
        """Compare with the last look; give the seconds until the next one.

        The look was to be at `due` and is at `now`: later where code in C kept the GIL. `turned` is
        when the loop looked at its sockets last. `progress` is `None` between callbacks.
        """
        before, self._progress = self._progress, progress
        last, self._last = self._last, now
        if progress is None:
            return _INTERVAL
        if progress != before or self._turn.ended:
            # After the callback that was seen last, if the loop has not turned since.
            self.since = max(turned, last if before else 0.0, self._turn.ended)
            # Code in C may have kept us from looking when we were due: it has been there since.
            self._seen = due
            self._is_due = True
            self._turn = _Turn()
            # Safe: that thread is in Python code, so not in the loop's list of callbacks.
            self._loop.run_callback(self._turn)
        return max(_INTERVAL / 10, min(_INTERVAL, self.since + _LIMIT - now))

    def is_news(self) -> bool:
        """True once for each callback that was seen twice and has run for too long."""
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
    """The name of the callback that a thread is in, and the file and line where it is."""
    frames = list(_frames(thread_id))
    for at in range(len(frames) - 2, -1, -1):
        if _is_theirs(frames[at]) and frames[at + 1].f_code.co_filename in _DOORS:
            inner = [frame for frame in frames[: at + 1] if _is_theirs(frame)]
            # Below the decorators that are around it.
            named = [frame for frame in inner if frame.f_code.co_name.startswith("on_")]
            callback = (named or inner)[-1]
            file = callback.f_code.co_filename
            line = next(each for each in inner if each.f_code.co_filename == file)
            return _name(callback), f"{file}, line {line.f_lineno}"
    return None


def _frames(thread_id: int) -> Iterator[FrameType]:
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_theirs(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_PACKAGE)


def _name(callback: FrameType) -> str:
    code = callback.f_code
    name: str | None = getattr(code, "co_qualname", None)
    if name is not None:
        return name.rpartition("<locals>.")[2]
    # Python 3.10 does not know it: what it is a method of tells.
    owner = callback.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    cls = owner if isinstance(owner, type) else type(owner)
    return f"{cls.__name__}.{code.co_name}" if hasattr(cls, code.co_name) else code.co_name
