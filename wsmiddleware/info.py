"""Middlewares from anywhere: `websocket_info`, `channel`, `publish`; the process-wide reference.

A request handler, a job or a native thread reaches the middleware from here without being handed
it. Middlewares are known weakly: one that nobody holds is gone.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _read_version
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from wsmiddleware.listeners.clients import Excluded, WsClient, WsClients
from wsmiddleware.listeners.instance import Instance, Items
from wsmiddleware.log import LOGGER_NAME
from wsmiddleware.log import log as _log
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.registry import CURRENT
from wsmiddleware.speedups import IMPLEMENTATION

if TYPE_CHECKING:
    from pathlib import Path

    from wsmiddleware.listeners.base import WebSocketListener
    from wsmiddleware.listeners.channel import Channel
    from wsmiddleware.listeners.session import Session
    from wsmiddleware.registry import Registry
    from wsmiddleware.settings import Settings

__all__ = [
    "ChannelView",
    "Info",
    "Instance",
    "add",
    "channel",
    "channel_of",
    "info_of",
    "is_alone",
    "meant",
    "middlewares",
    "publish",
    "publish_to",
    "shutdown",
    "websocket_info",
]


class Middleware(Protocol):
    """What is asked of the middlewares of this process."""

    settings: Settings
    registry: Registry
    #: A server has begun, or a request has come.
    is_serving: bool
    has_warned_of_nobody: bool

    @property
    def directory(self) -> Path | None:
        """The listener directory, whether it exists or not."""

    def shutdown(self, code: CloseCode = ..., timeout: float = ...) -> None:
        """Close every client, run what is left of callbacks. Blocks."""


_middlewares: list[weakref.ref[Middleware]] = []

try:
    VERSION = _read_version("wsmiddleware")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"


def add(middleware: Middleware) -> None:
    """Make a middleware known to the process."""
    _middlewares.append(weakref.ref(middleware, _middlewares.remove))


def is_alone() -> bool:
    """True while the process has one middleware: whose code runs makes no difference."""
    return len(_middlewares) < 2


def middlewares() -> list[Middleware]:
    """The middlewares of this process, oldest first."""
    return [middleware for ref in tuple(_middlewares) if (middleware := ref()) is not None]


def meant() -> list[Middleware]:
    """Those of the request or callback that runs here, outermost first; outside of any, all."""
    known, current = middlewares(), CURRENT.get()
    return [each for each in known if each.registry in current] if current else known


class Info(Items):
    """What `websocket_info` gives."""

    __slots__ = _names = (
        "config",
        "config_file",
        "instances",
        "log",
        "mapping",
        "speedups",
        "version",
    )

    def __init__(self, newest: Middleware | None, instances: list[Instance]) -> None:
        #: The package's version.
        self.version = VERSION
        #: The absolute path of the listener directory; `None` without a middleware.
        self.mapping = str(newest.directory) if newest and newest.directory else None
        #: The effective settings by keyword.
        self.config: dict[str, Any] = newest.settings.to_dict() if newest else {}
        #: The settings' file; `None` where there is none.
        file = newest.settings.config_file if newest else None
        self.config_file = str(file) if file else None
        #: The logger's name.
        self.log = LOGGER_NAME
        #: ``"c"`` with the C extension in use, else ``"python"``.
        self.speedups = IMPLEMENTATION
        #: One entry per open connection of the process.
        self.instances = instances

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without anything secret."""
        return {
            "version": self.version,
            "mapping": self.mapping,
            "config": self.config,
            "config_file": self.config_file,
            "log": self.log,
            "speedups": self.speedups,
            "instances": [instance.to_dict() for instance in self.instances],
        }


class _RawSession:
    """A session with the connection object under ``["raw"]``."""

    __slots__ = ("_session", "raw")

    _session: Session
    raw: object

    def __init__(self, session: Session, raw: object) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "raw", raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._session, name, value)

    def __getitem__(self, name: str) -> Any:
        return self.raw if name == "raw" else self._session[name]


def _with_raw(each: Instance) -> Instance:
    session: Any = _RawSession(each.session, each.connection)
    return Instance(each.component, session, each.wsclient, each.connection)


