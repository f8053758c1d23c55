"""The writing link: whatever is asked of Redis goes this way, one pipeline after the other.

Its `Keeper` keeps it open and warm, and runs what the reading link asks for: probes, answers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

from .engine import TIMEOUT, LinkDown, Subject
from .line import Line
from .supervisor import Keeper, Todo, Watch
from .trouble import LineLost, Refused, Remedy

__all__ = ["Writer"]

#: Seconds of idleness after which it is pinged: shorter than the `timeout` that servers have.
_WARM = 2.0
#: Seconds of idleness after which it is looked at before it is used.
_STALE = 0.2
#: Errands that may wait.
_MAX_ERRANDS = 1000


class Writer:
    """For any thread. `opened` and `lost` are told in order, by the keeper's."""

    def __init__(
        self,
        connect: Callable[[], Line],
        ping: bytes,
        opened: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._ping, self._tell_opened = ping, opened
        self._watch = Watch(_WARM)
        self.keeper = Keeper("writing", self._watch, connect, self._serve, self._opened, lost)
        self._start_lock = threading.Lock()
        self._is_started = False
        #: Who holds it may send, and read the replies.
        self._lock = threading.Lock()
        self._line: Line | None = None
        #: What is known of subjects on this connection: another set for each.
        self.session: set[Subject] = set()
        self._reason = "it is not connected yet"
        self._is_open = threading.Event()
        self._errands: queue.Queue[list[bytes] | None] = queue.Queue(_MAX_ERRANDS)

    @property
    def is_open(self) -> bool:
        """It works, as far as is known."""
        return self._line is not None

    def start(self) -> None:
        """Begin to connect; a second call does nothing."""
        with self._start_lock:
            if not self._is_started:
                self._is_started = True
                self.keeper.start()

    def wait(self, timeout: float) -> bool:
        """Wait until it is open; False when it is not in time."""
        self.start()
        return self._is_open.wait(timeout)

    def stop(self) -> None:
        """Close it, soon."""
        self.keeper.stop()
        self._wake()

    def forget(self) -> None:
        """In a forked child: let go of the parent's connection."""
        if self._line is not None:
            self._line.forget()

    def call(
        self,
        commands: Sequence[bytes],
        timeout: float = TIMEOUT,
        session: set[Subject] | None = None,
    ) -> list[object]:
        """Send, and give all the replies; with `session` only on the connection that has it.

        Raises `LinkDown` where nothing was sent, `LineLost` where some of it may have been.
        """
        self.start()
        if timeout <= 0 or not self._lock.acquire(timeout=timeout):
            raise LinkDown("the writing link is busy")
        try:
            line = self._fresh()
            if session is not None and session is not self.session:
                raise LinkDown("it was connected anew")
            try:
                replies = line.call(commands, timeout)
            except BaseException as exc:
                self._drop(line, str(exc))
                raise
            for reply in replies:
                if isinstance(reply, Refused) and reply.remedy is Remedy.LEAVE:
                    self._drop(line, str(reply))
                    break
            return replies
        finally:
            self._lock.release()

    def ask(
        self,
        commands: Sequence[bytes],
        timeout: float = TIMEOUT,
        session: set[Subject] | None = None,
    ) -> list[object]:
        """As `call`, for what may be lost: raises `LinkDown` only."""
        try:
            return self.call(commands, timeout, session)
        except LineLost as exc:
            raise LinkDown(str(exc)) from exc

    def run(self, *commands: bytes) -> bool:
        """Have it done by the keeper, and do not wait; False where too much waits already."""
        try:
            self._errands.put_nowait(list(commands))
        except queue.Full:
            return False
        return True

    def _fresh(self) -> Line:
        line = self._line
        if line is None:
            raise LinkDown(self._reason)
        if time.monotonic() - line.used_at > _STALE and line.is_stale():
            self._drop(line, "closed by the other side")
            raise LinkDown(self._reason)
        return line

    def _drop(self, line: Line, reason: str) -> None:
        """The line is of no use any more; its keeper is told."""
        if self._line is line:
            self._line, self._reason = None, reason
            self._is_open.clear()
            line.close()
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(queue.Full):
            self._errands.put_nowait(None)

    # -- the keeper's thread -----------------------------------------------------------------------

    def _opened(self, line: Line) -> None:
        self.session = set()
        self._line = line
        self._is_open.set()
        self._tell_opened()

    def _serve(self, line: Line) -> None:
        try:
            while not self.keeper.is_stopping:
                errand = None
                with contextlib.suppress(queue.Empty):
                    errand = self._errands.get(timeout=self._watch.due_in(time.monotonic()))
                if self._line is not line:
                    raise LineLost(self._reason)
                self._watch.heard(line.used_at)
                if errand is None and self._watch.todo(time.monotonic()) is Todo.PROBE:
                    errand = [self._ping]
                if errand is not None:
                    # What is lost with it is seen at the next turn.
                    with contextlib.suppress(LinkDown, LineLost):
                        self.call(errand)
        finally:
            with self._lock:
                self._drop(line, "closed")
