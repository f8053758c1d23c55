"""`WsClient` and `WsClients`: how a listener, a view or a job talks to one client or to many.

Everything here may be called from any greenlet **and from any native thread**, from inside and
outside callbacks, and after the connection has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from wsmiddleware.protocol.frames import CloseCode, close_arguments

if TYPE_CHECKING:
    from wsmiddleware.listeners.convert import Data
    from wsmiddleware.listeners.session import Session
    from wsmiddleware.net.connection import Connection

__all__ = ["WsClient", "WsClients", "check_group"]


def check_group(name: object) -> None:
    """`TypeError` for what is no `str`: `None` would be everybody, where a name was not set."""
    if not isinstance(name, str):
        raise TypeError(f"a group is a str, not {name!r}")


class Gathering(Protocol):
    """What `WsClients` asks of whom it stands for."""

    @property
    def name(self) -> str:
        """The channel's name."""

    def size(self, group: str | None = None) -> int:
        """How many clients are open, all of them or of a group."""

    def clients(self, group: str | None = None) -> list[WsClient]:
        """A snapshot of them."""

    def broadcast(
        self, message: object, group: str | None = None, exclude: Excluded = None
    ) -> bool:
        """Send to them."""


class Home(Protocol):
    """What a client asks of its channel."""

    name: str
    #: What is sent of a message; `TypeError` for what JSON cannot hold.
    to_data: Callable[[object], Data]

    def join(self, client: WsClient, group: str) -> None:
        """Put a client into a group if it is open."""

    def leave(self, client: WsClient, group: str) -> None:
        """Take a client out of a group."""

    def broadcast(
        self,
        message: object,
        group: str | None = None,
        exclude: Excluded = None,
        *,
        is_scoped: bool = False,
    ) -> bool:
        """Send to all clients of the channel."""


class WsClient:
    """One client: the peer of one connection, as its listener and others see it."""

    __slots__ = ("__weakref__", "_channel", "_connection", "groups", "session")

    def __init__(self, channel: Home, connection: Connection, session: Session) -> None:
        self._channel = channel
        self._connection = connection
        #: The groups that it is in; when it has gone, those that it was in. Its channel sets it.
        self.groups: frozenset[str] = frozenset()
        self.session = session

    @property
    def id(self) -> str:
        """The session's id."""
        return self.session.id

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._channel.name

    @property
    def close_code(self) -> int:
        """The code of the peer's close frame; 1005 when it had none, 1006 when none came (yet)."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str:
        """The reason of the peer's close frame, ``""`` without one."""
        return self._connection.close_reason

    def send(self, message: object, wait: bool = True, *, compress: bool = True) -> bool:
        """Queue `message` to this client: `True`; `False` for `None`.

        Returns at once while less than ``send_queue_size`` waits for this client; past that it
        blocks the calling greenlet for at most ``send_timeout``, then closes the client as a slow
        consumer and raises `SlowConsumerError`. With ``wait=False`` it never waits:
        ``slow_consumer`` decides (`False` where it dropped the message). From a native thread it
        does not wait for the client: it is `True` while the threads have less than
        ``send_queue_size`` on its way to the loop, whose thread decides later, and logs what it
        drops; past that, after a moment for the loop, it is as with ``wait=False``.
        ``compress=False`` is for what must not be compressed: a secret beside what a peer chose.

        Raises `ConnectionClosed` when the client is not open, `TypeError` for what JSON cannot
        hold.
        """
        if message is None:
            return False
        connection = self._connection
        return connection.send(
            connection.encode(self._channel.to_data(message), compress), wait=wait
        )

    def broadcast(
        self, message: object, group: str | None = None, exclude: Excluded = None
    ) -> bool:
        """Send to every open client of this client's channel, itself included.

        The whole server with ``broadcast_scope="server"``. See `WsClients.broadcast`.
        """
        return self._channel.broadcast(message, group, exclude, is_scoped=True)

    def is_open(self) -> bool:
        """True from before `on_open` until the closing handshake starts."""
        return self._connection.is_open

    def is_close(self) -> bool:
        """The opposite of `is_open`."""
        return not self._connection.is_open

    def close(
        self, code: CloseCode | int | str = CloseCode.NORMAL_CLOSURE, reason: str = ""
    ) -> None:
        """Send what is queued, then start the closing handshake. Never waits; once is enough.

        `code` is a `CloseCode`, an int out of 1000-1003, 1007-1014, 3000-4999, or the seed's name
        (``"GOING_AWAY"``, in any case); `reason` has at most 123 bytes of UTF-8. A text alone that
        is no name, ``close("bye")``, is a reason with 1000. Else it is a `ValueError`.
        """
        self._connection.close(*close_arguments(code, reason))

    def get_session(self) -> Session:
        """The `session`."""
        return self.session

    def join(self, group: str) -> None:
        """Join a group of the channel; nothing when not open. Raises `TypeError` for no `str`.

        Leaving is automatic when the connection ends.
        """
        self._channel.join(self, group)

    def leave(self, group: str) -> None:
        """Leave a group; nothing when not in it."""
        self._channel.leave(self, group)

    def __repr__(self) -> str:
        state = "open" if self.is_open() else "closed"
        return f"<WsClient {self.id} of channel {self.channel!r}, {state}>"


Excluded = WsClient | Collection[WsClient] | None


class WsClients:
    """The clients open on a channel, or on a group of it; live, not a snapshot."""

    __slots__ = ("_channel", "_group")

    def __init__(self, channel: Gathering, group: str | None = None) -> None:
        self._channel = channel
        self._group = group

    def size(self) -> int:
        """How many clients are open now."""
        return self._channel.size(self._group)

    def __len__(self) -> int:
        return self._channel.size(self._group)

    def __bool__(self) -> bool:
        # An object to keep and pass on: that nobody is connected now does not make it nothing.
        return True

    def __iter__(self) -> Iterator[WsClient]:
        return iter(self.get_clients())

    def get_clients(self) -> list[WsClient]:
        """A snapshot of the open clients."""
        return self._channel.clients(self._group)

    def find(self, user_principal: Any) -> list[WsClient]:
        """A snapshot of the open clients of one user."""
        return [c for c in self.get_clients() if c.session.user_principal == user_principal]

    def group(self, name: str) -> WsClients:
        """The clients of one group of the channel. Raises `TypeError` for no `str`."""
        check_group(name)
        return WsClients(self._channel, name)

    def broadcast(
        self, message: object, group: str | None = None, exclude: Excluded = None
    ) -> bool:
        """Send to every client that is open now: `True`; `False` for `None`.

        `group` narrows it to a group, `exclude` leaves out a client or several ("the others").
        Encoded (and compressed) once. Never waits for a slow client: past its mark
        ``slow_consumer`` decides. A broadcast to very many lets other greenlets run in between.
        Raises `TypeError` for what JSON cannot hold, and for an `exclude` that is no client.
        """
        return self._channel.broadcast(message, self._group if group is None else group, exclude)

    #: As with one client.
    send = broadcast

    def close(
        self, code: CloseCode | int | str = CloseCode.NORMAL_CLOSURE, reason: str = ""
    ) -> None:
        """Close each of them; see `WsClient.close`."""
        # A mistake is one, whether anybody is there or not.
        code, reason = close_arguments(code, reason)
        for client in self.get_clients():
            client.close(code, reason)

    def __repr__(self) -> str:
        group = f", group {self._group!r}" if self._group else ""
        return f"<WsClients of channel {self._channel.name!r}{group}: {self.size()}>"
