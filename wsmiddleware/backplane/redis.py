"""The engine on one Redis or Valkey (6.2 or later), its master found by Sentinels if need be.

Two links: `writer.py` carries the verbs out, `reader.py` is only read. Each has a `Keeper`
(`supervisor.py`) that opens it again. What a publication does in Redis is one script (`subject.lua`
and `publish.lua`), called by `scripts.py`; what things are called there says `keys.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from struct import Struct

from wsmiddleware.log import log as _log

from .address import Address
from .engine import (
    TIMEOUT,
    Announcement,
    Answers,
    History,
    Link,
    LinkDown,
    Outcome,
    Publication,
    Reading,
    ReadRequest,
    Receiver,
    Status,
    Subject,
)
from .keys import Keys
from .line import Line, open_line, pack
from .reader import Reader
from .scripts import BEHIND, Scripts, milliseconds, outcome_of, reading_of
from .trouble import LineLost, Refused, Remedy, Trouble
from .writer import Writer

__all__ = ["RedisEngine"]

#: Commands of one pipeline.
_PIPELINE = 500
#: Seconds for which an announcement is kept.
_ANNOUNCED = 30 * 24 * 3600
#: Subjects that one connection has compared.
_MAX_COMPARED = 100_000
#: Two ids of 8 bytes. A question: who asks, which; an answer: which, who answers.
_TWO_IDS = Struct(">8s8s")


class RedisEngine:
    """See `wsmiddleware.backplane.engine.Engine`.

    Nothing is opened before `open` or the first verb; after a fork it is to be made anew.
    Raises `ConfigError` for a prefix that cannot be one.
    """

    name = "redis"
    has_others = True

    def __init__(self, address: Address, prefix: str = "wsmiddleware") -> None:
        self._address = address
        self._keys = Keys(prefix, address.database)
        self._scripts = Scripts(self._keys)
        self._node = b""
        self._receiver: Receiver | None = None
        self._writer = Writer(
            self._open_writing,
            pack(b"PING"),
            self._writing_opened,
            lambda reason: self._tell_lost(Link.WRITING, reason),
        )
        self._reader: Reader | None = None
        self._questions: dict[bytes, _Question] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address}>"

    # -- life --------------------------------------------------------------------------------------

    def open(self, node: bytes, receiver: Receiver) -> None:
        """See `Engine.open`."""
        self._node, self._receiver = node, receiver
        self._reader = Reader(
            *(self._open_reading, self._keys.inbox(node), self._writer),
            lambda: receiver.opened(Link.READING),
            lambda reason: self._tell_lost(Link.READING, reason),
            *(receiver.arrived, receiver.subscribed, self._take_own),
        )
        self._writer.start()
        self._reader.keeper.start()

    def close(self) -> None:
        """See `Engine.close`; waits for two seconds at most."""
        self._receiver = None
        links = [link for link in (self._reader, self._writer) if link is not None]
        for link in links:
            link.stop()
        for link in links:
            link.keeper.join(1.0)

    def forget(self) -> None:
        """In a forked child: let go of the parent's connections without a word to Redis."""
        self._writer.forget()
        if self._reader is not None:
            self._reader.forget()

    def wait(self, timeout: float) -> bool:
        """Wait until it can publish; False when it cannot in time."""
        return self._writer.wait(timeout)

    @property
    def is_connected(self) -> bool:
        """All links that it was told to open are."""
        return self._writer.is_open and (self._reader is None or self._reader.is_open)

    @property
    def trouble(self) -> Trouble | None:
        """Why a link could not be opened when that was tried last."""
        reading = self._reader.keeper.trouble if self._reader is not None else None
        return self._writer.keeper.trouble or reading

    @property
    def lag(self) -> float | None:
        """The round trip of the last probe in seconds; `None` before there was one."""
        return self._reader.lag if self._reader is not None else None

    @property
    def reconnects(self) -> int:
        """How often a link was opened again."""
        links = [link for link in (self._reader, self._writer) if link is not None]
        return sum(max(0, link.keeper.openings - 1) for link in links)

    def _tell_lost(self, link: Link, reason: str) -> None:
        if self._receiver is not None:
            self._receiver.lost(link, reason)

    def _writing_opened(self) -> None:
        if self._receiver is not None:
            self._receiver.opened(Link.WRITING)

    def _open_writing(self) -> Line:
        # To a channel that nobody hears: may we publish? Within the script it is too late to ask.
        probe = pack(b"PUBLISH", self._keys.everybody + b":probe", b"")
        return self._open_line("writing", [*self._scripts.load(), probe])

    def _open_reading(self) -> Line:
        names = (self._keys.inbox(self._node), self._keys.everybody)
        return self._open_line("reading", [pack(b"SUBSCRIBE", name) for name in names])

    def _open_line(self, link: str, commands: Sequence[bytes]) -> Line:
        name = f"wsmiddleware:{link}:{self._node.hex() or os.getpid()}"
        line = open_line(self._address, TIMEOUT, name)
        try:
            for reply in line.call(commands, TIMEOUT):
                if isinstance(reply, Refused):
                    passes = reply.remedy in (Remedy.WAIT, Remedy.LEAVE)
                    raise Trouble(f"{self._address}: {reply}", is_loud=not passes)
        except LineLost as exc:
            raise Trouble(f"{self._address}: {exc}") from exc
        except BaseException:
            line.close()
            raise
        return line

    # -- publish -----------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Publication]) -> list[Outcome]:
        """See `Engine.publish`."""
        deadline = time.monotonic() + TIMEOUT
        outcomes: list[Outcome] = []
        order = _Order()
        for start in range(0, len(batch), _PIPELINE):
            part = batch[start : start + _PIPELINE]
            before = order.copy()
            found = self._carry_out(part, order, deadline)
            if any(outcome is _UNLOADED for outcome in found):
                # Those of a subject that came behind are refused, too: all of them once more.
                self._load()
                order = before
                todo = [i for i, outcome in enumerate(found) if outcome in (_UNLOADED, BEHIND)]
                again = self._carry_out([part[i] for i in todo], order, deadline)
                for i, outcome in zip(todo, again, strict=True):
                    found[i] = outcome
            outcomes += found
        return outcomes

    def _carry_out(
        self, part: Sequence[Publication], order: _Order, deadline: float
    ) -> list[Outcome]:
        outcomes = [BEHIND] * len(part)
        compared = self._writer.session
        sent = [i for i, one in enumerate(part) if one.history is None or not order.holds(one)]
        commands = [self._command(part[i], order, compared) for i in sent]
        missing = BEHIND
        replies: list[object] = []
        try:
            if commands:
                replies = self._writer.call(commands, deadline - time.monotonic(), compared)
        except LinkDown as exc:
            missing = Outcome(Status.AGAIN, None, str(exc))
        except LineLost as exc:
            replies, missing = exc.replies, Outcome(Status.UNKNOWN, None, str(exc))
        for number, i in enumerate(sent):
            outcomes[i] = self._judge(replies[number]) if number < len(replies) else missing
            if part[i].history is None:
                continue
            if outcomes[i].status is Status.PUBLISHED:
                _add(compared, part[i].subject)
            else:
                order.held.add(part[i].subject)
        return outcomes

    def _command(self, publication: Publication, order: _Order, compared: set[Subject]) -> bytes:
        subject = publication.subject
        before = order.sent.get(subject)
        if publication.history is not None:
            order.sent[subject] = publication
        is_first = before is None and subject not in compared
        return self._scripts.publish(publication, before, compare=is_first)

    @staticmethod
    def _judge(reply: object) -> Outcome:
        if isinstance(reply, Refused) and reply.remedy is Remedy.LOAD:
            return _UNLOADED
        return outcome_of(reply)

    def _load(self) -> None:
        """Redis has forgotten the scripts: tell them again."""
        try:
            self._writer.ask(self._scripts.load())
        except LinkDown as exc:
            _log.debug("backplane: the scripts were not loaded: %s", exc)

    # -- read --------------------------------------------------------------------------------------

    def read(self, requests: Sequence[ReadRequest]) -> list[Reading]:
        """See `Engine.read`."""
        readings = []
        for start in range(0, len(requests), _PIPELINE):
            part = requests[start : start + _PIPELINE]
            compared = self._writer.session
            commands = [
                self._scripts.read(one, compare=one.since is None or one.subject not in compared)
                for one in part
            ]
            replies = self._writer.ask(commands, session=compared)
            if any(self._judge(r) is _UNLOADED for r in replies if isinstance(r, Refused)):
                self._load()
                replies = self._writer.ask(commands, session=compared)
            for one, reply in zip(part, replies, strict=True):
                if not isinstance(reply, list):
                    raise LinkDown(str(reply))
                _add(compared, one.subject)
                readings.append(reading_of(reply))
        return readings

    # -- subscribe, announce, ask ------------------------------------------------------------------

    def subscribe(self, add: Sequence[Subject], drop: Sequence[Subject] = ()) -> None:
        """See `Engine.subscribe`."""
        if self._reader is None:
            raise LinkDown("the engine was not opened")
        names = {self._keys.subject(subject).channel: subject for subject in add}
        self._reader.subscribe(names, [self._keys.subject(subject).channel for subject in drop])

    def announce(self, announcement: Announcement) -> None:
        """See `Engine.announce`."""
        commands = [
            pack(
                *(b"SET", self._keys.announcement(channel)),
                b"-" if kept is None else b"%d %d" % (kept.count, milliseconds(kept.ttl)),
                *(b"EX", _ANNOUNCED),
            )
            for channel, kept in announcement.channels.items()
        ]
        self._need(self._writer.ask(commands) if commands else [])

    def announced(self, channel: str) -> History | None:
        """See `Engine.announced`."""
        [reply] = self._need(self._writer.ask([pack(b"GET", self._keys.announcement(channel))]))
        if not isinstance(reply, bytes):
            raise LookupError(f"no node has announced a channel {channel!r} within 30 days")
        count, _, ttl = reply.decode().partition(" ")
        return History(int(count), int(ttl) / 1000) if ttl else None

    def ask(self, question: bytes, timeout: float = 1.0) -> Answers:
        """See `Engine.ask`. The nodes are those that Redis has a subscription of."""
        token = os.urandom(8)
        waiting = self._questions[token] = _Question()
        start = len(self._keys.inboxes)
        commands = [
            pack(b"PUBSUB", b"CHANNELS", self._keys.inboxes + b"*"),
            pack(b"PUBLISH", self._keys.everybody, _TWO_IDS.pack(self._node, token) + question),
        ]
        deadline = time.monotonic() + timeout
        try:
            names = self._need(self._writer.ask(commands, timeout))[0]
            assert isinstance(names, list)
            waiting.expect({bytes.fromhex(name[start:].decode()) for name in names})
            waiting.done.wait(max(0.0, deadline - time.monotonic()))
        finally:
            del self._questions[token]
        answers = dict(waiting.answers)
        return Answers(answers, frozenset(waiting.expected - answers.keys()))

    @staticmethod
    def _need(replies: list[object]) -> list[object]:
        for reply in replies:
            if isinstance(reply, Refused):
                raise LinkDown(str(reply))
        return replies

    def _take_own(self, name: bytes, data: bytes) -> None:
        """What came on a channel of the engine's own. Called by the reading thread."""
        if name == self._keys.everybody and len(data) >= _TWO_IDS.size:
            asker, token = _TWO_IDS.unpack_from(data)
            self._answer(asker, token, data[_TWO_IDS.size :])
        elif data[:1] == b"A" and len(data) > _TWO_IDS.size:
            token, node = _TWO_IDS.unpack_from(data, 1)
            if (question := self._questions.get(token)) is not None:
                question.answered(node, data[1 + _TWO_IDS.size :])

    def _answer(self, asker: bytes, token: bytes, question: bytes) -> None:
        answer = self._receiver.asked(question) if self._receiver is not None else None
        if answer is not None:
            data = b"A" + _TWO_IDS.pack(token, self._node) + answer
            if not self._writer.run(pack(b"PUBLISH", self._keys.inbox(asker), data)):
                _log.warning("backplane: a question was not answered: too many wait")


