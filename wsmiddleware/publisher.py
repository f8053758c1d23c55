"""`Publisher`: for processes that serve nobody, such as Celery's, cron's, a shell.

It imports no gevent: its two threads are threads, and greenlets only where the process is patched.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Final

from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import (
    History,
    LinkDown,
    Outcome,
    Publication,
    ReadRequest,
    Status,
    Subject,
)
from wsmiddleware.backplane.envelope import Envelope, Kind, encode
from wsmiddleware.exceptions import ConfigError
from wsmiddleware.listeners.clients import check_group
from wsmiddleware.listeners.convert import to_data
from wsmiddleware.log import log as _log
from wsmiddleware.node.outgoing import KEPT, Outgoing, Ticket

__all__ = ["Publisher"]

#: Bytes of a message.
_MAX_SIZE = 1024 * 1024
#: Seconds that a call waits for its answer.
_PATIENCE = 1.0
#: Seconds between two tries, and for which it is known what a channel keeps.
_PAUSE, _KNOWN_FOR = 0.05, 60.0
_MAX_CHANNELS = 10_000


class _Everybody:
    """The default of `user`: nobody can pass it by mistake, as they can `None`."""

    def __repr__(self) -> str:
        return "<everybody>"


_EVERYBODY: Final = _Everybody()


class Publisher:
    """Publishes to the clients of every process that has this backplane and prefix.

    `url` is that of a Redis or Valkey (see ``backplane`` in the settings), `prefix` the nodes'
    ``backplane_prefix``. Nothing is connected before the first call. For any thread and greenlet;
    after a fork the child connects by itself. Used with ``with``, or closed with `close`.

    Raises `ConfigError` for a wrong URL or prefix, `ImportError` without redis-py.
    """

    def __init__(self, url: str, *, prefix: str = "wsmiddleware") -> None:
        self._address, self._prefix = Address.parse(url), prefix
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        # Here, so that the name can be imported without redis-py: `from wsmiddleware import *`.
        from wsmiddleware.backplane.redis import RedisEngine

        self._engine = RedisEngine(self._address, self._prefix)
        self._pid = os.getpid()
        self._id = os.urandom(8)
        self._numbers = itertools.count(1)
        self._outgoing = Outgoing()
        #: Guards what waits, and tells the writing thread.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._channels: dict[str, tuple[float, History | None]] = {}

    def publish(
        self,
        channel: str,
        message: object,
        group: str | None = None,
        *,
        user: str | int | _Everybody = _EVERYBODY,
        exclude: str | Iterable[str] | None = None,
        wait: bool = True,
    ) -> bool:
        """Publish to a channel, or to a group of it; with `user` to that person only.

        `message` goes out as a returned value of a listener does: `str` as text, bytes-like as
        binary, anything else as JSON, at most 1 MiB. `exclude` takes session ids.

        `True`: it was published, whether anybody is there or not. `False`: `message` is `None`; or
        it is not known yet after a second (with ``wait=False``: at once), and goes on being tried
        for 10 s (5 s where the channel has no history); or it was dropped, which is logged. To call
        again would publish again.

        Raises `LookupError` for a channel that no node has announced within 30 days, `ValueError`
        for a message that is too big and a `user` of `None` or ``""``, `TypeError` for what JSON
        cannot hold, `ConfigError` where the backplane is one that we cannot work with.
        """
        if not isinstance(user, _Everybody) and (user is None or str(user) == ""):
            raise ValueError(f"user={user!r} is nobody; leave it out to publish to everybody")
        subject = _subject(channel, group)
        if message is None:
            return False
        kind, payload = _payload(message)
        if len(payload) > _MAX_SIZE:
            raise ValueError(f"a message has at most {_MAX_SIZE:,} bytes, not {len(payload):,}")
        key = None if isinstance(user, _Everybody) else str(user)
        excluded = frozenset([exclude] if isinstance(exclude, str) else exclude or ())
        envelope = Envelope(subject, kind, payload, self._id, key, excluded)
        self._notice_fork()
        deadline = time.monotonic() + _PATIENCE
        try:
            history = self._history(channel)
        except LinkDown as exc:
            _log.error("backplane: a message for channel %s is dropped: %s", channel, exc)
            return False
        patience = max(0.0, deadline - time.monotonic()) if wait else 0.0
        # What is meant for one person is never stored.
        return self._send(envelope, history if key is None else None, patience)

    def position(self, channel: str, group: str | None = None) -> str:
        """Where the channel's (or group's) history stands, for ``since`` in a page.

        What is published later is recovered. Read it *before* the database. ``""`` for a channel
        without history, or where no answer came within a second. Raises what `publish` raises.
        """
        subject = _subject(channel, group)
        self._notice_fork()
        try:
            history = self._history(channel)
            if history is None:
                return ""
            [reading] = self._engine.read([ReadRequest(subject, history)])
        except LinkDown as exc:
            _log.warning("backplane: no position of channel %s: %s", channel, exc)
            return ""
        return str(reading.position)

    def close(self) -> None:
        """Publish what still waits, for 10 s at most, and disconnect. More than once is once."""
        if self._is_closed:
            return
        self._notice_fork()
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(KEPT.seconds + _PATIENCE)
        self._engine.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Publisher {self._address} {self._prefix}>"

    def _notice_fork(self) -> None:
        if self._is_closed:
            raise RuntimeError("the Publisher is closed")
        if self._pid != os.getpid():
            # Connections are the parent's, threads have stayed there, locks may be held by them.
            self._engine.forget()
            self._begin()

    def _history(self, channel: str) -> History | None:
        """What the nodes keep of a channel."""
        now = time.monotonic()
        known = self._channels.get(channel)
        if known is not None and now < known[0]:
            return known[1]
        if not self._engine.wait(_PATIENCE):
            trouble = self._engine.trouble
            if trouble is not None and trouble.is_loud:
                raise ConfigError(str(trouble))
            raise LinkDown(str(trouble or f"{self._address} does not answer"))
        history = self._engine.announced(channel)
        if len(self._channels) >= _MAX_CHANNELS:
            self._channels.clear()
        self._channels[channel] = (now + _KNOWN_FOR, history)
        return history

    def _send(self, envelope: Envelope, history: History | None, patience: float) -> bool:
        answered = threading.Event()
        with self._changed:
            number = next(self._numbers)
            # In a stream it has an offset instead.
            data = encode(envelope._replace(node=self._id, number=0 if history else number))
            publication = Publication(envelope.subject, data, history, self._id.hex(), number)
            ticket = Ticket(publication, time.monotonic())
            ticket.on_settled = answered.set
            self._outgoing.add(ticket)
            self._start()
            self._changed.notify()
        if patience and ticket.outcome is None:
            answered.wait(patience)
        return bool(ticket)

    # -- the writing thread ------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write, name="wsmiddleware publisher", daemon=True
            )
            self._thread.start()

    def _write(self) -> None:
        """Send what waits in batches until it is closed and nothing waits."""
        engine, changed, outgoing = self._engine, self._changed, self._outgoing
        told = 0
        while True:
            with changed:
                # Looks at the queue without taking from it: it may have to wait for the link.
                changed.wait_for(lambda: outgoing.expire(time.monotonic()) or self._is_closed)
                if outgoing.expire(time.monotonic()) is None:
                    return
            outcomes: list[Outcome] = []
            if engine.wait(_PAUSE):
                with changed:
                    batch = outgoing.batch(time.monotonic())
                outcomes = engine.publish([ticket.publication for ticket in batch])
                with changed:
                    all_done = outgoing.settle(outcomes)
                if not all_done:
                    time.sleep(_PAUSE)
            if (dropped := outgoing.dropped.total()) > told:
                self._tell(dropped - told, outcomes)
                told = dropped

    def _tell(self, count: int, outcomes: list[Outcome]) -> None:
        reasons = {one.reason for one in outcomes if one.status is not Status.PUBLISHED}
        reason = "; ".join(filter(None, reasons)) or self._engine.trouble or "too much waits"
        _log.error("backplane: messages were dropped, %d: %s", count, reason)


def _subject(channel: str, group: str | None) -> Subject:
    if group is None:
        return Subject(channel)
    check_group(group)
    if not group:
        raise ValueError("a group has a name; leave it out for the whole channel")
    return Subject(channel, group)


def _payload(message: object) -> tuple[Kind, bytes]:
    data = to_data(message)
    if isinstance(data, str):
        return (Kind.TEXT if isinstance(message, str) else Kind.JSON), data.encode()
    return Kind.BYTES, bytes(data)
