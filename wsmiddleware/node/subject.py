"""One subject as this node follows it: a state machine that knows neither engine nor clock.

What happens goes in by a method. What follows is read off: `is_wanted` and `request` say what has
to be read, `events` what goes down to the clients, in order. The node does the one and hands down
the other.

With history (`StreamFeed`)::

    JOINING --subscribed--> READING --reading--> LIVE --a hole, another epoch--> READING
       ^                                           |
       +------------------- lost ------------------+

It stands at `position`: everything up to there has gone down, and nothing behind it. Only the next
offset goes down by itself. What came before is dropped; what leaves a hole waits (`_early`) until
the hole is read from the stream. A `Reset` says that what went down and the stream differ.

Without history (`PlainFeed`) all goes down that arrives, but for what is late or came twice.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum
from typing import NamedTuple

from wsmiddleware.backplane.engine import (
    Entry,
    Gap,
    History,
    Position,
    Reading,
    ReadRequest,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, ForeignEnvelope, decode
from wsmiddleware.node.line import Line, Tail, unbroken

__all__ = ["CHECK_INTERVAL", "Entered", "Event", "PlainFeed", "Reset", "State", "StreamFeed"]

#: Seconds after which a quiet subject's top is looked at.
CHECK_INTERVAL = 30.0
#: Messages and bytes that are kept of what went down, for clients that come back.
TAIL_COUNT, TAIL_SIZE = 64, 64 * 1024
#: Messages and bytes that wait for a hole to be filled; what is past it is read from the stream.
EARLY_COUNT, EARLY_SIZE = 64, 64 * 1024
#: Entries that one reading asks for where nobody needs more.
_READ_COUNT = 1000
#: Publishers of which a subject remembers the last number.
_MAX_PUBLISHERS = 1024


class State(Enum):
    """How far it is."""

    #: Not subscribed, or not confirmed.
    JOINING = "joining"
    #: Subscribed; a reading has to say where it stands.
    READING = "reading"
    #: In step: the next message goes down when it arrives.
    LIVE = "live"


class Reset(NamedTuple):
    """Who followed up to here has something else than the stream; from `position` on it is in step.

    `gap` are entries that nobody has any more; `None` where the line of history is another one.
    """

    position: Position
    gap: Gap | None = None


class Entered(NamedTuple):
    """Who asked by `enter` stands at `position`, and gets `messages` before all others.

    Without `is_recovered` it is where the subject stands, not where the client stood. Without
    history, and where nobody could say in time, `position` is `None`.
    """

    token: object
    position: Position | None = None
    is_recovered: bool = False
    messages: tuple[Envelope, ...] = ()


#: What goes down: a message, a reset, or the answer to `enter`.
Event = Envelope | Reset | Entered


class PlainFeed:
    """A subject without history."""

    history: History | None = None

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.state = State.JOINING
        self.events: deque[Event] = deque()
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def subscribed(self) -> None:
        """The subscription is confirmed."""
        self.state = State.LIVE

    def lost(self) -> None:
        """The reading link is gone."""
        self.state = State.JOINING

    def arrived(self, message: Envelope, now: float) -> None:
        """A message came, not one of this node's own."""
        numbers = self._numbers
        if message.number:
            if message.number <= numbers.get(message.node, 0):
                return
            numbers[message.node] = message.number
            numbers.move_to_end(message.node)
            if len(numbers) > _MAX_PUBLISHERS:
                numbers.popitem(last=False)
        self.events.append(message)

    def enter(self, token: object, since: Position | None) -> None:
        """A client wants to follow: it does, from here on."""
        self.events.append(Entered(token))

    def withdraw(self, token: object) -> None:
        """It does not wait any longer."""


