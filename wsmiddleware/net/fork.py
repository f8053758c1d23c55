"""What a forked child must not have: its parent's connections, watchers and descriptors.

A child that goes on in Python (``os.fork``, ``multiprocessing``) has the parent's loop, and in it
its clients: it would read what they send, and answer. And what the parent closes would stay open
while the child lives. A program that is executed has none of it: descriptors are not inherited.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from wsmiddleware.log import log as _log

__all__ = ["Party", "forget_in_children"]


class Party(Protocol):
    """Has something that belongs to this process alone."""

    def forked(self) -> None:
        """Called in a forked child: drop it without a word and start anew. Must not block."""


# One for the process, as its forks are.
_parties: weakref.WeakSet[Party] = weakref.WeakSet()


def forget_in_children(party: Party) -> None:
    """Have it told when the process was forked, in the child, as long as it lives."""
    _parties.add(party)


def _tell() -> None:
    for party in tuple(_parties):
        try:
            party.forked()
        except Exception:
            _log.exception("internal error after a fork: please report it")


# At import, against the habit: it cannot be undone, and does nothing while nobody is registered.
os.register_at_fork(after_in_child=_tell)
