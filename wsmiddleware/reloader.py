"""Restarting the server when its code changes: ``run --reload``.

Two processes. The parent (`supervise`) owns the listening socket, so that a client which connects
during a restart waits instead of being refused; it runs none of the application's code. Its child
serves on that socket, watches the files that it has loaded (`Files`) and ends with
`RELOAD_STATUS` when one has changed. A child that cannot start watches on for the next change.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from wsmiddleware.exceptions import WebSocketError

__all__ = ["RELOAD_STATUS", "Files", "error_places", "supervise", "take_listener"]

#: A child's exit status that asks its parent for the next one.
RELOAD_STATUS = 3

# Not called WSMIDDLEWARE_…: such a variable is a setting.
_VARIABLE = "_WSMIDDLEWARE_LISTENER"

# Seconds between two looks at the files.
_INTERVAL = 1.0


def supervise(listener: socket.socket) -> int:
    """Run this process's own command line in children on `listener`, one after the other.

    Returns the exit status: of the last child, or 0 when SIGTERM or SIGINT ended it. Blocks.
    """
    parent = _Parent(listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, parent.stop)
    return parent.run()


def take_listener() -> int | None:
    """The parent's listening socket in a child of `supervise`, as a descriptor; once."""
    fd = os.environ.pop(_VARIABLE, None)
    return None if fd is None else int(fd)


class Files:
    """What the process has loaded, and what lies in some directories.

    `directories` are watched for new files too; `files` beside the modules' own are for what is no
    module (settings, the file with the syntax error).
    """

    def __init__(self, directories: Iterable[Path] = (), files: Iterable[Path] = ()) -> None:
        self._directories = list(directories)
        self._files = [str(file) for file in files]
        self._parent = os.getppid()
        self._stamps = {path: _stamp(path) for path in [*self._of_modules(), *self._listed()]}

    def wait(self) -> str | None:
        """Block until a file has changed, come or gone, and return its path.

        None when the parent process has died: nobody would restart us.
        """
        while os.getppid() == self._parent:
            time.sleep(_INTERVAL)  # a greenlet's sleep in a patched process
            changed = self.changed()
            if changed is not None:
                return changed
        return None

    def changed(self) -> str | None:
        """One file that has changed since the last look, if any."""
        listed = set(self._listed())
        for path in [*self._of_modules(), *listed]:
            # A module that has been imported since is new to us, and no change.
            if path not in self._stamps and path not in listed:
                self._stamps[path] = _stamp(path)
        for path in {*self._stamps, *listed}:
            stamp = _stamp(path)
            if stamp != self._stamps.get(path):
                self._stamps[path] = stamp
                return path
        return None

    def _listed(self) -> Iterator[str]:
        yield from self._files
        for directory in self._directories:
            yield from map(str, directory.glob("*.py"))

    def _of_modules(self) -> Iterator[str]:
        for module in list(sys.modules.values()):
            # Not getattr(): some modules import others when they are asked for an attribute.
            file = getattr(module, "__dict__", {}).get("__file__")
            if isinstance(file, str):
                yield file


def error_places(exc: BaseException) -> tuple[list[Path], list[Path]]:
    """The directories and files where a failed start may be mended: all that took part in `exc`."""
    files = set()
    places: set[Path] = set()
    current: BaseException | None = exc
    while current is not None:
        if isinstance(current, WebSocketError):
            places |= {*current.places}
        files |= {Path(frame.filename) for frame in traceback.extract_tb(current.__traceback__)}
        if isinstance(current, SyntaxError) and current.filename:
            files.add(Path(current.filename))
        current = current.__cause__ or current.__context__
    found = [file for file in files if file.is_file()]
    # The module that is not there yet would come beside them.
    directories = {file.parent for file in found} | {place for place in places if place.is_dir()}
    return [Path.cwd(), *directories], [*found, *places]


class _Parent:
    """The process that owns the listening socket."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._child: subprocess.Popen[bytes] | None = None
        self._stops: list[int] = []

    def run(self) -> int:
        """Start children until one ends for good."""
        fd = self._listener.fileno()
        environ = {**os.environ, _VARIABLE: str(fd)}
        while True:
            arguments = [sys.executable, *sys.orig_argv[1:]]
            self._child = subprocess.Popen(arguments, env=environ, pass_fds=[fd])
            if self._stops:  # the signal came while the child was being made
                self._child.terminate()
            status = self._child.wait()
            if self._stops:
                return 0
            if status != RELOAD_STATUS:
                return status if status >= 0 else 128 - status

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Let the child go down; at the second Ctrl-C at once."""
        child = self._child
        if child is not None and child.poll() is None:
            # Always SIGTERM: at the terminal Ctrl-C has reached the child as well, and it counts.
            if self._stops and number == signal.SIGINT:
                child.kill()
            else:
                child.terminate()
        self._stops.append(number)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
