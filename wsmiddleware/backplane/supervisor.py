"""When a link is opened, probed and given up: a state machine, and a thread that does as it says.

The thread is a greenlet wherever gevent has patched the process; nothing here imports gevent.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar

from wsmiddleware.log import log as _log

from .trouble import LineLost, Trouble

__all__ = ["DEAF_AFTER", "MAX_DELAY", "MIN_DELAY", "QUIET_AFTER", "Keeper", "Todo", "Watch"]

#: Seconds before the first try again, and the longest between two; each with jitter.
MIN_DELAY, MAX_DELAY = 0.1, 5.0
#: Seconds between two tries where an operator has to mend something.
SLOW_DELAY = 30.0
#: Seconds of silence after which a link is probed, and after which more it is deaf.
QUIET_AFTER, DEAF_AFTER = 5.0, 5.0


class Todo(Enum):
    """What is to be done with a link now."""

    NOTHING = "nothing"
    CONNECT = "connect"
    PROBE = "probe"
    CUT = "cut"


class Watch:
    """What one link needs, by what has been told of it. Knows no clock: every call has the time."""

    __slots__ = (
        "_dice",
        "_heard_at",
        "_last_delay",
        "_opened_at",
        "_probed_at",
        "_quiet_after",
        "_retry_at",
    )

    def __init__(
        self, quiet_after: float | None = None, dice: Callable[[], float] = random.random
    ) -> None:
        self._quiet_after = QUIET_AFTER if quiet_after is None else quiet_after
        self._dice = dice
        self._last_delay = 0.0
        self._retry_at = 0.0
        #: `None` while it is not open.
        self._opened_at: float | None = None
        self._heard_at = 0.0
        #: `None` while no probe is under way.
        self._probed_at: float | None = None

    @property
    def is_open(self) -> bool:
        """It works, as far as is known."""
        return self._opened_at is not None

    def todo(self, now: float) -> Todo:
        """What is due."""
        if self._opened_at is None:
            return Todo.CONNECT if now >= self._retry_at else Todo.NOTHING
        if self._probed_at is not None:
            return Todo.CUT if now >= self._probed_at + DEAF_AFTER else Todo.NOTHING
        return Todo.PROBE if now >= self._heard_at + self._quiet_after else Todo.NOTHING

    def due_in(self, now: float) -> float:
        """Seconds until `todo` may say something else than nothing, if nothing happens."""
        if self._opened_at is None:
            at = self._retry_at
        elif self._probed_at is not None:
            at = self._probed_at + DEAF_AFTER
        else:
            at = self._heard_at + self._quiet_after
        return max(0.0, at - now)

    def opened(self, now: float) -> None:
        """It is open."""
        self._opened_at = self._heard_at = now
        self._probed_at = None

    def heard(self, now: float) -> None:
        """A byte came: it lives."""
        self._heard_at = now
        self._probed_at = None

    def probed(self, now: float) -> None:
        """A probe is on its way: what comes now is its answer, or something as good."""
        self._probed_at = now

    def lost(self, now: float, *, is_loud: bool = False) -> float:
        """It is open no more, or could not be opened; gives the delay before the next try."""
        # A server that takes everybody in and throws everybody out is not asked ever faster.
        if self._opened_at is not None and now - self._opened_at >= 2 * self._last_delay:
            self._last_delay = 0.0
        self._opened_at = self._probed_at = None
        self._last_delay = min(MAX_DELAY, self._last_delay * 2 or MIN_DELAY)
        longest = SLOW_DELAY if is_loud else self._last_delay
        # Jitter keeps the nodes of a cluster from coming back in one instant.
        delay = longest * (0.5 + self._dice() / 2)
        self._retry_at = now + delay
        return delay


class _Closeable(Protocol):
    def close(self) -> None: ...


LineT = TypeVar("LineT", bound=_Closeable)


class Keeper(Generic[LineT]):
    """Keeps one link open, in a thread of its own, from `start` to `stop`.

    `connect` opens a line or raises `Trouble`; `serve(line)` uses it until it raises `LineLost` or
    the keeper is stopped; `opened` and `lost(reason)` are told in order.
    """

    def __init__(
        self,
        name: str,
        watch: Watch,
        connect: Callable[[], LineT],
        serve: Callable[[LineT], None],
        opened: Callable[[LineT], None],
        lost: Callable[[str], None],
    ) -> None:
        self._name, self.watch = name, watch
        self._connect, self._serve, self._opened, self._lost = connect, serve, opened, lost
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._told = ""
        #: How often it was opened.
        self.openings = 0
        #: Why it could not be opened the last time; "" when it could.
        self.trouble: Trouble | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(
            target=self._run, name=f"wsmiddleware {self._name}", daemon=True
        )
        self._thread.start()

    @property
    def is_stopping(self) -> bool:
        """True from `stop` on."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """No new line from now on; `serve` is to end by itself."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                line = self._connect()
            except Trouble as exc:
                self._failed(exc)
                continue
            except Exception as exc:
                _log.exception(
                    "the backplane's %s link: an error of wsmiddleware's own", self._name
                )
                self._failed(Trouble(repr(exc)))
                continue
            self._use(line)

    def _use(self, line: LineT) -> None:
        self.trouble, self._told = None, ""
        self.openings += 1
        self.watch.opened(time.monotonic())
        reason = "closed"
        try:
            self._opened(line)
            self._serve(line)
        except LineLost as exc:
            reason = str(exc)
        except Exception as exc:
            _log.exception("the backplane's %s link: an error of wsmiddleware's own", self._name)
            reason = repr(exc)
        finally:
            line.close()
        delay = self.watch.lost(time.monotonic())
        if not self._stopping.is_set():
            _log.warning("backplane: the %s link is lost (%s)", self._name, reason)
        self._lost(reason)
        self._stopping.wait(delay)

    def _failed(self, trouble: Trouble) -> None:
        self.trouble = trouble
        delay = self.watch.lost(time.monotonic(), is_loud=trouble.is_loud)
        # One line for each cause, however often it is tried.
        if self._told != (text := str(trouble)):
            self._told = text
            level = _log.error if trouble.is_loud else _log.warning
            level("backplane: no %s link: %s; it is tried again", self._name, text)
        self._stopping.wait(delay)
