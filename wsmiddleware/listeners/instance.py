"""What a view sees of an open connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.clients import WsClient
    from wsmiddleware.listeners.session import Session
    from wsmiddleware.net.connection import Connection

__all__ = ["Instance", "Items"]


class Items:
    """Attributes as items too, as the seed's structs are read."""

    __slots__ = ()

    #: The names of the attributes that are items too.
    _names: ClassVar[tuple[str, ...]]

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def keys(self) -> tuple[str, ...]:
        """The names, so that `dict()` takes it."""
        return self._names


class Instance(Items):
    """One open connection: the live listener and the session. The same one in every snapshot."""

    __slots__ = ("component", "connection", "session", "wsclient")
    _names = ("component", "session")

    def __init__(
        self,
        component: WebSocketListener,
        session: Session,
        wsclient: WsClient,
        connection: Connection,
    ) -> None:
        self.component = component
        self.session = session
        #: For us, who send to it.
        self.wsclient = wsclient
        self.connection = connection

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the component by channel and class, nothing secret of the session."""
        cls = type(self.component)
        component = {"channel": self.component.channel, "class": f"{cls.__module__}.{cls.__name__}"}
        return {"component": component, "session": self.session.to_dict()}
