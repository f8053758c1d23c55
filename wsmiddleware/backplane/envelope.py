"""What goes over a backplane: bytes <-> `Envelope`. Knows nobody; evaluates nothing.

``HEAD | channel | group | user | excluded | payload``, numbers big-endian::

    version   1   0xB1: no text begins with a byte 0x80-0xBF, so what other tools publish is told
                  apart; 0xB2-0xBF are versions to come
    kind      1   1 text, 2 JSON text, 3 bytes; +0x80: meant for one user
    epoch    16   hexadecimal digits; zeros: not in a stream
    offset    8   in the stream; of what is in none the publisher's own number, which rises
    node      8   who published it
    sizes 2 2 2 4 of channel, group, user, excluded; the payload is the rest

Epoch and offset stand at a fixed place (`STAMP`), so that whoever appends the entry, a script in
Redis too, writes them without reading the rest. `excluded` is, for each session id, its size in one
byte and the id. Texts are UTF-8; halves of surrogate pairs, which a group's name may hold, pass.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from .engine import MAX_OFFSET, Position, Subject, is_epoch

__all__ = [
    "HEAD_SIZE",
    "MAX_EXCLUDED",
    "MAX_NAME_SIZE",
    "STAMP",
    "Envelope",
    "ForeignEnvelope",
    "Head",
    "Kind",
    "NewerEnvelope",
    "decode",
    "decode_head",
    "encode",
    "stamp",
]

_VERSION = 0xB1
_NEWER = range(0xB2, 0xC0)
_HEAD = Struct(">BB16sQ8sHHHI")
_STAMP = Struct(">16sQ")
_FOR_USER = 0x80
_NO_EPOCH = bytes(16)

#: Bytes of the fixed head.
HEAD_SIZE = _HEAD.size
#: Where epoch and offset stand.
STAMP = slice(2, 2 + _STAMP.size)
#: Bytes of a channel's, a group's or a user's name.
MAX_NAME_SIZE = 0xFFFF
#: Sessions that one message can exclude.
MAX_EXCLUDED = 10_000
_MAX_SESSION_SIZE = 0xFF


class Kind(IntEnum):
    """What a payload is."""

    TEXT = 1
    JSON = 2
    BYTES = 3


_KINDS = frozenset(Kind)


class ForeignEnvelope(ValueError):
    """Not of ours: another tool's, or broken."""


class NewerEnvelope(ForeignEnvelope):
    """Of a later version of this package."""


class Head(NamedTuple):
    """What a reader needs: the place in the stream, and whose it is.

    Where `epoch` is ``""`` it is in no stream, and `offset` is its publisher's number.
    """

    kind: int
    epoch: str
    offset: int
    node: bytes


class Envelope(NamedTuple):
    """A message on its way. `user` is `None` for everybody's.

    What is in a stream has a `position`. What is in none has its publisher's `number`, so that who
    receives it late or twice knows.
    """

    subject: Subject
    kind: Kind
    payload: bytes
    node: bytes = bytes(8)
    user: str | None = None
    excluded: frozenset[str] = frozenset()
    position: Position | None = None
    number: int = 0


# -- out -------------------------------------------------------------------------------------------


def encode(envelope: Envelope) -> bytes:
    """Give its bytes. Raises `ValueError` for a name or a number of sessions past its limit."""
    channel = _name(envelope.subject.channel, "a channel's name")
    group = _name(envelope.subject.group, "a group's name")
    user = _name(envelope.user or "", "a user's key")
    excluded = _sessions(envelope.excluded)
    position = envelope.position
    head = _HEAD.pack(
        _VERSION,
        envelope.kind | (0 if envelope.user is None else _FOR_USER),
        position.epoch.encode() if position else _NO_EPOCH,
        position.offset if position else envelope.number,
        envelope.node,
        *(len(channel), len(group), len(user), len(excluded)),
    )
    return b"".join((head, channel, group, user, excluded, envelope.payload))


def stamp(data: bytes, position: Position) -> bytes:
    """Give the same envelope with its place in the stream."""
    placed = _STAMP.pack(position.epoch.encode(), position.offset)
    return data[: STAMP.start] + placed + data[STAMP.stop :]


def _name(text: str, what: str) -> bytes:
    name = text.encode("utf-8", "surrogatepass")
    if len(name) > MAX_NAME_SIZE:
        raise ValueError(f"{what} has at most {MAX_NAME_SIZE:,} bytes, not {len(name):,}")
    return name


def _sessions(ids: Collection[str]) -> bytes:
    if len(ids) > MAX_EXCLUDED:
        raise ValueError(f"exclude takes at most {MAX_EXCLUDED:,} sessions, not {len(ids):,}")
    parts = []
    for session in sorted(ids):
        text = session.encode("utf-8", "surrogatepass")
        if len(text) > _MAX_SESSION_SIZE:
            raise ValueError(f"a session id has at most {_MAX_SESSION_SIZE} bytes: {session[:40]}…")
        parts += [bytes([len(text)]), text]
    return b"".join(parts)


# -- in --------------------------------------------------------------------------------------------


def decode_head(data: bytes) -> Head:
    """Give what the fixed head says, without a look at the rest.

    Raises `NewerEnvelope` or, for anything else that is not ours, `ForeignEnvelope`.
    """
    if len(data) < HEAD_SIZE or data[0] != _VERSION:
        raise _strange(data)
    _, kind, epoch, offset, node, *_ = _HEAD.unpack_from(data)
    return Head(kind, _epoch(epoch, offset), offset, node)


def decode(data: bytes) -> Envelope:
    """Give the whole of it. Raises what `decode_head` raises."""
    if len(data) < HEAD_SIZE or data[0] != _VERSION:
        raise _strange(data)
    _, kind, raw, offset, node, *sizes = _HEAD.unpack_from(data)
    epoch = _epoch(raw, offset)
    parts = []
    start = HEAD_SIZE
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    plain = kind & ~_FOR_USER
    if start > len(data) or plain not in _KINDS:
        raise ForeignEnvelope("broken: sizes or kind are impossible")
    try:
        channel, group, user = (part.decode("utf-8", "surrogatepass") for part in parts[:3])
        excluded = _read_sessions(parts[3])
    except UnicodeDecodeError as exc:
        raise ForeignEnvelope("broken: a name is not UTF-8") from exc
    return Envelope(
        Subject(channel, group),
        Kind(plain),
        data[start:],
        node,
        user if kind & _FOR_USER else None,
        excluded,
        *((Position(epoch, offset), 0) if epoch else (None, offset)),
    )


def _strange(data: bytes) -> ForeignEnvelope:
    if data and data[0] in _NEWER:
        return NewerEnvelope(f"version {data[0] - _VERSION + 1} of a later wsmiddleware")
    return ForeignEnvelope(f"no envelope: {data[:16]!r}")


def _epoch(raw: bytes, offset: int) -> str:
    """The epoch as text; ``""`` without one."""
    epoch = "" if raw == _NO_EPOCH else raw.decode("latin-1")
    if offset > MAX_OFFSET or (epoch and not (offset and is_epoch(epoch))):
        raise ForeignEnvelope("broken: an impossible place in the stream")
    return epoch


def _read_sessions(data: bytes) -> frozenset[str]:
    ids: set[str] = set()
    start = 0
    while start < len(data):
        end = start + 1 + data[start]
        if end > len(data) or len(ids) >= MAX_EXCLUDED:
            raise ForeignEnvelope("broken: the excluded sessions are impossible")
        ids.add(data[start + 1 : end].decode("utf-8", "surrogatepass"))
        start = end
    return frozenset(ids)
