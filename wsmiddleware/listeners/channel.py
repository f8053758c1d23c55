"""A channel: a name, its listener class, its open connections, its groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gevent.lock import BoundedSemaphore

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.clients import Excluded, WsClient, WsClients, to_data
from wsmiddleware.listeners.edges import Edge, Edges, Scope
from wsmiddleware.protocol.prepared import PreparedMessage
from wsmiddleware.settings import Settings, validate

if TYPE_CHECKING:
    from wsmiddleware.listeners.invoke import Member
    from wsmiddleware.metrics import Metrics

__all__ = ["Channel"]

_log = logging.getLogger("websocket")

_CALLBACKS = (
    "on_handshake",
    "on_first_open",
    "on_open",
    "on_open_async",
    "on_message",
    "on_binary_message",
    "on_close",
    "on_error",
    "on_last_close",
)
#: Clients that a broadcast reaches before the loop gets its turn: about 2 ms.
_SLICE = 400


class Channel:
    """One channel of one middleware. It owns its set of connections: one add, one remove.

    Broadcasting, and reading who is there, may be done from any greenlet and any native thread; the
    rest is the hub's.
    """

    def __init__(
        self,
        name: str,
        listener_class: type[WebSocketListener],
        settings: Settings,
        metrics: Metrics,
        scope: Callable[[], Iterator[Channel]],
    ) -> None:
        self.name = name
        self.listener_class = listener_class
        self.settings = settings
        self.metrics = metrics
        #: Connections whose last callback has not ended yet; more than are open.
        self.unfinished = 0
        #: Called when nothing runs or is due any more.
        self.on_settled: Callable[[], None] | None = None
        self.wsclients = WsClients(self)
        self._scope = scope
        self._members: dict[WsClient, Member] = {}
        self._groups: dict[str, dict[WsClient, Member]] = {}
        self._edges = Edges(self)
        # Broadcasts that let the loop turn in between must not overtake each other.
        self._order = BoundedSemaphore(1)
        self._read_class()

    def _read_class(self) -> None:
        """What the class says of itself, checked: `ListenerError` and `ConfigError` name it."""
        cls = self.listener_class
        where = f"{cls.__module__}.{cls.__qualname__}"
        self.callbacks = frozenset(name for name in _CALLBACKS if hasattr(cls, name))
        for name in self.callbacks:
            if not callable(getattr(cls, name)):
                raise ListenerError(f"{where}.{name} is no method: {getattr(cls, name)!r}")
            is_classmethod = getattr(getattr(cls, name), "__self__", None) is cls
            if is_classmethod != (name in ("on_handshake", "on_first_open", "on_last_close")):
                must = "must not be" if is_classmethod else "must be"
                raise ListenerError(f"{where}.{name} {must} a classmethod")
        self.text_callback = "on_message" if "on_message" in self.callbacks else ""
        self.binary_callback = self.text_callback
        if "on_binary_message" in self.callbacks:
            self.binary_callback = "on_binary_message"
        if not isinstance(cls.path, str) or (cls.path and not cls.path.startswith("/")):
            raise ListenerError(f'{where}.path is {cls.path!r}; valid is "" or "/room/<int:id>"')
        self.route = cls.path
        self.idle_timeout: float = self.settings.idle_timeout
        if cls.idle_timeout is not None:
            self.idle_timeout = validate("idle_timeout", cls.idle_timeout, where)
        self.subprotocols: tuple[str, ...] = self.settings.subprotocols
        if cls.subprotocols is not None:
            self.subprotocols = validate("subprotocols", cls.subprotocols, where)

    # -- who is there -------------------------------------------------------------------------

    def size(self, group: str | None = None) -> int:
        """How many clients are open on the channel, or in a group of it."""
        return len(self._members if group is None else self._groups.get(group, ()))

    def clients(self, group: str | None = None) -> list[WsClient]:
        """A snapshot of them."""
        return list(self._members if group is None else self._groups.get(group, ()))

    def members(self, group: str | None = None) -> list[Member]:
        """A snapshot of their members."""
        members = self._members if group is None else self._groups.get(group, {})
        return list(members.values())

    def add(self, member: Member, scope: Scope | None) -> Edge | None:
        """Count and list an open connection; the edge that its `on_open` has to wait for."""
        self._members[member.wsclient] = member
        self.unfinished += 1
        self.metrics.opened[self.name] += 1
        if len(self._members) == 1:
            self._first = self._edges.opened(member.connection.reactor, scope)
        return self._first

    def remove(self, member: Member, scope: Scope | None) -> None:
        """A connection is no longer open."""
        client = member.wsclient
        del self._members[client]
        for group in client.groups:
            self.leave(client, group)
        if not self._members:
            self._first = None
            self._edges.emptied(member.connection.reactor, scope)

    _first: Edge | None = None

    def finished(self) -> None:
        """The last callback of a connection has ended."""
        self.unfinished -= 1
        if not self.unfinished:
            self._edges.wake()
            self.settle()

    def settle(self) -> None:
        """Tell whoever waits for it that nothing runs or is due any more."""
        if self.is_settled and self.on_settled is not None:
            self.on_settled()

    @property
    def is_settled(self) -> bool:
        """True when every callback of every connection, and of every edge, has ended."""
        return not self.unfinished and self._edges.is_idle

    # -- groups -------------------------------------------------------------------------------

    def join(self, client: WsClient, group: str) -> bool:
        """Put an open client into a group; `False` for one that is not open."""
        member = self._members.get(client)
        if member is None:
            return False
        self._groups.setdefault(group, {})[client] = member
        if client not in self._members:  # it closed while a native thread was doing this
            self.leave(client, group)
            return False
        return True

    def leave(self, client: WsClient, group: str) -> None:
        """Take a client out of a group."""
        members = self._groups.get(group)
        if members is not None:
            members.pop(client, None)
            if not members:
                self._groups.pop(group, None)

    # -- broadcast ----------------------------------------------------------------------------

    def broadcast(
        self,
        message: object,
        group: str | None = None,
        exclude: Excluded = None,
        *,
        is_scoped: bool = False,
    ) -> bool:
        """See `WsClients.broadcast`; with `is_scoped` as far as ``broadcast_scope`` says."""
        if message is None:
            return False
        prepared = PreparedMessage(to_data(message))
        excluded = {exclude} if isinstance(exclude, WsClient) else set(exclude or ())
        is_server_wide = is_scoped and self.settings.broadcast_scope == "server"
        for channel in tuple(self._scope()) if is_server_wide else (self,):
            channel.deliver(prepared, group, excluded)
        return True

    def deliver(
        self, prepared: PreparedMessage, group: str | None, excluded: set[WsClient]
    ) -> None:
        """Send to the clients that are open now, in this process."""
        members = self.members(group)
        if excluded:
            members = [member for member in members if member.wsclient not in excluded]
        if not members:
            return
        reactor = members[0].connection.reactor
        if reactor.is_here() and not reactor.is_in_hub():
            self._deliver(members, prepared)
        else:
            reactor.defer(self._deliver, members, prepared)

    def _deliver(self, members: list[Member], prepared: PreparedMessage) -> None:
        with self._order:
            for start in range(0, len(members), _SLICE):
                if start:
                    members[0].connection.reactor.pause()
                for member in members[start : start + _SLICE]:
                    connection = member.connection
                    connection.deliver(prepared.wire(connection.window_bits))
