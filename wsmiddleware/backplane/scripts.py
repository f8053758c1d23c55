"""What a subject with history is told in Redis, and what it replies: the scripts in Lua."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .engine import (
    SEQUENCE_TTL,
    Entry,
    Fork,
    Outcome,
    Position,
    Publication,
    Reading,
    ReadRequest,
    Status,
)
from .keys import Keys
from .line import pack
from .trouble import Refused, Remedy

__all__ = ["BEHIND", "Scripts", "outcome_of", "reading_of"]

#: Bytes of entries that one reading brings.
_READ_SIZE = 4 * 1024 * 1024
_HERE = Path(__file__).parent

#: Not carried out, because one before it was not.
BEHIND = Outcome(Status.AGAIN, None, "the publication before it was not carried out")
_DONE = Outcome(Status.PUBLISHED)


class _Script:
    """A script's text, and the digest by which it is called."""

    def __init__(self, name: str) -> None:
        texts = [(_HERE / file).read_bytes() for file in ("subject.lua", f"{name}.lua")]
        self.text = b"".join(texts)
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Scripts:
    """The two scripts, called with the names of one (prefix, database)."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._publish, self._read = _Script("publish"), _Script("read")
        #: What nobody else has, for the names of new epochs.
        self._nonce = os.urandom(16).hex().encode()

    def load(self) -> list[bytes]:
        """What tells them to a Redis."""
        return [pack(b"SCRIPT", b"LOAD", script.text) for script in (self._publish, self._read)]

    def publish(
        self, publication: Publication, before: Publication | None = None, *, compare: bool
    ) -> bytes:
        """Publish. `before`: the one on that subject which must have been carried out.

        With `compare` it is looked whether the history is still the one that its meta knows.
        """
        keys, history = self._keys.subject(publication.subject), publication.history
        if history is None:
            return pack(b"PUBLISH", keys.channel, publication.data)
        earlier = before or publication
        return pack(
            *(b"EVALSHA", self._publish.digest, 4, keys.stream, keys.meta),
            *(one.producer.encode().join(keys.sequence) for one in (publication, earlier)),
            *(int(compare), self._nonce, milliseconds(history.meta_ttl)),
            *(publication.data, history.count, milliseconds(history.ttl)),
            *(publication.number, before.number if before else 0),
            *(milliseconds(SEQUENCE_TTL), keys.channel),
        )

    def read(self, request: ReadRequest, *, compare: bool) -> bytes:
        """Read."""
        keys, history = self._keys.subject(request.subject), request.history
        return pack(
            *(b"EVALSHA", self._read.digest, 2, keys.stream, keys.meta),
            *(int(compare), self._nonce, milliseconds(history.meta_ttl)),
            milliseconds(history.ttl),
            b"" if request.since is None else request.since,
            *(request.count, _READ_SIZE),
        )


def outcome_of(reply: object) -> Outcome:
    """What a reply to `Scripts.publish` says."""
    if isinstance(reply, bytes):
        epoch, _, offset = reply.decode().partition(":")
        return Outcome(Status.PUBLISHED, Position(epoch, int(offset)))
    if isinstance(reply, int):
        return BEHIND if reply < 0 else _DONE
    if isinstance(reply, Refused) and reply.remedy not in (Remedy.FAIL, Remedy.CALL):
        return Outcome(Status.AGAIN, None, str(reply))
    return Outcome(Status.FAILED, None, str(reply))


def reading_of(reply: list[bytes]) -> Reading:
    """What a reply to `Scripts.read` says."""
    epoch, top, forks, *rest = reply
    parted = (fork.partition(":") for fork in forks.decode().split(",") if fork)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return Reading(
        epoch.decode(),
        int(top),
        tuple(Fork(name, int(shared)) for name, _, shared in parted),
        tuple(Entry(int(offset), data) for offset, data in pairs),
    )


def milliseconds(seconds: float) -> int:
    """At least one."""
    return max(1, round(seconds * 1000))
