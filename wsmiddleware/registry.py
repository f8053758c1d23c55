"""The channels of one middleware by name, and who is connected to them in this process."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
from gevent.event import Event

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.invoke import Member
from wsmiddleware.metrics import Metrics
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.settings import Settings

__all__ = ["Registry"]

#: Clients closed before the loop gets its turn.
_SLICE = 100


class Registry:
    """Owns the channels. Reading is for any thread, the rest for the hub's."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.channels: dict[str, Channel] = {}
        #: True once it goes down: nobody new is let in.
        self.is_draining = False
        self._settings = settings
        self._metrics = metrics
        self._settled = Event()

    def add(self, name: str, listener_class: type[WebSocketListener]) -> Channel:
        """A new channel; `ListenerError` for a name or a class that cannot be one."""
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ListenerError(f"channel {name!r}: a name is an identifier without a leading _")
        if not (isinstance(listener_class, type) and issubclass(listener_class, WebSocketListener)):
            raise ListenerError(
                f"channel {name}: {listener_class!r} is no subclass of WebSocketListener"
            )
        if name in self.channels:
            other = self.channels[name].listener_class
            raise ListenerError(f"channel {name} is taken, by {other.__module__}.{other.__name__}")
        channel = Channel(name, listener_class, self._settings, self._metrics, self._scope)
        channel.on_settled = self._settle
        self.channels[name] = channel
        return channel

    def _scope(self) -> Iterator[Channel]:
        return iter(self.channels.values())

    @property
    def size(self) -> int:
        """Open connections."""
        return sum(channel.size() for channel in self.channels.values())

    @property
    def unfinished(self) -> int:
        """Connections that hold a place: open, or with callbacks still to end."""
        return sum(channel.unfinished for channel in self.channels.values())

    def members(self) -> Iterator[Member]:
        """A snapshot of every open connection's member, channel by channel."""
        for channel in tuple(self.channels.values()):
            yield from channel.members()

    def drain(self, code: CloseCode, reason: str, timeout: float) -> None:
        """Let nobody in, close everybody, and wait until their last callbacks have ended.

        Blocks for at most `timeout` seconds, then drops what is left.
        """
        self.is_draining = True
        with gevent.Timeout(timeout, False):
            for count, member in enumerate(self.members(), 1):
                member.connection.close(code, reason)
                if not count % _SLICE:
                    gevent.sleep(0)
            self._await_settled()
        for member in self.members():
            member.connection.abort()

    def _await_settled(self) -> None:
        while not all(channel.is_settled for channel in self.channels.values()):
            self._settled.clear()
            self._settled.wait()

    def _settle(self) -> None:
        self._settled.set()
