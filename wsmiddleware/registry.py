"""The channels of one middleware by name and by path, and who is connected in this process."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextvars import Context, ContextVar, Token
from typing import Any

import gevent
from gevent.event import Event
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, Map, Rule

from wsmiddleware.exceptions import ListenerError, WebSocketError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.contract import Contract
from wsmiddleware.listeners.instance import Instance
from wsmiddleware.listeners.loader import listener_files, load_file
from wsmiddleware.metrics import Metrics
from wsmiddleware.net.reactor import Reactor, step_for
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.settings import Settings

__all__ = ["CURRENT", "Registry"]

#: Whose request or callback runs here: the registries of the middlewares around it, the outermost
#: first. A greenlet or thread of the application's own is nobody's.
CURRENT: ContextVar[tuple[Registry, ...]] = ContextVar("wsmiddleware", default=())

#: Clients closed in one batch, and seconds until the next batch: so ten thousand do not reconnect
#: in one instant, and the loop is not held up.
_BATCH = 100
_BATCH_INTERVAL = 0.025


class _Rule(Rule):
    """A rule whose converters are known to match: werkzeug compiles them at the first request."""

    def get_converter(self, *arguments: Any) -> BaseConverter:
        converter = super().get_converter(*arguments)
        re.compile(converter.regex)
        return converter


def _shape(pattern: str) -> str:
    return re.sub(r"<[^<>]*>", "<>", pattern).rstrip("/") or "/"


class Registry:
    """Owns the channels and the reactor. Reading is for any thread, the rest for the hub's."""

    def __init__(self, settings: Settings, metrics: Metrics, prefix: str) -> None:
        self.channels: dict[str, Channel] = {}
        #: True once the process goes down: nobody new is let in.
        self.is_draining = False
        self._settings = settings
        self._metrics = metrics
        self._prefix = prefix
        # No redirects: a WebSocket client follows none.
        self._urls = Map(strict_slashes=False, merge_slashes=False, redirect_defaults=False)
        #: Channels by their path, where it has no parameters. Against the map: saves 6 % of a
        #: connect.
        self._roots: dict[str, Channel] = {}
        #: What a connection's context begins as: in its callbacks we are current.
        self._context = Context()
        self._context.run(CURRENT.set, (self,))
        #: The names of the channels by where they are, whatever their parameters are called.
        self._places: dict[str, str] = {}
        #: A channel is outside of the prefix.
        self.has_urls = False
        self._reactor: Reactor | None = None
        # Handshakes whose 101 is on its way; they are not listed yet.
        self._arriving = 0
        self._settled = Event()

    # -- channels -----------------------------------------------------------------------------

    def load(
        self, directory: str | os.PathLike[str]
    ) -> Iterator[tuple[str, Channel | ListenerError]]:
        """Add the channels of a directory: each name with its channel, or with what is wrong.

        Raises `ListenerError` when the directory itself cannot be read.
        """
        for file in listener_files(directory):
            try:
                yield file.stem, self.add(file.stem, load_file(file))
            except WebSocketError as exc:
                # A class's own setting raises ConfigError; it is the listener that is broken.
                yield file.stem, exc if isinstance(exc, ListenerError) else ListenerError(str(exc))

    def add(self, name: str, listener_class: type[WebSocketListener]) -> Channel:
        """A new channel; `ListenerError` for a name or a class that cannot be one, or is taken."""
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ListenerError(f"channel {name!r}: a name is an identifier without a leading _")
        if not (isinstance(listener_class, type) and issubclass(listener_class, WebSocketListener)):
            raise ListenerError(
                f"channel {name}: {listener_class!r} is no subclass of WebSocketListener"
            )
        if name in self.channels:
            raise ListenerError(f"channel {name} is taken, by {self.channels[name].contract.where}")
        contract = Contract(listener_class, self._settings)
        channel = Channel(name, contract, self._metrics, self._scope, self.new_context)
        channel.on_settled = self._settled.set
        root = contract.url or f"{self._prefix}/{name}"
        channel.pattern = root.rstrip("/") + contract.path if contract.path else root
        places = {_shape(root), _shape(channel.pattern)}
        self._check_are_free(channel, places)
        self._route(channel, root)
        self._places.update(dict.fromkeys(places, name))
        self.channels[name] = channel
        if "<" not in root:
            self._roots[root] = channel
        self.has_urls = self.has_urls or bool(contract.url)
        return channel

    def _check_are_free(self, channel: Channel, places: set[str]) -> None:
        contract = channel.contract
        for place in places & self._places.keys():
            name = "url" if contract.url else "path"
            raise ListenerError(
                f"{contract.place_of(name)}: {name} is {getattr(contract, name)!r}, which is "
                f"taken, by the channel {self._places[place]}"
            )

    def _route(self, channel: Channel, root: str) -> None:
        try:
            # The one with parameters first: it is the one that may be wrong.
            for path in dict.fromkeys([channel.pattern, root]):
                self._urls.add(_Rule(path, endpoint=channel.name))
        except (ValueError, LookupError, TypeError, SyntaxError, OverflowError, re.error) as exc:
            contract = channel.contract
            name = "path" if contract.path else "url"
            raise ListenerError(
                f"{contract.place_of(name)}: {name} is {getattr(contract, name)!r}, which "
                f"werkzeug's routing does not take: {exc}"
            ) from exc

    def find(self, path: str) -> tuple[Channel, dict[str, Any]] | None:
        """The channel at a path, with the values of its ``path``; `None` where there is none."""
        root = self._roots.get(path)
        if root is not None:
            return root, {}
        try:
            name, values = self._urls.bind("").match(path, "GET")
        except HTTPException:
            return None
        return self.channels[name], dict(values)

    def _scope(self) -> Iterator[Channel]:
        return iter(self.channels.values())

    # -- whose code runs ----------------------------------------------------------------------

    def enter(self) -> Token[tuple[Registry, ...]]:
        """We are current from now on, with those around us, until ``CURRENT.reset``."""
        return CURRENT.set((*CURRENT.get(), self))

    def new_context(self) -> Context:
        """A context for callbacks, in which we are current, and who was around a handshake."""
        around = CURRENT.get()
        if around and self._context[CURRENT] != (*around, self):
            self._context = Context()
            self._context.run(CURRENT.set, (*around, self))
        return self._context.copy()

    # -- connections --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Open connections."""
        return sum(channel.size() for channel in tuple(self.channels.values()))

    @property
    def unfinished(self) -> int:
        """Connections that take a place: arriving, open, or with callbacks or a socket to end."""
        # Not the sum of all channels: each handshake asks, twice, and there may be thousands.
        return self._metrics.held + self._arriving

    def members(self) -> Iterator[Instance]:
        """A snapshot of every open connection's member, channel by channel."""
        channels = tuple(self.channels.values())
        return itertools.chain.from_iterable(channel.members() for channel in channels)

    # Two calls, no context manager: saves 4 % of a connect.
    def arrive(self) -> None:
        """Reserve a place for a connection that is not listed yet: sending the 101 may block."""
        self._arriving += 1

    def arrived(self) -> None:
        """Give the place back: the connection is listed, or will never be."""
        self._arriving -= 1
        self._settled.set()

    @property
    def reactor(self) -> Reactor:
        """The reactor of all connections; made for the first one, after any fork, in its thread."""
        if self._reactor is None:
            self._reactor = Reactor(step_for(*self._timeouts()), self._metrics.progress)
        return self._reactor

    def is_here(self) -> bool:
        """False where the connections run on another thread's loop."""
        return self._reactor is None or self._reactor.is_here()

    def _timeouts(self) -> list[float]:
        """The time-outs that the clock serves, in seconds; 0 is never."""
        row = self._settings
        times = [row.request_timeout, row.ping_interval, row.ping_timeout]
        times += [row.close_timeout, row.send_timeout]
        return times + [channel.settings.idle_timeout for channel in self.channels.values()]

    # -- going down ---------------------------------------------------------------------------

    def drain(self, code: CloseCode, reason: str, timeout: float) -> None:
        """Let nobody in, close everybody, and wait until their last callbacks have ended.

        Blocks for at most `timeout` seconds. A peer that has not answered in four fifths of it is
        dropped: the rest is for the callbacks that this brings about.
        """
        self.is_draining = True
        with gevent.Timeout(timeout * 0.8, False):
            self._close_all(code, reason, timeout)
            while not self._is_settled():
                self._wait_for_change()
                # Again: connections that were arriving may have been listed meanwhile.
                self._close_all(code, reason, timeout)
        for channel in tuple(self.channels.values()):
            for member in (*channel.unfinished, *channel.lingering):
                member.connection.abort()
        with gevent.Timeout(timeout * 0.2, False):
            while not self._is_settled():
                self._wait_for_change()

    def _wait_for_change(self) -> None:
        self._settled.wait()
        self._settled.clear()

    def _close_all(self, code: CloseCode, reason: str, timeout: float) -> None:
        """Close in batches, all of them begun in the first half of `timeout`."""
        interval = min(_BATCH_INTERVAL, timeout / 2 * _BATCH / max(1, self.size))
        for count, member in enumerate(self.members(), 1):
            member.connection.close(code, reason)
            if not count % _BATCH:
                gevent.sleep(interval)

    def _is_settled(self) -> bool:
        settled = all(channel.is_settled for channel in tuple(self.channels.values()))
        return settled and not self._arriving