def websocket_info(add_raw: bool = False) -> Info:
    """A snapshot of this process: settings, and every open connection with its listener.

    Of several middlewares it is the one whose request or callback runs here; outside of any the
    instances are those of all, the rest is the newest's. Empty before there is one. `add_raw` adds
    ``session["raw"]``, the connection object. Never blocks and takes no lock; from any greenlet and
    any native thread. What it lists may close at any time.
    """
    return info_of(meant(), add_raw)


def info_of(known: list[Middleware], add_raw: bool = False) -> Info:
    """The same of these middlewares."""
    instances: list[Instance] = []
    for middleware in known:
        members = middleware.registry.members()
        if add_raw:
            instances += map(_with_raw, members)
        else:
            instances += members
    return Info(known[-1] if known else None, instances)


@dataclass(frozen=True, slots=True)
class ChannelView:
    """What `channel` gives."""

    #: The channel's name.
    name: str
    #: The class that serves it: the very one that the connections have, with its attributes.
    listener: type[WebSocketListener]
    #: The clients that are open on it; live, not a snapshot.
    wsclients: WsClients


class _Several:
    """The channels of one name of several middlewares, as `WsClients` asks of one."""

    def __init__(self, name: str, channels: list[Channel]) -> None:
        self.name = name
        self._channels = channels

    def size(self, group: str | None = None) -> int:
        """How many clients are open."""
        return sum(each.size(group) for each in self._channels)

    def clients(self, group: str | None = None) -> list[WsClient]:
        """A snapshot of them."""
        return [client for each in self._channels for client in each.clients(group)]

    def broadcast(
        self, message: object, group: str | None = None, exclude: Excluded = None
    ) -> bool:
        """Send to them."""
        results = [each.broadcast(message, group, exclude) for each in self._channels]
        return all(results)


def channel(name: str) -> ChannelView:
    """A channel by its name: the class that serves it, and who is connected to it.

    From any code of a process with a middleware, any greenlet and any native thread; never blocks.
    Of several middlewares it is that of the one whose request or callback runs here; outside of any
    the clients are those of all that have the name, the class is the newest's.
    Raises `LookupError` when none has it.
    """
    return channel_of(meant(), name)


def channel_of(known: list[Middleware], name: str) -> ChannelView:
    """The same of these middlewares."""
    found = [m.registry.channels[name] for m in known if name in m.registry.channels]
    if not found:
        names = sorted({each for m in known for each in m.registry.channels})
        text = f"no channel {name!r}; there are: {', '.join(names) or 'none'}"
        if any(name in m.registry.channels for m in middlewares()):
            text += "; it is another application's of this process: ask that one's middleware"
        raise LookupError(text)
    wsclients = found[0].wsclients if len(found) == 1 else WsClients(_Several(name, found))
    return ChannelView(name, found[-1].listener_class, wsclients)


def publish(channel: str, message: object, group: str | None = None) -> bool:
    """Broadcast to a channel (or a group of it) from any code of a process with a middleware.

    `True`; `False` for `None`. Which middleware's is as with `channel`. Never waits for a client;
    from any greenlet and any native thread. One to very many lets other greenlets run in between.
    Raises `LookupError` when no middleware has that channel, `TypeError` for what JSON cannot hold.
    """
    return publish_to(meant(), channel, message, group)


def publish_to(
    known: list[Middleware], channel: str, message: object, group: str | None = None
) -> bool:
    """The same of these middlewares."""
    found = channel_of(known, channel)
    if not any(m.is_serving for m in known):
        _warn_of_nobody(known[0])
    return found.wsclients.broadcast(message, group)


def _warn_of_nobody(middleware: Middleware) -> None:
    """Say once that nobody can be connected to this process."""
    if not middleware.has_warned_of_nobody:
        middleware.has_warned_of_nobody = True
        _log.warning(
            "publish() reaches nobody: this process has served no request, and other processes "
            "are not reached. Publish from the process that serves, in a view of it for one"
        )


def start_serving() -> None:
    """Tell the middlewares that a server begins: clients may come from now on."""
    for middleware in middlewares():
        middleware.is_serving = True


def shutdown(code: CloseCode, timeout: float) -> None:
    """Shut every middleware of the process down; see `WebSocketMiddleware.shutdown`. Blocks."""
    gevent.joinall([gevent.spawn(m.shutdown, code, timeout) for m in middlewares()])
