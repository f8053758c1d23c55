"""Standard output and standard error that never block, for a process whose loop they would stop.

A pipe that nobody reads is full after 64 KiB, and a terminal after Ctrl-S at once: the next line
would stop everybody. `never_block` puts a bounded queue and a native thread behind both streams.
The streams, not one logger's handlers (`logging.handlers.QueueHandler`): so it holds for the access
log, gevent's tracebacks, warnings, and what the application prints or logs there itself.

What finds no room is dropped; the next line that gets through says how many lines those were.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import time
from typing import Any, TextIO

from gevent import monkey

__all__ = ["QUEUE_SIZE", "QueuedOutput", "flush", "never_block"]

#: Bytes that may be queued for each of the two streams.
QUEUE_SIZE = 2**20

# After a loss nothing is queued until a quarter is left: else each line would report a loss.
_LOW = QUEUE_SIZE // 4

# Seconds at the end of the process to write what is still queued.
_LAST_SECONDS = 0.5

# Seconds between two checks whether the queue is empty.
_STEP = 0.002

# Seconds after a write in which lines gather for the next one, and bytes of it: to wake a thread
# for each line was a third of what a request costs.
_PAUSE = 0.005
_PIECE = 65536


def never_block() -> None:
    """Have `sys.stdout` and `sys.stderr` queue what is written; flushed at the process's end.

    Call it once, before anybody keeps one of the streams. A stream that is closed or is no
    descriptor stays as it is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            fd = stream.fileno()
        except (AttributeError, OSError):
            continue
        stream.flush()
        setattr(sys, name, _text(QueuedOutput(fd, f"<{name}>"), stream))
    atexit.register(_end)


def flush(seconds: float) -> None:
    """Wait for what is queued to be taken, `seconds` for each stream at most; may block as long."""
    for output in _outputs():
        output.drain(seconds)


def _end() -> None:
    for output in _outputs():
        if output.drain(_LAST_SECONDS):
            output.write_directly()  # the interpreter's own last words come behind this


def _outputs() -> list[QueuedOutput]:
    buffers = [getattr(stream, "buffer", None) for stream in (sys.stdout, sys.stderr)]
    return [buffer for buffer in buffers if isinstance(buffer, QueuedOutput)]


def _text(output: QueuedOutput, stream: TextIO) -> TextIO:
    return io.TextIOWrapper(output, stream.encoding, stream.errors, line_buffering=True)


class QueuedOutput(io.RawIOBase):
    """A descriptor that is written to by a native thread. Any thread and greenlet may write.

    A forked child has no such thread: there it writes itself.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._size = 0
        self._lost = 0
        self._is_direct = False
        # The native ones, also in a patched process. What may interrupt put() (a signal handler, a
        # finalizer) may write as well: the queue bears that, and the lock has to be reentrant.
        self._queue: Any = monkey.get_original("queue", "SimpleQueue")()
        self._make_lock = monkey.get_original("_thread", "RLock")
        self._lock: Any = self._make_lock()
        os.register_at_fork(after_in_child=self._forked)
        monkey.get_original("_thread", "start_new_thread")(self._run, ())

    def writable(self) -> bool:
        """As files have it."""
        return True

    def fileno(self) -> int:
        """The descriptor behind the queue: what is written to it directly may come first."""
        return self._fd

    def isatty(self) -> bool:
        """As files have it."""
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        """Queue `data`, or drop and count it; never blocks and never raises."""
        data = bytes(data)
        if self._is_direct:
            _write(self._fd, data)
            return len(data)
        with self._lock:
            limit = _LOW if self._lost else QUEUE_SIZE
            if self._size and self._size + len(data) > limit:
                self._lost += data.count(b"\n") or 1
                return len(data)
            taken = self._take_loss() + data
            self._size += len(taken)
        self._queue.put(taken)
        return len(data)

    def drain(self, seconds: float) -> bool:
        """Wait for all to be taken, `seconds` at most; whether it was. For the process's end."""
        with self._lock:
            if self._lost and self._size <= _LOW:
                loss = self._take_loss()
                self._size += len(loss)
                self._queue.put(loss)
        sleep = monkey.get_original("time", "sleep")
        deadline = time.monotonic() + seconds
        while self._size and time.monotonic() < deadline:
            sleep(_STEP)
        return not self._size

    def write_directly(self) -> None:
        """From now on write without the queue."""
        self._is_direct = True

    def _take_loss(self) -> bytes:
        if not self._lost:
            return b""
        count, self._lost = self._lost, 0
        return f"wsmiddleware: {count} line(s) dropped here, which nobody read in time\n".encode()

    def _run(self) -> None:
        sleep = monkey.get_original("time", "sleep")
        while True:
            data = self._queue.get()
            while len(data) < _PIECE and not self._queue.empty():
                data += self._queue.get()
            _write(self._fd, data)
            with self._lock:
                self._size -= len(data)
            if self._queue.empty():
                sleep(_PAUSE)

    def _forked(self) -> None:
        self._lock = self._make_lock()
        self._size = self._lost = 0  # the parent's
        self._is_direct = True


def _write(fd: int, data: bytes) -> None:
    """Write all of it, however long that takes; stop where nobody will ever read it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody who shares the terminal has made it non-blocking
            poll = monkey.get_original("select", "poll")()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError:
            return
