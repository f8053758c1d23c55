"""What every backplane can do: five verbs, and the values that go in and out of them.

An engine carries bytes between nodes and keeps the histories. It knows subjects, offsets and bytes;
what is inside an envelope only as far as it has to stamp it (`wsmiddleware.backplane.envelope`).
A **node** is one process's user of an engine; it gives the engine a `Receiver` and calls the verbs.

Who calls what
    The node calls the verbs, never from within a `Receiver`'s method. `publish` has one caller at a
    time, and so has `subscribe`; `read`, `announce`, `announced` and `ask` may have several at
    once. Each may block, for `TIMEOUT` seconds at most (`ask`: for as long as it is told). The
    engine calls the `Receiver` from a greenlet or thread of its own, or within a verb: its methods
    queue and return. They never block, never raise, and call no verb.

Links
    Publishing and reading may go over two links, each of which can be lost alone. The engine opens
    them again by itself and tells the receiver, in order. **Subscriptions end with the reading
    link**: after ``opened(READING)`` nothing is subscribed, whatever was before.

Order
    What one batch, and one batch after the other, publishes on a subject is carried out in that
    order. `arrived` comes in the order of the subject's stream, and never before `subscribed` of
    that subject on that link; messages may be missing and may come twice. Between subjects no order
    is promised.

Without history
    A publication goes to who is subscribed at the moment, the publisher's own node included. It has
    no position. What is `UNKNOWN` may still be carried out later; who receives it sees by the
    number in its envelope that it is late.

With history
    Each publication is one *entry* of its subject's stream: offsets 1, 2, 3 … without a hole, in an
    *epoch*, the name of one line of history. Exactly the last ``history.count`` entries are kept,
    none older than ``history.ttl``. A stream that lost its end (a failover, an old snapshot) counts
    on in a new epoch, and remembers up to where it shares the old one (`Fork`); one whose meta is
    gone begins a new epoch at 0 without forks. A publication has a *sequence*, (producer,
    number): numbers of a producer rise on each subject, and for `SEQUENCE_TTL` seconds a number
    that is not larger than the last one carried out is a repetition. It is not carried out, and
    answered `PUBLISHED`. So what is `UNKNOWN` can be tried again, and what runs late does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

__all__ = [
    "MAX_FORKS",
    "MAX_OFFSET",
    "SEQUENCE_TTL",
    "TIMEOUT",
    "Announcement",
    "Answers",
    "Engine",
    "Entry",
    "Fork",
    "Gap",
    "History",
    "Link",
    "LinkDown",
    "Outcome",
    "Position",
    "Publication",
    "ReadRequest",
    "Reading",
    "Receiver",
    "Status",
    "Subject",
]

#: Seconds that a verb may take.
TIMEOUT = 5.0
#: Seconds for which a producer's last number on a subject is kept.
SEQUENCE_TTL = 60.0
#: Past epochs that a subject remembers.
MAX_FORKS = 8
#: The largest offset: what JavaScript and Lua count without a fault.
MAX_OFFSET = 2**53 - 1
#: An epoch has so many characters, of `_EPOCH_CHARACTERS`.
EPOCH_SIZE = 16
_EPOCH_CHARACTERS = frozenset("0123456789abcdef")
_MAX_OFFSET_DIGITS = len(str(MAX_OFFSET))


# -- subjects and their histories ------------------------------------------------------------------


class Subject(NamedTuple):
    """What is subscribed to: a channel, or one group of it (``""`` is the whole channel)."""

    channel: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What is kept of a subject: the last `count` entries (at least 1), none older than `ttl` s."""

    count: int
    ttl: float = 300.0

    @property
    def meta_ttl(self) -> float:
        """Seconds for which epoch and top outlive the last use of the subject."""
        return max(24 * 3600.0, 10 * self.ttl)


def is_epoch(text: str) -> bool:
    """True for 16 lower-case hexadecimal digits."""
    return len(text) == EPOCH_SIZE and _EPOCH_CHARACTERS.issuperset(text)


class Position(NamedTuple):
    """A place in a subject's stream: behind the entry `offset` of `epoch`.

    Its text, ``"EPOCH:OFFSET"``, is what pages and clients keep.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position that a client gave; `None` for all else. Linear, and never raises."""
        epoch, colon, digits = text[: EPOCH_SIZE + 2 + _MAX_OFFSET_DIGITS].partition(":")
        is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_OFFSET_DIGITS
        if not colon or not is_epoch(epoch) or not is_number or int(digits) > MAX_OFFSET:
            return None
        return cls(epoch, int(digits))


class Fork(NamedTuple):
    """A past epoch, and the last offset that the epoch after it shares with it.

    They come oldest first. What the *present* line shares with it is the least of this and of the
    later ones'.
    """

    epoch: str
    shared: int


