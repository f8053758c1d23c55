"""The interface of whoever handles a connection's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from wsmiddleware.net.pool import Worker

__all__ = ["NOBODY", "TIME_SLICE", "Due", "Receiver"]

#: Messages (`str` and `bytes`) in reverse order; also `Ping` and `Pong` where those are asked for.
Due: TypeAlias = list[Any]

#: Callbacks of one connection run for this long before other connections are served, in seconds.
TIME_SLICE = 0.005


class Receiver(Protocol):
    """Handles what a connection receives.

    `opened`, `received` and `closed` run in a worker and may block; the others must not block.
    A receiver with a true attribute ``is_told_of_pings`` gets `Ping` and `Pong` in `received` too,
    in order of arrival. Such a ping has been answered already.
    """

    def opened(self, worker: Worker) -> None:
        """The first call."""

    def received(self, due: Due, worker: Worker) -> None:
        """Take messages off the end of `due`, until none is left or `TIME_SLICE` is over."""

    def is_busy(self) -> bool:
        """True while a callback runs beside those of the worker. Must not block."""

    def unlist(self) -> None:
        """The connection is no longer open. From any greenlet; must not block."""

    def forked(self) -> None:
        """This is a forked child and the connection is the parent's: nothing more comes here."""

    def closed(self, worker: Worker) -> None:
        """Nothing more will come. The socket may live on, to take our last frame to the peer."""

    def gone(self) -> None:
        """The last call: the socket has ended too. Must not block."""


class _Nobody:
    """Takes the receiver's place at the end, so that nothing keeps the two of them alive."""

    def opened(self, worker: Worker) -> None: ...
    def received(self, due: Due, worker: Worker) -> None: ...
    def is_busy(self) -> bool:
        return False

    def unlist(self) -> None: ...
    def forked(self) -> None: ...
    def closed(self, worker: Worker) -> None: ...
    def gone(self) -> None: ...


#: A receiver that does nothing.
NOBODY: Receiver = _Nobody()
