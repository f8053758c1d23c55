"""What an error of Redis means for us: wait, give the publication up, or call an operator. Pure."""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["LineLost", "Refused", "Remedy", "Trouble", "remedy_for"]


class Remedy(Enum):
    """What is to be done."""

    #: It passes: wait, and try again.
    WAIT = "wait"
    #: As `WAIT`, but what we are connected to is no longer the one to write to.
    LEAVE = "leave"
    #: It does not know our script: it was started again, or told to forget it.
    LOAD = "load"
    #: This publication has failed, and would again.
    FAIL = "fail"
    #: An operator has to mend it: one loud line, slow tries.
    CALL = "call"


_REMEDIES = {
    **dict.fromkeys(("READONLY", "MASTERDOWN", "MOVED", "ASK", "UNBLOCKED"), Remedy.LEAVE),
    **dict.fromkeys(("LOADING", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MISCONF"), Remedy.WAIT),
    **dict.fromkeys(("OOM", "NOREPLICAS"), Remedy.FAIL),
    **dict.fromkeys(("NOAUTH", "WRONGPASS", "NOPERM"), Remedy.CALL),
    "NOSCRIPT": Remedy.LOAD,
}
# Up to Redis 6.2 an error within a script comes as "ERR Error running script (…): …: -OOM …".
_CODE = re.compile(r"(?:^|[ :]-)([A-Z]{2,})\b")


def remedy_for(text: str) -> Remedy:
    """By the text of an error reply, its code included; what nobody knows has failed."""
    for code in _CODE.findall(text[:500]):
        if code in _REMEDIES:
            return _REMEDIES[code]
    if "max number of clients" in text:
        return Remedy.WAIT
    return Remedy.FAIL


class Refused(Exception):
    """An error reply: never raised, it stands in the list of replies."""

    @property
    def remedy(self) -> Remedy:
        """What is to be done."""
        return remedy_for(str(self))


class Trouble(Exception):
    """A link could not be opened. With `is_loud` an operator has to mend it."""

    def __init__(self, reason: str, *, is_loud: bool = False) -> None:
        super().__init__(reason)
        self.is_loud = is_loud


class LineLost(Exception):
    """A connection has gone, or did not answer in time; `replies` are those that came before."""

    def __init__(self, reason: str, replies: list[object] | None = None) -> None:
        super().__init__(reason)
        self.replies = replies or []