class Entry(NamedTuple):
    """One entry of a stream. `data` is an envelope, or whatever another tool has put there.

    Only `offset` says where it stands: the envelope may be stamped or not.
    """

    offset: int
    data: bytes


class Gap(NamedTuple):
    """Offsets, both included, whose entries nobody can give any more."""

    first: int
    last: int


# -- publish ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publication:
    """What goes out: an unstamped envelope, and what to keep of its subject.

    With `history` it has a sequence (`producer`, `number` from 1); without, neither counts.
    """

    subject: Subject
    data: bytes
    history: History | None = None
    producer: str = ""
    number: int = 0


class Status(Enum):
    """What became of a publication."""

    #: Carried out now or, by its sequence, before.
    PUBLISHED = "published"
    #: Not carried out: the link is down, or the other side cannot write now. It may be tried again.
    AGAIN = "again"
    #: Perhaps carried out: it was sent, and no answer came. To be tried again only with a sequence.
    UNKNOWN = "unknown"
    #: Not carried out, and it would not be the next time (no memory, no rights).
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a publication. `reason` is for the log.

    `position` is that of the new entry; `None` without history, where it was not carried out, and
    where it may be that of another one (a repetition).
    """

    status: Status
    position: Position | None = None
    reason: str = ""


# -- read ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Which part of a stream: what comes after the offset `since`, at most `count` entries.

    With `since=None` no entries, only where the stream stands.
    """

    subject: Subject
    history: History
    since: int | None = None
    count: int = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a stream stood at one moment, and entries of it.

    `entries` rise, and are the *first* ones after `since` that are kept; there are more when the
    last one is below `top`. A hole in them, at their beginning too, is what is kept no more.
    """

    epoch: str
    top: int
    forks: tuple[Fork, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def position(self) -> Position:
        """Behind the newest entry."""
        return Position(self.epoch, self.top)


# -- announce and ask ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node tells of itself: the channels that it serves and what each keeps.

    Kept for 30 days. Who is present comes here, too.
    """

    node: bytes
    channels: Mapping[str, History | None]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the nodes answered, by node id; `missing` are those that did not in time."""

    answers: Mapping[bytes, bytes] = field(default_factory=dict)
    missing: frozenset[bytes] = frozenset()


# -- the two sides ---------------------------------------------------------------------------------


class Link(Enum):
    """A way to the others."""

    READING = "reading"
    WRITING = "writing"


class LinkDown(Exception):
    """The other side cannot be reached, or does not answer in time; the text says which."""


class Receiver(Protocol):
    """What a node gives its engine. Every method returns at once, raises nothing, calls no verb."""

    def opened(self, link: Link) -> None:
        """A link works, for the first time or again."""

    def lost(self, link: Link, reason: str) -> None:
        """A link works no more. `reason` is for the log."""

    def subscribed(self, subject: Subject) -> None:
        """From here on what is published on a subject arrives."""

    def arrived(self, subject: Subject, data: bytes) -> None:
        """A stamped envelope came, or what another tool has published there."""

    def asked(self, question: bytes) -> bytes | None:
        """What this node answers; `None` where it does not understand."""


class Engine(Protocol):
    """A backplane, as one node sees it. The module says what holds for all of it."""

    @property
    def name(self) -> str:
        """For the log: ``"memory"``, ``"redis"``."""

    @property
    def has_others(self) -> bool:
        """False while nobody else can be listening: what has no history need not be published."""

    def open(self, node: bytes, receiver: Receiver) -> None:
        """Begin; `node` is the id of 8 bytes. Called once, after the fork. Does not wait for links.

        For a process that only publishes it need not be called.
        """

    def close(self) -> None:
        """End: the links are closed, the receiver is called no more. More than once is once."""

    def publish(self, batch: Sequence[Publication]) -> list[Outcome]:
        """Carry out a batch in order: an outcome for each. Never raises.

        On each subject with history a publication that follows one of the same batch which was not
        carried out is not carried out either (`AGAIN`): the order holds over all tries.
        """

    def subscribe(self, add: Sequence[Subject], drop: Sequence[Subject] = ()) -> None:
        """Subscribe to some, no longer to others; `Receiver.subscribed` tells when each holds.

        Of a subject that is dropped a few more may arrive. Raises `LinkDown`.
        """

    def read(self, requests: Sequence[ReadRequest]) -> list[Reading]:
        """Read each of the streams; a stream that is not there begins here, at 0.

        A read renews the expiry of the subject's meta. Raises `LinkDown`.
        """

    def announce(self, announcement: Announcement) -> None:
        """Tell the others about this node. Raises `LinkDown`."""

    def announced(self, channel: str) -> History | None:
        """What is kept of a channel that some node has announced.

        Raises `LookupError` where none has, `LinkDown`.
        """

    def ask(self, question: bytes, timeout: float = 1.0) -> Answers:
        """Ask every node, this one included, and wait for `timeout` seconds at most.

        Raises `LinkDown` where nobody could be asked.
        """
