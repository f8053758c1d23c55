"""The engine of one process: a bus in memory, and as many nodes on it as there are.

One thread only; nothing blocks. It breaks on request (`wsmiddleware.backplane.faults`); a time-out
that a fault brings about is answered at once.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .engine import (
    MAX_FORKS,
    SEQUENCE_TTL,
    Announcement,
    Answers,
    Entry,
    Fork,
    History,
    Link,
    LinkDown,
    Outcome,
    Position,
    Publication,
    Reading,
    ReadRequest,
    Receiver,
    Status,
    Subject,
)
from .envelope import stamp

__all__ = ["MemoryBus", "MemoryEngine"]

#: Seconds between two looks for what has expired.
_SWEEP = 60.0
#: Seconds for which a channel that was announced is known.
_ANNOUNCED_TTL = 30 * 24 * 3600.0
_AGAIN = Outcome(Status.AGAIN, reason="the link is down")


@dataclass(slots=True)
class _Epoch:
    """One line of history: it begins behind the offset `base`, which it shares with the last one.

    `serial` is the bus's count of writes at that moment.
    """

    name: str
    base: int
    serial: int


@dataclass(slots=True)
class _Kept:
    """An entry, when and by whom it was written."""

    entry: Entry
    time: float
    serial: int
    producer: str
    number: int


@dataclass(slots=True)
class _Stream:
    """The history of one subject."""

    line: int
    epochs: list[_Epoch]
    history: History
    top: int = 0
    kept: deque[_Kept] = field(default_factory=deque)
    #: The last number of each producer, and when.
    numbers: dict[str, tuple[int, float]] = field(default_factory=dict)
    used: float = 0.0

    @property
    def position(self) -> Position:
        return Position(self.epochs[-1].name, self.top)

    @property
    def forks(self) -> tuple[Fork, ...]:
        return tuple(Fork(old.name, new.base) for old, new in pairwise(self.epochs))

    def trim(self, now: float) -> None:
        """Let go what is too much or too old."""
        kept, history = self.kept, self.history
        while kept and (len(kept) > history.count or kept[0].time < now - history.ttl):
            kept.popleft()

    def is_repetition(self, publication: Publication, now: float) -> bool:
        """True when it, or a later one of its producer, was carried out already."""
        number, written = self.numbers.get(publication.producer, (0, now))
        return publication.number <= number and now - written <= SEQUENCE_TTL

    def rewind(self, serial: int, now: float) -> bool:
        """Forget what was written after `serial`; false when the whole stream was."""
        while self.kept and self.kept[-1].serial > serial:
            lost = self.kept.pop()
            self.top = lost.entry.offset - 1
            self.numbers[lost.producer] = (lost.number - 1, now)
        while self.epochs and self.epochs[-1].serial > serial:
            self.top = min(self.top, self.epochs.pop().base)
        return bool(self.epochs)


class MemoryBus:
    """What the nodes of one process share; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.engines: list[MemoryEngine] = []
        self.subscribers: dict[Subject, dict[MemoryEngine, None]] = {}
        self.streams: dict[Subject, _Stream] = {}
        self._announced: dict[str, tuple[History | None, float]] = {}
        #: Which life of the server it is; a stream of another one begins a new epoch.
        self.line = 0
        #: Writes so far.
        self.serial = 0
        #: Nothing is answered; what is sent meanwhile waits in `late`.
        self.is_hung = False
        self.late: list[Publication] = []
        self._swept = clock()

    def engine(self) -> MemoryEngine:
        """An engine for one more node."""
        return MemoryEngine(self)

    # -- what engines call --------------------------------------------------------------------

    def carry_out(self, publication: Publication) -> Outcome:
        """One publication, at once."""
        if publication.history is None:
            self.deliver(publication.subject, publication.data)
            return Outcome(Status.PUBLISHED)
        now = self.clock()
        stream = self.stream(publication.subject, publication.history)
        if stream.is_repetition(publication, now):
            return Outcome(Status.PUBLISHED, reason="a repetition")
        stream.numbers[publication.producer] = (publication.number, now)
        stream.top += 1
        self.serial += 1
        data = stamp(publication.data, stream.position)
        written = (now, self.serial, publication.producer, publication.number)
        stream.kept.append(_Kept(Entry(stream.top, data), *written))
        stream.trim(now)
        self.deliver(publication.subject, data)
        return Outcome(Status.PUBLISHED, stream.position)

    def stream(self, subject: Subject, history: History) -> _Stream:
        """The stream of a subject, made where there is none."""
        now = self.clock()
        self._sweep(now)
        stream = self.streams.get(subject)
        if stream is None or now - stream.used > stream.history.meta_ttl:
            self.serial += 1
            epoch = _Epoch(secrets.token_hex(8), 0, self.serial)
            stream = self.streams[subject] = _Stream(self.line, [epoch], history)
        elif stream.line != self.line:
            self.serial += 1
            stream.line = self.line
            stream.epochs.append(_Epoch(secrets.token_hex(8), stream.top, self.serial))
            del stream.epochs[: -MAX_FORKS - 1]
        stream.history = history
        stream.used = now
        stream.trim(now)
        return stream

    def read(self, request: ReadRequest) -> Reading:
        """One reading."""
        stream = self.stream(request.subject, request.history)
        entries: tuple[Entry, ...] = ()
        if request.since is not None and request.since < stream.top:
            after = [kept.entry for kept in stream.kept if kept.entry.offset > request.since]
            entries = tuple(after[: request.count])
        return Reading(stream.position.epoch, stream.top, stream.forks, entries)

    def deliver(self, subject: Subject, data: bytes) -> None:
        """Give bytes to whoever is subscribed."""
        for engine in tuple(self.subscribers.get(subject, ())):
            engine.arrived(subject, data)

    def announce(self, announcement: Announcement) -> None:
        """Remember what a node serves."""
        now = self.clock()
        for channel, history in announcement.channels.items():
            self._announced[channel] = (history, now)

    def announced(self, channel: str) -> History | None:
        """What is kept of a channel. Raises `LookupError`."""
        history, told = self._announced.get(channel, (None, float("-inf")))
        if self.clock() - told > _ANNOUNCED_TTL:
            raise LookupError(f"no node has announced the channel {channel!r}")
        return history

    def _sweep(self, now: float) -> None:
        if now - self._swept < _SWEEP:
            return
        self._swept = now
        for subject, stream in tuple(self.streams.items()):
            stream.trim(now)
            if now - stream.used > stream.history.meta_ttl:
                del self.streams[subject]
            for producer, (_, written) in tuple(stream.numbers.items()):
                if now - written > SEQUENCE_TTL:
                    del stream.numbers[producer]


