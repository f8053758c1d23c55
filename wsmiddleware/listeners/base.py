"""`WebSocketListener`, the class that an application derives from: one instance a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wsmiddleware.listeners.copies import warn_of_class

if TYPE_CHECKING:
    from wsmiddleware.listeners.clients import WsClient, WsClients
    from wsmiddleware.listeners.session import Session

__all__ = ["WebSocketListener"]


class WebSocketListener:
    """A channel's behaviour. `self` is one connection's state, the class is the channel's.

    Every callback is optional. Define those you need (`on_first_open` and `on_last_close` run when
    the channel gets its first connection and has lost its last, the others for each connection):

    ====================================  ======================================================
    ``on_handshake(cls, request)``        classmethod; may refuse before the 101 and names the user
    ``on_first_open(cls, wsclients)``     classmethod; the channel got its first connection
    ``on_open(self, wsclient)``           a returned value is sent
    ``on_open_async(self, wsclient)``     beside `on_open`, in a greenlet of its own; the same
    ``on_message(self, wsclient, m)``     text as `str`, and binary as `bytes` without the next one
    ``on_binary_message(self, wsclient, data)``  binary as `bytes`
    ``on_close(self, wsclient, reason_phrase)``  exactly once
    ``on_error(self, wsclient, exc)``     what a callback raised; a returned value is sent
    ``on_last_close(cls)``                classmethod; the channel is empty again
    ====================================  ======================================================

    The callbacks of one connection run one at a time and in order, and may block; each, those of
    the class too, for ``request_timeout`` at most. Derived from the seed's component.
    """

    # Settings of the channel's own, each with the middleware's values; `None` leaves it to that.

    #: Pages of which sites may connect: ``"same-origin"``, ``"*"`` or a list.
    allowed_origins: ClassVar[str | Sequence[str] | None] = None
    #: Whether permessage-deflate is offered.
    compression: ClassVar[bool | None] = None
    #: Seconds without a message either way until the connection is closed with 1001; 0 is never.
    idle_timeout: ClassVar[float | None] = None
    #: Messages a second from one client; past it reading pauses.
    max_message_rate: ClassVar[float | None] = None
    #: Bytes; a larger message closes with 1009.
    max_message_size: ClassVar[int | None] = None
    #: Bytes that may wait for one client: the high-water mark.
    send_queue_size: ClassVar[int | None] = None
    #: Supported subprotocols in order of preference.
    subprotocols: ClassVar[Sequence[str] | None] = None

    #: ``"json"``: `on_message` gets what a text says. A text that is no JSON is `on_error`'s, or
    #: closes with 1007 where there is none.
    decode: ClassVar[Literal["json"] | None] = None

    #: Where the channel is, in place of ``<prefix>/<channel>``: ``"/mqtt"``, ``"/ocpp/<id>"``.
    url: ClassVar[str] = ""

    #: What follows the channel in the URL, in werkzeug's routing syntax (``"/room/<int:id>"``).
    path: ClassVar[str] = ""

    #: The connection's client, set before `on_open`.
    wsclient: WsClient
    #: The clients that are open on the channel, this one among them, set before `on_open`.
    wsclients: WsClients
    #: What is known of the connection's request, set before `on_open`.
    session: Session
    #: The channel's name, set before `on_open`.
    channel: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warn_of_class(cls)
