"""A Redis of Debian's for a test: on a free port of this host, nothing of it is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import wait_until
from .nginx import free_port

__all__ = ["RedisServer", "redis_server", "sentinel"]

_INSTALL = "no redis-server: apt-get install redis-server"


class RedisServer:
    """One process; its folder and port outlive it, so that it can come back."""

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        self.folder, self.port, self.arguments = folder, port, arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *arguments: str) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--dir", str(self.folder), "--logfile", "log", "--repl-diskless-sync-delay", "0"),
                *self.arguments,
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self.is_up, lambda: f"redis-server does not answer: {self.log}", timeout=20)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def is_up(self) -> bool:
        """It answers a PING, or says that it wants a password."""
        try:
            return self.cli("PING").split()[:1] in (["PONG"], ["NOAUTH"])
        except OSError:
            return False

    def cli(self, *words: str | bytes, timeout: float = 5) -> str:
        """One command; its answer as lines of text, an error as its text."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            sock.sendall(b"*%d\r\n" % len(parts))
            for part in parts:
                sock.sendall(b"$%d\r\n%b\r\n" % (len(part), part))
            with sock.makefile("rb") as file:
                return "\n".join(_answer(file))

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it accepts, and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def follow(self, master: RedisServer) -> None:
        """Become its replica, and wait until all of it is here."""
        self.cli("REPLICAOF", "127.0.0.1", str(master.port))
        self.caught_up()

    def caught_up(self) -> None:
        """Wait until the replica's link is up."""
        wait_until(lambda: "master_link_status:up" in self.cli("INFO", "replication"), timeout=20)

    def kill_clients(self, kind: str) -> int:
        """Cut the links of pubsub or normal clients; how many."""
        return int(self.cli("CLIENT", "KILL", "TYPE", kind))


def _answer(file: Any) -> Iterator[str]:
    line = file.readline()[:-2].decode()
    if not line:
        raise ConnectionResetError("no answer")
    kind, rest = line[0], line[1:]
    if kind == "$":
        yield file.read(int(rest) + 2)[:-2].decode("utf-8", "replace") if rest != "-1" else ""
    elif kind == "*":
        for _ in range(int(rest)):
            yield from _answer(file)
    else:
        yield rest


@contextlib.contextmanager
def redis_server(*arguments: str, start: bool = True) -> Iterator[RedisServer]:
    """One, started, with more arguments of its command line."""
    if shutil.which("redis-server") is None:
        pytest.skip(_INSTALL)
    folder = Path(tempfile.mkdtemp(prefix="wsmiddleware-redis-"))
    server = RedisServer(folder, free_port(), *arguments)
    try:
        if start:
            server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def sentinel(master: RedisServer, name: str = "chat") -> Iterator[RedisServer]:
    """One Sentinel, which decides alone, for a master."""
    with redis_server(start=False) as server:
        settings = server.folder / "sentinel.conf"
        settings.write_text(
            f"port {server.port}\nbind 127.0.0.1\ndir {server.folder}\nlogfile log\n"
            f"sentinel monitor {name} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {name} 500\n"
            f"sentinel failover-timeout {name} 3000\n"
        )
        server._process = subprocess.Popen(
            ["redis-server", str(settings), "--sentinel"], stdout=subprocess.DEVNULL
        )
        wait_until(server.is_up, timeout=20)
        yield server
