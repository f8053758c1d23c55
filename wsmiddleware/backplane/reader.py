"""The reading link: only read, by its keeper's thread, which looks names up and hands on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from struct import Struct

from .engine import LinkDown, Subject
from .line import Line, pack
from .supervisor import Keeper, Todo, Watch
from .trouble import LineLost, Refused
from .writer import Writer

__all__ = ["Reader"]

#: Names in one SUBSCRIBE.
_NAMES = 1000
#: Seconds that it waits for bytes before it looks after itself.
_TICK = 0.5
#: Seconds for which it goes on before others get their turn.
_TURN = 0.005
_PROBE = Struct(">cd")


class Reader:
    """`subscribe` has one caller at a time; what is given to it is called by the keeper's thread.

    `arrived` and `subscribed` are for subjects, `own` is for all other channels.
    """

    def __init__(
        self,
        connect: Callable[[], Line],
        inbox: bytes,
        writer: Writer,
        opened: Callable[[], None],
        lost: Callable[[str], None],
        arrived: Callable[[Subject, bytes], None],
        subscribed: Callable[[Subject], None],
        own: Callable[[bytes, bytes], None],
    ) -> None:
        self._inbox, self._writer = inbox, writer
        self._tell_opened, self._tell_lost = opened, lost
        self._arrived, self._subscribed, self._own = arrived, subscribed, own
        self._watch = Watch()
        self.keeper = Keeper("reading", self._watch, connect, self._serve, self._opened, self._lost)
        self._send_lock = threading.Lock()
        self._line: Line | None = None
        #: By the name of the channel: what was subscribed to on this line.
        self._subjects: dict[bytes, Subject] = {}
        #: The last probe's round trip in seconds; `None` before there was one.
        self.lag: float | None = None

    @property
    def is_open(self) -> bool:
        """It works, as far as is known."""
        return self._line is not None

    def stop(self) -> None:
        """Close it, soon."""
        self.keeper.stop()
        if (line := self._line) is not None:
            with contextlib.suppress(LineLost):
                self._send(line, [pack(b"PING")])  # its answer wakes the thread

    def forget(self) -> None:
        """In a forked child: let go of the parent's connection."""
        if self._line is not None:
            self._line.forget()

    def subscribe(self, add: dict[bytes, Subject], drop: Sequence[bytes]) -> None:
        """By the names of channels. Raises `LinkDown`."""
        line, subjects = self._line, self._subjects
        if line is None:
            raise LinkDown("the reading link is not open")
        subjects.update(add)
        for name in drop:
            subjects.pop(name, None)
        commands = []
        for word, names in ((b"SUBSCRIBE", list(add)), (b"UNSUBSCRIBE", list(drop))):
            for start in range(0, len(names), _NAMES):
                commands.append(pack(word, *names[start : start + _NAMES]))
        try:
            self._send(line, commands)
        except LineLost as exc:
            raise LinkDown(str(exc)) from exc

    def _send(self, line: Line, commands: Sequence[bytes]) -> None:
        with self._send_lock:
            line.send(commands)

    # -- the keeper's thread -----------------------------------------------------------------------

    def _opened(self, line: Line) -> None:
        line.listen(_TICK)
        self._subjects = {}
        self._line = line
        self._tell_opened()

    def _lost(self, reason: str) -> None:
        self._line = None
        self._tell_lost(reason)

    def _serve(self, line: Line) -> None:
        turn = time.monotonic()
        while not self.keeper.is_stopping:
            replies, has_come = line.receive()
            now = time.monotonic()
            if not has_come:
                self._look_after(line, now)
                continue
            self._watch.heard(now)
            for reply in replies:
                self._take(reply)
            if now - turn > _TURN:
                turn = now
                time.sleep(0)

    def _look_after(self, line: Line, now: float) -> None:
        todo = self._watch.todo(now)
        if todo is Todo.CUT:
            raise LineLost("it is deaf: not even a probe came back")
        if todo is Todo.PROBE:
            # To ourselves: that shows that publications come, which an answer to PING would not.
            probe = pack(b"PUBLISH", self._inbox, _PROBE.pack(b"P", now))
            if not (self._writer.is_open and self._writer.run(probe)):
                self._send(line, [pack(b"PING")])
            self._watch.probed(now)

    def _take(self, reply: object) -> None:
        if isinstance(reply, Refused):
            raise LineLost(str(reply))  # only what we have sent is answered here
        if not isinstance(reply, list):
            return
        kind, name, data = reply[0], reply[1], reply[-1]
        subject = self._subjects.get(name)
        if kind == b"message":
            if subject is not None:
                self._arrived(subject, data)
            elif name == self._inbox and data[:1] == b"P" and len(data) == _PROBE.size:
                self.lag = time.monotonic() - _PROBE.unpack(data)[1]
            else:
                self._own(name, data)
        elif kind == b"subscribe" and subject is not None:
            self._subscribed(subject)
