"""What a node does with an engine, as little of it as its promises need."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Iterator

from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import (
    Engine,
    Entry,
    History,
    Link,
    LinkDown,
    Outcome,
    Publication,
    ReadRequest,
    Status,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, ForeignEnvelope, Kind, decode, encode
from wsmiddleware.backplane.redis import RedisEngine

__all__ = ["SUBJECT", "Follower", "Producer", "message", "redis_engine"]

SUBJECT = Subject("chat", "lobby")


def message(text: str, subject: Subject = SUBJECT) -> bytes:
    """An envelope with a text."""
    return encode(Envelope(subject, Kind.TEXT, text.encode()))


class Follower:
    """A receiver that follows one subject: what it was given, and how often it was cut or reset.

    With a history, what is missing is read; without, it is not known.
    """

    def __init__(self, history: History | None = None, subject: Subject = SUBJECT) -> None:
        self.history, self.subject = history, subject
        #: Texts, in the order in which they were delivered.
        self.texts: list[str] = []
        #: Of the subject's channel, what was no envelope.
        self.foreign: list[bytes] = []
        self.links: list[tuple[str, Link]] = []
        self.resets: list[str] = []
        self.live = threading.Event()
        self.epoch, self.offset = "", -1
        self._work: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def follow(self, engine: Engine, node: bytes = b"") -> None:
        """Begin."""
        self._engine = engine
        self._thread.start()
        engine.open(node or os.urandom(8), self)

    def end(self) -> None:
        """No more."""
        self._work.put(None)
        self._thread.join(10)

    # what the engine calls

    def opened(self, link: Link) -> None:
        self.links.append(("opened", link))
        self._work.put(("opened", b""))

    def lost(self, link: Link, reason: str) -> None:
        self.links.append(("lost", link))
        if link is Link.READING:
            self.live.clear()

    def subscribed(self, subject: Subject) -> None:
        self._work.put(("read", b""))

    def arrived(self, subject: Subject, data: bytes) -> None:
        self._work.put(("arrived", data))

    def asked(self, question: bytes) -> bytes | None:
        return b"answer to " + question if question != b"?" else None

    # its own thread

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            # What failed is done when the link is open again.
            with contextlib.suppress(LinkDown):
                self._do(*work)

    def _do(self, what: str, data: bytes) -> None:
        assert self._engine is not None
        if what == "opened":
            self._engine.subscribe([self.subject])
        elif what == "read":
            self.read()
            self.live.set()
        elif self.history is None:
            self._plain(data)
        else:
            position = decode(data).position
            assert position is not None
            if position.epoch == self.epoch and position.offset <= self.offset:
                return
            if position.epoch == self.epoch and position.offset == self.offset + 1:
                self._deliver(Entry(position.offset, data))
            else:
                self.read()

    def _plain(self, data: bytes) -> None:
        try:
            self.texts.append(decode(data).payload.decode())
        except ForeignEnvelope:
            self.foreign.append(data)

    def read(self) -> None:
        """Catch up with the stream."""
        if self.history is None:
            return
        assert self._engine is not None
        while True:
            since = max(0, self.offset)
            [reading] = self._engine.read([ReadRequest(self.subject, self.history, since)])
            if self.epoch and reading.epoch != self.epoch:
                shared = dict(reading.forks).get(self.epoch, -1)
                if self.offset > shared:
                    self.resets.append(f"had {self.offset}, shares {shared}")
                    self.offset = reading.top
            elif not self.epoch:
                self.offset = reading.top
            self.epoch = reading.epoch
            for entry in reading.entries:
                if entry.offset > self.offset:
                    if entry.offset != self.offset + 1:
                        self.resets.append(f"had {self.offset}, next is {entry.offset}")
                    self._deliver(entry)
            if self.offset >= reading.top or not reading.entries:
                return

    def _deliver(self, entry: Entry) -> None:
        self.texts.append(decode(entry.data).payload.decode())
        self.offset = entry.offset


class Producer:
    """Publishes texts in order, each until it is carried out, as a node does."""

    def __init__(
        self, engine: Engine, history: History | None, name: str = "", subject: Subject = SUBJECT
    ) -> None:
        self._engine, self._history, self._subject = engine, history, subject
        self._name = name or os.urandom(8).hex()
        self._numbers = itertools.count(1)
        #: Tries that were not carried out, by their status.
        self.failures: list[Outcome] = []

    def publish(self, *texts: str, patience: float = 20.0) -> None:
        """All of them; fails where that takes longer."""
        waiting = [
            Publication(
                *(self._subject, message(text, self._subject), self._history),
                *(self._name, next(self._numbers)),
            )
            for text in texts
        ]
        pause = threading.Event()
        for _ in range(int(patience / 0.02)):
            outcomes = self._engine.publish(waiting)
            self.failures += [one for one in outcomes if one.status is not Status.PUBLISHED]
            pairs = zip(waiting, outcomes, strict=True)
            waiting = [one for one, outcome in pairs if outcome.status is not Status.PUBLISHED]
            if not waiting:
                return
            pause.wait(0.02)
        raise AssertionError(f"not published: {self.failures[-1]}")


@contextlib.contextmanager
def redis_engine(url: str, prefix: str = "wsmiddleware") -> Iterator[RedisEngine]:
    """An engine, whose writing link is open."""
    engine = RedisEngine(Address.parse(url), prefix)
    try:
        assert engine.wait(10), engine.trouble
        yield engine
    finally:
        engine.close()
