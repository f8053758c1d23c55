"""How a connection sends: queueing up to a mark, and what happens to a slow consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import getcurrent, monkey

from wsmiddleware.exceptions import ConnectionClosed, SlowConsumerError
from wsmiddleware.log import TRACE
from wsmiddleware.log import log as _log
from wsmiddleware.net.stream import Stream
from wsmiddleware.net.underway import OVERHEAD, Underway
from wsmiddleware.protocol.frames import CloseCode, Opcode, Wire

if TYPE_CHECKING:
    from wsmiddleware.settings import Settings

__all__ = ["Sender"]

#: Two threads may be the first ones to need an `Underway`. Reentrant, as the lock in there.
_making: Any = monkey.get_original("_thread", "RLock")()
#: Seconds between two lines of the log on what one peer's queue had no room for.
_REPORT_INTERVAL = 1.0


class Sender(Stream):
    """Sends in order; decides what happens to messages that the peer does not read."""

    __slots__ = (
        "_dropped",
        "_underway",
        "close_code",
        "close_reason",
        "is_traced",
        "name",
        "settings",
    )

    #: Each frame has a line in the log.
    is_traced: bool

    if TYPE_CHECKING:
        # What `Connection` adds.
        def reply_lost(self) -> None: ...
        def start_closing(self, code: int, reason: str, patience: int = ...) -> None: ...

    def __init__(self, *args: Any, name: str, settings: Settings) -> None:
        super().__init__(*args)
        #: What the log calls this connection.
        self.name = name
        self.settings = settings
        #: The code and reason of the peer's close frame; 1006 until one comes.
        self.close_code = int(CloseCode.ABNORMAL_CLOSURE)
        self.close_reason = ""
        #: Messages dropped and not reported yet.
        self._dropped = 0
        #: Counts what native threads have sent and the hub has not taken. Made when first needed.
        self._underway: Underway | None = None

    def send(self, wire: Wire, *, wait: bool = True) -> bool:
        """Queue one encoded message. May block (`wait`) while the outbox is past its mark.

        `False` when it was dropped (`slow_consumer="drop"`). Raises `ConnectionClosed`, or
        `SlowConsumerError` when the peer takes too long and has been closed for it. From a native
        thread it does not wait: `True` while the threads have less than the mark on their way to
        the hub, where the rest is decided; past that it is as with ``wait=False``.
        """
        if not self.is_open:
            raise ConnectionClosed(self.close_code, self.close_reason)
        if not self.reactor.is_here():
            return self._hand_over(wire)
        if self.outbox.is_busy:
            self.interrupt(self.try_send, wire)
            return True
        if self.outbox.size >= self.settings.send_queue_size and not self._make_room(wait=wait):
            return False
        if not self._put(wire):
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def try_send(self, wire: Wire) -> None:
        """Queue one encoded message if the peer keeps up. Never blocks, raises nothing.

        Past the outbox's mark the message is dropped, or the connection closed (`slow_consumer`).
        """
        if not self.is_open:
            return
        if self.outbox.is_busy:
            self.interrupt(self.try_send, wire)
            return
        if self.outbox.size >= self.settings.send_queue_size:
            try:
                if not self._make_room(wait=False):
                    return
            except (ConnectionClosed, SlowConsumerError):
                return
        self._put(wire)

    def reply(self, wire: Wire) -> None:
        """Send what a callback returned, from its worker. May block for room; raises nothing."""
        if not self.is_open:
            self.reply_lost()
            return
        if self.outbox.size >= self.settings.send_queue_size:
            try:
                self._make_room(wait=True)
            except (ConnectionClosed, SlowConsumerError):
                self.reply_lost()
                return
        self.last_message = self.reactor.now
        self.metrics.messages_sent += 1
        if self.is_traced:
            self.trace_sent(wire)
        self.enqueue_pending()
        if not self.due:
            self.outbox.write(wire)
        else:
            self.outbox.enqueue(wire)
            if not self.is_flush_due:
                self.flush_soon()

    def _put(self, wire: Wire) -> bool:
        """Queue `wire`; `False` if a signal handler has closed the connection meanwhile."""
        outbox = self.outbox
        was_busy, outbox.is_busy = outbox.is_busy, True
        try:
            if not self.is_open:
                return False
            self.last_message = self.reactor.now
            self.metrics.messages_sent += 1
            if self.is_traced:
                self.trace_sent(wire)
            if self.worker is None:
                outbox.write(wire)
            else:
                self.enqueue(wire)
                if self.worker.greenlet is not getcurrent():
                    # Only the running callback may send more that shares this write: do not wait.
                    outbox.flush()
        finally:
            outbox.is_busy = was_busy
        return True

    def enqueue(self, wire: Wire) -> None:
        """Queue `wire` without sending it; the hub flushes the outbox soon."""
        self.enqueue_pending()
        self.outbox.enqueue(wire)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Ask the hub to flush the outbox, once. Never blocks."""
        if not self.is_flush_due:
            self.reactor.loop.run_callback(self._flush_due)
            self.is_flush_due = True

    def _flush_due(self) -> None:
        self.is_flush_due = False
        self.enqueue_pending()
        self.outbox.flush()

    # -- from elsewhere -----------------------------------------------------------------------

    def interrupt(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` once the write that we have interrupted is over.

        For signal handlers and finalizers that run in the middle of a write. Never blocks.
        """
        self.reactor.order(self._call_behind_write, function, args)

    def _call_behind_write(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        while self.outbox.is_busy:  # the handler that interrupted the write has blocked
            self.reactor.wait_for_turn()
        function(*args)

    def _hand_over(self, wire: Wire) -> bool:
        """`send` in a native thread: count the bytes and hand them to the loop."""
        with _making:
            if self._underway is None:
                self._underway = Underway(self.settings.send_queue_size)
        size = OVERHEAD + (sum(map(len, wire)) if isinstance(wire, tuple) else len(wire))
        if self._underway.add_soon(size):
            self.reactor.defer(self._take_over, wire, size, self._underway)
            return True
        if self._underway.miss():
            self.reactor.defer(self._take_missed, self._underway)
        if self.settings.slow_consumer == "drop":
            return False
        raise SlowConsumerError(f"{self.name}: the loop does not take what this thread sends")

    def _take_over(self, wire: Wire, size: int, underway: Underway) -> None:
        underway.taken(size)
        self.try_send(wire)

    def _take_missed(self, underway: Underway) -> None:
        self.overrun(underway.missed())

    def overrun(self, count: int) -> None:
        """Native threads sent `count` messages past the mark: drop them, or close. Hub's thread."""
        if not self.is_open:
            return
        if self.settings.slow_consumer == "drop":
            self._drop(count)
        else:
            self._close_slow_consumer("a native thread sends faster than the loop takes it")

    # -- slow consumers -----------------------------------------------------------------------

    def _make_room(self, *, wait: bool) -> bool:
        """Get the outbox below its mark; `False` where the message must be dropped.

        With `wait` it blocks for up to `send_timeout`. Raises `SlowConsumerError` when the peer has
        been closed for it, `ConnectionClosed` when the connection ended meanwhile.
        """
        outbox, mark = self.outbox, self.settings.send_queue_size
        outbox.retry()
        # The reactor's time stands still while the loop is held up and cannot see the peer read.
        deadline = self.reactor.now + self.settings.send_timeout
        while self.is_open and outbox.size >= mark:
            if not wait or self.reactor.is_in_hub():
                if self.settings.slow_consumer == "drop":
                    self._drop(1)
                    return False
                raise self._close_slow_consumer()
            left = deadline - self.reactor.now
            if left <= 0:
                raise self._close_slow_consumer()
            if not outbox.wait_for_room(left):
                outbox.retry()
        if not self.is_open:
            raise ConnectionClosed(self.close_code, self.close_reason)
        return True

    def _drop(self, count: int) -> None:
        self.metrics.dropped += count
        self._dropped += count
        self.reactor.watch(self, self.reactor.now + _REPORT_INTERVAL)

    def _close_slow_consumer(self, why: str = "") -> SlowConsumerError:
        if self.is_open:
            self.metrics.slow_consumers += 1
            why = why or f"{self.outbox.size} bytes wait"
            _log.warning("%s: slow consumer, %s: closing", self.name, why)
            # It has had its time: a peer that reads a byte a second must not keep its queue alive.
            self.start_closing(CloseCode.TRY_AGAIN_LATER, "slow consumer", patience=1)
        return SlowConsumerError(f"{self.name} does not take what is sent to it")

    def report_dropped(self) -> None:
        """Log what was dropped since the last time: one line a second, however much it was."""
        if self._dropped:
            count, self._dropped = self._dropped, 0
            _log.warning("%s: slow consumer, %d messages dropped for it", self.name, count)

    def trace_sent(self, wire: Wire) -> None:
        """A line of the log for each frame."""
        parts = wire if isinstance(wire, tuple) else (wire,)
        opcode = Opcode(parts[0][0] & 15).name.lower()
        _log.log(TRACE, "%s > %s, %d bytes with header", self.name, opcode, sum(map(len, parts)))
