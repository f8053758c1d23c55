"""A channel: a name, its open connections, its groups.

What its listener class says of it is `wsmiddleware.listeners.contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import Context
from typing import TYPE_CHECKING

from gevent import monkey

from wsmiddleware.listeners.clients import Excluded, WsClient, WsClients, check_group
from wsmiddleware.listeners.contract import Contract
from wsmiddleware.listeners.convert import reader, sender
from wsmiddleware.listeners.delivery import Deliveries
from wsmiddleware.listeners.edges import Edge, Edges
from wsmiddleware.net.underway import OVERHEAD, Underway
from wsmiddleware.protocol.prepared import PreparedMessage

if TYPE_CHECKING:
    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.instance import Instance
    from wsmiddleware.metrics import Metrics
    from wsmiddleware.net.reactor import Reactor
    from wsmiddleware.settings import Settings

__all__ = ["Channel"]

# Not gevent's: native threads join groups too. It is taken for a few instructions, never over a
# switch of greenlets. Reentrant, because the garbage collector may run a finalizer meanwhile.
_make_lock: Callable[[], AbstractContextManager[object]] = monkey.get_original("_thread", "RLock")


class Channel:
    """One channel of one middleware. It owns its set of connections: one add, one remove.

    Broadcasting, groups, and reading who is there are for any greenlet and any native thread; the
    rest is for the hub's.
    """

    def __init__(
        self,
        name: str,
        contract: Contract,
        metrics: Metrics,
        scope: Callable[[], Iterator[Channel]],
        new_context: Callable[[], Context] = Context,
    ) -> None:
        self.name = name
        self.contract = contract
        #: Those of the middleware, but for what its class says.
        self.settings: Settings = contract.settings
        self.metrics = metrics
        #: What is sent of a message.
        self.to_data = sender(self.settings.json)
        #: What a text says, for callbacks that get that; else `None`.
        self.loads = reader(self.settings.json) if contract.decode else None
        #: Connections whose last callback has not ended yet; more than are open.
        self.unfinished: set[Instance] = set()
        #: Those whose last callback has ended, while the last frame is on its way to the peer.
        self.lingering: set[Instance] = set()
        #: Its path in a URL as the class has it, parameters and all; its registry sets it.
        self.pattern = ""
        #: Called when nothing runs or is due any more.
        self.on_settled: Callable[[], None] | None = None
        self.wsclients = WsClients(self)
        #: A context for what runs for the channel itself.
        self.new_context = new_context
        self._scope = scope
        self.forked()

    def forked(self) -> None:
        """Start without connections: at the beginning, and in a forked child."""
        self.unfinished.clear()
        self._members: dict[WsClient, Instance] = {}
        self._groups: dict[str, dict[WsClient, Instance]] = {}
        # Taken where `_members` and `_groups` change together.
        self._lock = _make_lock()
        self._edges = Edges(self)
        #: The edge that whoever opens now has to wait for.
        self._first: Edge | None = None
        self._deliveries = Deliveries()
        self._underway = Underway(self.settings.send_queue_size)

    @property
    def listener_class(self) -> type[WebSocketListener]:
        """The class whose instances its connections have."""
        return self.contract.listener_class

    # -- who is there -------------------------------------------------------------------------

    def size(self, group: str | None = None) -> int:
        """How many clients are open on the channel, or in a group of it."""
        return len(self._members if group is None else self._groups.get(group, ()))

    def clients(self, group: str | None = None) -> list[WsClient]:
        """A snapshot of them."""
        return list(self._members if group is None else self._groups.get(group, ()))

    def members(self, group: str | None = None) -> list[Instance]:
        """A snapshot of their members."""
        members = self._members if group is None else self._groups.get(group, {})
        return list(members.values())

    def add(self, member: Instance) -> Edge | None:
        """Count and list an open connection; the edge that its `on_open` has to wait for."""
        self._members[member.wsclient] = member
        self.unfinished.add(member)
        self.metrics.held += 1
        self.metrics.opened[self.name] += 1
        if len(self._members) == 1:
            self._first = self._edges.opened(member.connection.reactor)
        return self._first

    def remove(self, member: Instance) -> None:
        """A connection is no longer open."""
        client = member.wsclient
        with self._lock:
            del self._members[client]
            for group in client.groups:
                self._drop(client, group)
        if not self._members:
            self._first = None
            self._edges.emptied(member.connection.reactor)

    def finished(self, member: Instance) -> None:
        """The last callback of a connection has ended."""
        self.unfinished.discard(member)
        self.lingering.add(member)
        if not self.unfinished:
            self._edges.wake()
            self.settle()

    def gone(self, member: Instance) -> None:
        """The socket of a connection has ended."""
        if member in self.lingering:
            self.lingering.discard(member)
            self.metrics.held -= 1
        self.settle()

    def settle(self) -> None:
        """Tell whoever waits for it that nothing runs or is due any more."""
        if self.is_settled and self.on_settled is not None:
            self.on_settled()

    @property
    def is_settled(self) -> bool:
        """True when all connections have gone, and every callback of theirs and of edges ended."""
        return not self.unfinished and not self.lingering and self._edges.is_idle

    # -- groups -------------------------------------------------------------------------------

    def join(self, client: WsClient, group: str) -> None:
        """Put a client into a group if it is open."""
        check_group(group)
        with self._lock:
            member = self._members.get(client)
            if member is not None:
                self._groups.setdefault(group, {})[client] = member
                client.groups |= {group}

    def leave(self, client: WsClient, group: str) -> None:
        """Take a client out of a group."""
        with self._lock:
            if client in self._members:
                self._drop(client, group)
                client.groups -= {group}

    def _drop(self, client: WsClient, group: str) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.pop(client, None)
            if not members:
                del self._groups[group]

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
        prepared = PreparedMessage(self.to_data(message))
        excluded = _read_excluded(exclude)
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
        if reactor.is_here():
            self._deliveries.deliver(reactor, members, prepared)
        elif self._underway.add_soon(prepared.size + OVERHEAD):
            reactor.defer(self._take_over, reactor, members, prepared)
        elif self._underway.miss():
            reactor.defer(self._take_missed, members)

    def _take_over(
        self, reactor: Reactor, members: list[Instance], prepared: PreparedMessage
    ) -> None:
        """The rest of `deliver` for a native thread."""
        try:
            self._deliveries.deliver(reactor, members, prepared)
        finally:
            self._underway.taken(prepared.size + OVERHEAD)

    def _take_missed(self, members: list[Instance]) -> None:
        """Native threads broadcast more than the mark allows: it is the same for each client."""
        count = self._underway.missed()
        for member in members:
            member.connection.overrun(count)


def _read_excluded(exclude: Excluded) -> set[WsClient]:
    if isinstance(exclude, WsClient):
        return {exclude}
    clients = set(() if exclude is None else exclude)
    # An id, for one, is nobody's: the client would get what is not for it.
    if isinstance(exclude, str) or not all(isinstance(client, WsClient) for client in clients):
        raise TypeError(f"exclude is a client or several, not {exclude!r}")
    return clients