class MemoryEngine:
    """One node's end of a `MemoryBus`. An `Engine`."""

    name = "memory"

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.node = b""
        self.receiver: Receiver | None = None
        self.down: set[Link] = set()
        #: Arrivals that will be lost.
        self.losing = 0
        #: Publications that will be answered with "not now".
        self.refusing = 0

    @property
    def has_others(self) -> bool:
        """True with a second node on the bus."""
        return len(self.bus.engines) > (1 if self.receiver else 0)

    def open(self, node: bytes, receiver: Receiver) -> None:
        """See `Engine`. The links are open at once."""
        self.node = node
        self.receiver = receiver
        self.bus.engines.append(self)
        for link in Link:
            if link not in self.down:
                receiver.opened(link)

    def close(self) -> None:
        """See `Engine`."""
        if self in self.bus.engines:
            self.bus.engines.remove(self)
        self._unsubscribe()
        self.receiver = None

    def publish(self, batch: Sequence[Publication]) -> list[Outcome]:
        """See `Engine`."""
        if Link.WRITING in self.down:
            return [_AGAIN] * len(batch)
        if self.bus.is_hung:
            self.bus.late.extend(batch)
            return [Outcome(Status.UNKNOWN, reason="no answer in time")] * len(batch)
        refused: set[Subject] = set()
        outcomes = []
        for publication in batch:
            if self.refusing > 0 or publication.subject in refused:
                self.refusing = max(0, self.refusing - 1)
                refused.add(publication.subject)
                outcomes.append(Outcome(Status.AGAIN, reason="not now"))
            else:
                outcomes.append(self.bus.carry_out(publication))
        return outcomes

    def subscribe(self, add: Sequence[Subject], drop: Sequence[Subject] = ()) -> None:
        """See `Engine`. Confirmed at once."""
        self._need(Link.READING)
        for subject in drop:
            self._drop(subject)
        for subject in add:
            self.bus.subscribers.setdefault(subject, {})[self] = None
            if self.receiver is not None:
                self.receiver.subscribed(subject)

    def read(self, requests: Sequence[ReadRequest]) -> list[Reading]:
        """See `Engine`."""
        self._need(Link.WRITING)
        return [self.bus.read(request) for request in requests]

    def announce(self, announcement: Announcement) -> None:
        """See `Engine`."""
        self._need(Link.WRITING)
        self.bus.announce(announcement)

    def announced(self, channel: str) -> History | None:
        """See `Engine`."""
        self._need(Link.WRITING)
        return self.bus.announced(channel)

    def ask(self, question: bytes, timeout: float = 1.0) -> Answers:
        """See `Engine`. Who cannot be reached is missing at once."""
        self._need(Link.WRITING)
        found = {engine.node: engine.answer(question) for engine in tuple(self.bus.engines)}
        answers = {node: answer for node, answer in found.items() if answer is not None}
        return Answers(answers, frozenset(found.keys() - answers))

    # -- what the bus calls -------------------------------------------------------------------

    def arrived(self, subject: Subject, data: bytes) -> None:
        """Something was published on a subject of this node."""
        if self.losing > 0:
            self.losing -= 1
        elif self.receiver is not None:
            self.receiver.arrived(subject, data)

    def answer(self, question: bytes) -> bytes | None:
        """What this node says; `None` where it cannot be asked."""
        is_there = self.receiver is not None and not self.down
        return self.receiver.asked(question) if self.receiver and is_there else None

    def cut(self, link: Link, reason: str) -> None:
        """A link is gone, and with the reading one every subscription."""
        if link in self.down:
            return
        self.down.add(link)
        if link is Link.READING:
            self._unsubscribe()
        if self.receiver is not None:
            self.receiver.lost(link, reason)

    def heal(self, link: Link) -> None:
        """A link is there again."""
        if link in self.down:
            self.down.discard(link)
            if self.receiver is not None:
                self.receiver.opened(link)

    def _need(self, link: Link) -> None:
        if link in self.down:
            raise LinkDown(f"the {link.value} link is down")
        if self.bus.is_hung:
            raise LinkDown("no answer in time")

    def _unsubscribe(self) -> None:
        for subject in tuple(self.bus.subscribers):
            self._drop(subject)

    def _drop(self, subject: Subject) -> None:
        subscribed = self.bus.subscribers.get(subject, {})
        subscribed.pop(self, None)
        if not subscribed:
            self.bus.subscribers.pop(subject, None)
