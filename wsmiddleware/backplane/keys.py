"""What things are called in Redis. Every name begins with the prefix, so that an ACL can say it.

A subject has a *partition*, one of 64, whose tag stands in the names of its keys: Redis Cluster
puts what has the same tag on the same node. Pub/sub does not know databases, so their number
stands in the names of its channels.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from wsmiddleware.exceptions import ConfigError

from .engine import Subject

__all__ = ["PARTITIONS", "Keys", "SubjectKeys"]

#: How many tags there are.
PARTITIONS = 64
# No braces, which are for the tags, and nothing that a pattern of Redis means something by.
_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")


class SubjectKeys(NamedTuple):
    """The names of a subject."""

    stream: bytes
    meta: bytes
    #: A producer's id is put in between.
    sequence: tuple[bytes, bytes]
    #: Of pub/sub.
    channel: bytes


class Keys:
    """The names of one (prefix, database)."""

    def __init__(self, prefix: str, database: int) -> None:
        """Raises `ConfigError` for a prefix that cannot be one."""
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(
                f"the backplane's prefix is {prefix!r}, and may be 1 to 100 letters, digits and "
                "_ . : / -"
            )
        self._prefix = prefix.encode()
        #: What every node listens to.
        self.everybody = b"%b:%d:nodes" % (self._prefix, database)
        #: What every node's own channel begins with.
        self.inboxes = b"%b:%d:node:" % (self._prefix, database)
        self._channels = b"%b:%d:" % (self._prefix, database)

    def subject(self, subject: Subject) -> SubjectKeys:
        """The names of a subject; a channel's name holds no colon, a group's may hold anything."""
        name = _bytes(subject.channel) + b":" + _bytes(subject.group)
        tag = _tag(name)
        start = self._prefix + b":" + tag
        return SubjectKeys(
            start + b":stream:" + name,
            start + b":meta:" + name,
            (start + b":sequence:", b":" + name),
            self._channels + tag + b":" + name,
        )

    def announcement(self, channel: str) -> bytes:
        """Where it is kept what a channel keeps."""
        name = _bytes(channel)
        return b"%b:%b:channel:%b" % (self._prefix, _tag(name), name)

    def inbox(self, node: bytes) -> bytes:
        """A node's own channel of pub/sub."""
        return self.inboxes + node.hex().encode()


def _tag(name: bytes) -> bytes:
    return b"{p%02d}" % (zlib.crc32(name) % PARTITIONS)


def _bytes(text: str) -> bytes:
    # As in the envelope: a group's name may hold half of a surrogate pair.
    return text.encode("utf-8", "surrogatepass")
