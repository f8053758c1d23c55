"""One client's write queue: straight to the socket where nothing waits, else queued."""

from __future__ import annotations

from typing import Any, Protocol

from gevent.event import Event

from wsmiddleware.net.transport import Transport
from wsmiddleware.protocol.frames import Wire

__all__ = ["Outbox", "Owner"]

#: Queued messages are joined up to so many bytes for one `send`. Past that a copy costs more.
_JOIN_SIZE = 32768
#: How many pieces one `sendmsg` takes where they are larger.
_GATHER = 16
_WRITE = 2  # libev's EV_WRITE


class Owner(Protocol):
    """Is told what happens to an outbox, in the hub's thread. Must not block."""

    def lost(self, exc: OSError) -> None:
        """The transport broke."""

    def moved(self) -> None:
        """The peer reads again, after a stall."""

    def drained(self) -> None:
        """The outbox is empty again, after a stall."""


class Outbox:
    """Bytes on their way to one client, in order.

    All of it belongs to the thread of the hub, and any of its greenlets. The outbox itself never
    refuses: its owner asks for `size` and decides. `low_mark` is the size in bytes at which those
    who wait for room go on.
    """

    __slots__ = (
        "_loop",
        "_low_mark",
        "_owner",
        "_queue",
        "_room",
        "_transport",
        "_watcher",
        "bytes_sent",
        "is_busy",
        "is_stalled",
        "size",
    )

    def __init__(
        self,
        loop: Any,
        transport: Transport,
        owner: Owner,
        low_mark: int,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._owner: Owner | None = owner
        self._queue: list[bytes | memoryview] = []
        self._low_mark = low_mark
        self._room: Event | None = None
        self._watcher: Any = None
        #: Bytes that wait in the queue.
        self.size = 0
        #: True while the socket takes nothing more; the loop watches it.
        self.is_stalled = False
        #: True in the middle of a write. The owner asks before it sends: what a signal handler or
        #: finalizer sends would come in the middle of a frame, so it must wait.
        self.is_busy = False
        self.bytes_sent = 0

    def enqueue(self, wire: Wire) -> None:
        """Queue `wire`; the caller sees to it that `flush` is called."""
        # The sizes first: a signal handler must not run between the queue and `size`.
        if type(wire) is tuple:
            size = len(wire[0]) + len(wire[1])
            self._queue += wire
        else:
            size = len(wire)
            self._queue.append(wire)  # type: ignore[arg-type]  # mypy does not narrow by `is`
        self.size += size

    def write(self, wire: Wire) -> None:
        """Send `wire` after what waits; queue what the socket does not take. Never blocks."""
        was_busy, self.is_busy = self.is_busy, True
        try:
            if self._queue or type(wire) is tuple:
                self.enqueue(wire)
                self._flush()
                return
            try:
                sent = self._transport.send(wire)  # type: ignore[arg-type]
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._lost(exc)
                return
            self.bytes_sent += sent
            if sent < len(wire):
                self._queue.append(memoryview(wire)[sent:])  # type: ignore[arg-type]
                self.size += len(wire) - sent
                self._stall()
        finally:
            self.is_busy = was_busy

    def flush(self) -> None:
        """Send what waits until the socket takes no more. Never blocks."""
        if self._queue and not self.is_stalled:
            was_busy, self.is_busy = self.is_busy, True
            try:
                self._flush()
            finally:
                self.is_busy = was_busy

    def retry(self) -> None:
        """As `flush`, but try the socket even during a stall. Never blocks.

        Where a callback has held the loop up, the peer may have read all of it meanwhile, and the
        loop has not seen it.
        """
        was_stalled, self.is_stalled = self.is_stalled, False
        before = self.bytes_sent
        self.flush()
        if was_stalled and self.bytes_sent > before and self._owner is not None:
            self._owner.moved()

    def _flush(self) -> None:
        if self.is_stalled:
            return
        queue = self._queue
        while queue:
            # Against `_next_parts`: saves 5 % of 32 B, batch 16.
            if len(queue) > 1 and self.size <= _JOIN_SIZE:
                queue[:] = [b"".join(queue)]
            parts = queue if len(queue) == 1 else self._next_parts()
            try:
                if len(parts) == 1:
                    sent = self._transport.send(parts[0])
                else:
                    sent = self._transport.sendmsg(parts)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._lost(exc)
                return
            self.bytes_sent += sent
            self.size -= sent
            if not self.size:
                queue.clear()
            elif not self._drop(sent, len(parts)):
                self._stall()
                return

    def _next_parts(self) -> list[bytes | memoryview]:
        """The head of the queue: small messages joined, large ones gathered for one `sendmsg`."""
        queue = self._queue
        size = count = 0
        for item in queue:
            size += len(item)
            if size > _JOIN_SIZE:
                break
            count += 1
        if count > 1:
            queue[:count] = [b"".join(queue[:count])]
        return queue[:_GATHER]

    def _drop(self, sent: int, count: int) -> bool:
        """Remove `sent` bytes from the queue; `False` when that was not all of `count` items."""
        queue = self._queue
        for done, item in enumerate(queue[:count]):
            if sent < len(item):
                queue[:done] = []
                queue[0] = memoryview(item)[sent:]
                return False
            sent -= len(item)
        queue[:count] = []
        return True

    def _stall(self) -> None:
        if self._owner is None:
            return  # closed meanwhile, by a finalizer
        self.is_stalled = True
        if self._watcher is None:
            self._watcher = self._loop.io(self._transport.fileno(), _WRITE)
        self._watcher.start(self._on_writable)

    def _on_writable(self) -> None:
        self.is_stalled = False
        self._watcher.stop()
        if self._owner is not None:
            self._owner.moved()
        self.flush()
        if self._room is not None and self.size <= self._low_mark:
            self.wake_waiters()
        if not self._queue and self._owner is not None:
            self._owner.drained()

    def _lost(self, exc: OSError) -> None:
        if self._owner is not None:
            self._owner.lost(exc)

    def wait_for_room(self, timeout: float) -> bool:
        """Block the calling greenlet until the low-water mark is reached.

        `False` after `timeout` seconds. `True` also when they have been woken for another reason.
        """
        if self.size <= self._low_mark:
            return True
        if self._room is None:
            self._room = Event()
        return bool(self._room.wait(timeout))

    def wake_waiters(self) -> None:
        """Wake whoever waits for room, to look again."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def close(self) -> None:
        """Drop what waits, stop the watcher and wake whoever waits for room."""
        self.abandon()
        self.wake_waiters()

    def abandon(self) -> None:
        """The same in a forked child, where nobody is woken."""
        self._owner = None
        self._queue.clear()
        self.size = 0
        self.is_stalled = False
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