def _add(compared: set[Subject], subject: Subject) -> None:
    """This connection has compared its history with what its meta knows."""
    if len(compared) >= _MAX_COMPARED:
        compared.clear()
    compared.add(subject)


#: Redis has forgotten the scripts.
_UNLOADED = Outcome(Status.AGAIN, None, "NOSCRIPT")


class _Order:
    """What of one call of `publish` is to be kept in order."""

    def __init__(self) -> None:
        #: The last one of each subject that was sent.
        self.sent: dict[Subject, Publication] = {}
        #: Subjects of which one was not carried out.
        self.held: set[Subject] = set()

    def copy(self) -> _Order:
        """As it is now."""
        other = _Order()
        other.sent, other.held = self.sent.copy(), self.held.copy()
        return other

    def holds(self, publication: Publication) -> bool:
        """It has to wait for one before it."""
        return publication.subject in self.held


class _Question:
    """Who is to answer, and who has."""

    def __init__(self) -> None:
        self.expected: frozenset[bytes] | set[bytes] = frozenset()
        self.answers: dict[bytes, bytes] = {}
        self.done = threading.Event()
        self._is_asked = False

    def expect(self, nodes: set[bytes]) -> None:
        """These are to answer."""
        self.expected, self._is_asked = nodes, True
        self._look()

    def answered(self, node: bytes, answer: bytes) -> None:
        """One has."""
        self.answers[node] = answer
        self._look()

    def _look(self) -> None:
        if self._is_asked and self.expected <= self.answers.keys():
            self.done.set()