class StreamFeed(PlainFeed):
    """A subject with history."""

    def __init__(self, subject: Subject, history: History) -> None:
        super().__init__(subject)
        self.history: History = history
        #: Up to where everything went down; `None` before the first reading.
        self.position: Position | None = None
        self._line = Line("")
        self._tail = Tail(TAIL_COUNT, TAIL_SIZE)
        #: What arrived and cannot go down yet.
        self._early: list[Envelope] = []
        self._early_size = 0
        #: The reading that is under way, and where the subject stood when it was asked for.
        self._request: ReadRequest | None = None
        self._asked_at: Position | None = None
        self._is_wanted = False
        self._checked = 0.0
        #: Who wants to enter, and from where.
        self._waiting: dict[object, Position | None] = {}
        #: Those of them who waited before the reading was asked for.
        self._asked: frozenset[object] = frozenset()

    # -- what happens -------------------------------------------------------------------------

    def subscribed(self) -> None:
        """The subscription is confirmed: what is published from here on arrives."""
        self.state = State.READING
        self._is_wanted = True

    def lost(self) -> None:
        """The reading link is gone; a reading that is under way says nothing any more."""
        self.state = State.JOINING
        self._request = None

    def arrived(self, message: Envelope, now: float) -> None:
        """A message came: one of the stream, or one that is in no stream."""
        position = message.position
        if position is None:
            super().arrived(message, now)
        elif self._is_next(position) and self.state is State.LIVE:
            self._checked = now
            self._give(message)
        elif not self._is_past(position):
            if len(self._early) < EARLY_COUNT and self._early_size < EARLY_SIZE:
                self._early.append(message)
                self._early_size += len(message.payload)
            else:
                self._is_wanted = True
            self._doubt()

    def missed(self) -> None:
        """Something arrived and could not be kept: it has to be read."""
        self._is_wanted = True
        self._doubt()

    def enter(self, token: object, since: Position | None) -> None:
        """A client wants to follow from `since` on: `Entered` answers, now or after a reading."""
        self._waiting[token] = since
        self._admit(self._tail.messages)

    def withdraw(self, token: object) -> None:
        """It does not wait any longer."""
        self._waiting.pop(token, None)

    def _is_next(self, position: Position) -> bool:
        mine = self.position
        return (
            mine is not None and position.epoch == mine.epoch and position.offset == mine.offset + 1
        )

    def _is_past(self, position: Position) -> bool:
        """True for what went down already, and for a line that has ended."""
        mine = self.position
        if mine is None:
            return False
        if position.epoch == mine.epoch:
            return position.offset <= mine.offset
        return any(position.epoch == fork.epoch for fork in self._line.forks)

    def _doubt(self) -> None:
        if self.state is State.LIVE:
            self.state = State.READING
            self._is_wanted = True

    def _give(self, message: Envelope) -> None:
        """The next one goes down."""
        self.position = message.position
        self._tail.add(message)
        self.events.append(message)

    def _reset(self, offset: int, gap: Gap | None = None) -> None:
        self.position = Position(self._line.epoch, offset)
        self.events.append(Reset(self.position, gap))

    # -- readings -----------------------------------------------------------------------------

    def is_wanted(self, now: float) -> bool:
        """True when a reading is wanted and none is under way."""
        if self._request is not None or self.state is State.JOINING:
            return False
        return self._is_wanted or bool(self._waiting) or now >= self._checked + CHECK_INTERVAL

    def request(self, now: float) -> ReadRequest:
        """What to read; `reading` or `unread` answers it."""
        self._is_wanted = False
        self._checked = now
        self._asked_at = self.position
        self._asked = frozenset(self._waiting)
        offsets = [] if self.position is None else [self.position.offset]
        for since in self._waiting.values():
            offset = since and (since.offset if self.position is None else self._base(since))
            if offset is not None:
                offsets.append(offset)
        count = max(_READ_COUNT, self.history.count if self._waiting else 0)
        since_offset = min(offsets, default=None)
        self._request = ReadRequest(self.subject, self.history, since_offset, count)
        return self._request

    def unread(self, request: ReadRequest) -> None:
        """It could not be read."""
        if request is self._request:
            self._request = None
            self._is_wanted = True

    def reading(self, request: ReadRequest, reading: Reading) -> None:
        """It was read: holes are filled or told, and who waits enters."""
        if request is not self._request:
            return  # from before the link was lost
        self._request = None
        is_first = self.position is None
        self._align(Line.of(reading), reading.top)
        reach = self._reach(request, reading)
        read = self._messages(reading.entries) if reach is not None else {}
        if is_first:
            for message in unbroken(read, self._known):
                self._tail.add(message)
        self._fill(read, self._known if reach is None else reach)
        if self._known < reading.top:
            self._is_wanted = True
        self.state = State.READING if self._is_wanted else State.LIVE
        asked = self._asked if self.state is State.LIVE else frozenset()
        self._admit({**self._tail.messages, **read}, request.since, asked)

    @property
    def _known(self) -> int:
        return self.position.offset if self.position else 0

    def _align(self, line: Line, top: int) -> None:
        """Stand on the line that was read, at the last place that both share."""
        mine = self._line
        self._line = line
        if self.position is None:
            self.position = Position(line.epoch, top)
            return
        offset = self.position.offset
        if mine.epoch == line.epoch:
            asked = self._asked_at
            is_short = asked is not None and asked.epoch == line.epoch and top < asked.offset
            shared = top if is_short else offset
        else:
            found = mine.shared_with(line)
            if found is None and not line.is_whole:
                self._tail.clear()
                self._reset(top)  # nobody knows any more what of it is new
                return
            # No epoch in common: all that is on it is new.
            shared = found or 0
        self._tail.cut(shared)
        if offset > shared:
            self._reset(shared)
        else:
            self.position = Position(line.epoch, offset)

    def _reach(self, request: ReadRequest, reading: Reading) -> int | None:
        """Up to which offset this reading says all; `None`: it begins behind where we stand."""
        if request.since is None or request.since > self._known:
            return None
        if len(reading.entries) >= request.count:
            return reading.entries[-1].offset
        return reading.top

    def _messages(self, entries: tuple[Entry, ...]) -> dict[int, Envelope]:
        found = {}
        for offset, data in entries:
            try:
                message = decode(data)
            except ForeignEnvelope:
                continue  # a hole that cannot be filled
            found[offset] = message._replace(position=Position(self._line.epoch, offset), number=0)
        return found

    def _fill(self, read: dict[int, Envelope], reach: int) -> None:
        """Give what comes next, read or early; up to `reach` a hole is one for good."""
        found = {**self._take_early(), **read}
        later = deque(offset for offset in sorted(found) if offset > self._known)
        while later and (later[0] == self._known + 1 or later[0] <= reach + 1):
            offset = later.popleft()
            if offset > self._known + 1:
                self._lose(offset - 1)
            self._give(found[offset])
        if self._known < reach:
            self._lose(reach)
        if later:
            self._early = [found[offset] for offset in later]
            self._early_size = sum(len(message.payload) for message in self._early)
            self._is_wanted = True

    def _lose(self, last: int) -> None:
        gap = Gap(self._known + 1, last)
        self._tail.clear()
        self._reset(last, gap)

    def _take_early(self) -> dict[int, Envelope]:
        """What arrived on this line. What did on one that is not known yet has to be read."""
        early, self._early, self._early_size = self._early, [], 0
        found = {}
        for message in early:
            position = message.position
            assert position is not None
            if position.epoch == self._line.epoch:
                found[position.offset] = message
            elif not self._is_past(position):
                self._is_wanted = True
        return found

    # -- who enters ---------------------------------------------------------------------------

    def _base(self, since: Position | None) -> int | None:
        """Where on this line a client stood; `None` where it did not."""
        return since and self._line.offset_of(since, self._known)

    def _admit(
        self,
        messages: dict[int, Envelope],
        read_since: int | None = None,
        asked: frozenset[object] = frozenset(),
    ) -> None:
        """Answer those who wait; who needs more than `messages` waits for a reading of its own.

        Only a reading that was `asked` for after it came says that a client stood nowhere: another
        node may have been ahead of this one, by messages and by epochs.
        """
        if not self._waiting or self.position is None:
            return
        epoch, top = self.position
        run = unbroken(messages, top)
        for token, since in tuple(self._waiting.items()):
            base = self._base(since)
            if base is not None and top - base <= len(run):
                missed = tuple(run[len(run) - (top - base) :])
                entered = Entered(token, Position(epoch, base), True, missed)
            elif since is None or (token in asked and (base is None or _covers(read_since, base))):
                entered = Entered(token, self.position)
            else:
                continue
            del self._waiting[token]
            self.events.append(entered)


def _covers(read_since: int | None, base: int) -> bool:
    return read_since is not None and read_since <= base
