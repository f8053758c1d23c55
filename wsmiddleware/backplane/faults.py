"""What networks and servers do to a backplane, done to the engine in memory on request."""

from __future__ import annotations

from collections.abc import Iterable

from .engine import Link
from .memory import MemoryBus, MemoryEngine

__all__ = ["Faults"]


class Faults:
    """What breaks. `engine` and `link` narrow a fault to one node's, or to one of its links."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    def cut(self, engine: MemoryEngine | None = None, link: Link | None = None) -> None:
        """Links are lost, and stay so until `heal`."""
        for one in self._engines(engine):
            for which in self._links(link):
                one.cut(which, "cut")

    def heal(self, engine: MemoryEngine | None = None, link: Link | None = None) -> None:
        """Links that were cut are there again."""
        for one in self._engines(engine):
            for which in self._links(link):
                one.heal(which)

    def lose(self, count: int, engine: MemoryEngine | None = None) -> None:
        """The next `count` arrivals are lost, and nobody notices."""
        for one in self._engines(engine):
            one.losing += count

    def refuse(self, count: int, engine: MemoryEngine | None = None) -> None:
        """The next `count` publications of a node are answered with "not now"."""
        for one in self._engines(engine):
            one.refusing += count

    def hang(self) -> None:
        """Nothing is answered any more, links seem to be there (a stopped server takes bytes)."""
        self._bus.is_hung = True

    def wake(self) -> None:
        """It answers again, and first does what came while it did not."""
        bus = self._bus
        bus.is_hung = False
        late, bus.late = bus.late, []
        for publication in late:
            bus.carry_out(publication)

    def failover(self, lost: int = 0) -> None:
        """A replica is promoted that had not got the last `lost` writes. Links are lost, and back.

        A write is an entry, or the beginning of an epoch.
        """
        bus = self._bus
        now = bus.clock()
        for subject, stream in tuple(bus.streams.items()):
            if not stream.rewind(bus.serial - lost, now):
                del bus.streams[subject]
        self._start_again("the master is another one")

    def restart(self, *, empty: bool = False) -> None:
        """The server starts again, with all that it had or with nothing. Links are lost, and back.

        It does not hang any more; what it had not read is gone.
        """
        if empty:
            self._bus.streams.clear()
        self._start_again("the server started again")

    def _start_again(self, reason: str) -> None:
        bus = self._bus
        bus.is_hung = False
        bus.late.clear()
        bus.line += 1
        healthy = [(one, link) for one in bus.engines for link in Link if link not in one.down]
        for one, link in healthy:
            one.cut(link, reason)
        for one, link in healthy:
            one.heal(link)

    def _engines(self, engine: MemoryEngine | None) -> Iterable[MemoryEngine]:
        return tuple(self._bus.engines) if engine is None else (engine,)

    def _links(self, link: Link | None) -> Iterable[Link]:
        return tuple(Link) if link is None else (link,)
