"""The servers that are compared: how each is started, watched and stopped."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FLOOR", "IN_FLASK", "OURS", "PEERS", "PURE", "SOCK", "Peer", "Server", "serving"]

_HERE = Path(__file__).resolve().parent / "peers"
#: Seconds within which a server has to listen, or to end.
_PATIENCE = 20.0
_PYTHON = (sys.executable, "-u")
_GUNICORN = (
    *(*_PYTHON, "-m", "gunicorn", "-k", "gevent", "--worker-connections", "20000"),
    *("--no-control-socket", "--backlog", "1024", "-b", "127.0.0.1:{port}"),
)


@dataclass(frozen=True, eq=False)
class Peer:
    """A server to measure. `{port}` and `{mode}` (echo or fanout) are filled in."""

    name: str
    command: tuple[str, ...]
    #: Whose versions are stated; the first must be there.
    distributions: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    folder: Path = _HERE
    has_deflate: bool = True
    is_raw: bool = False
    #: It is measured in the group ``flask`` alone.
    is_in_flask: bool = False

    def is_present(self) -> bool:
        """True when it can be started here."""
        if self.name == "ws (Node)":
            return bool(_node_version())
        if self.is_raw:
            return True
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return bool(importlib.metadata.version(self.distributions[0]))
        return False

    def versions(self) -> str:
        """What it consists of, for the report."""
        if self.name == "ws (Node)":
            return _node_version()
        if self.is_raw:
            return "this repository's, compiled with -O2"
        found = []
        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(f"{name} {importlib.metadata.version(name)}")
        return ", ".join(found)


@functools.cache
def _node_version() -> str:
    script = "console.log('ws ' + require('ws/package.json').version + ', Node ' + process.version)"
    if not shutil.which("node"):
        return ""
    result = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _script(name: str, *distributions: str, has_deflate: bool = True) -> Peer:
    file = f"{name.replace(' + ', '_').replace('-', '_').lower()}.py"
    return Peer(name, (*_PYTHON, file, "{port}"), distributions, has_deflate=has_deflate)


def _ours(name: str, *, is_in_flask: bool = False, **env: str) -> Peer:
    command = (*_PYTHON, "-m", "wsmiddleware", "run", "app:app", "--port", "{port}")
    names = ("wsmiddleware", "gevent", "greenlet", *(["flask"] if is_in_flask else []))
    return Peer(name, command, names, env, _HERE / "ours", is_in_flask=is_in_flask)


OURS = _ours("wsmiddleware")
PURE = _ours("wsmiddleware, no extension", WSMIDDLEWARE_SPEEDUPS="off")
#: Callbacks inside of what ``request_context=app.request_context`` gives.
IN_FLASK = (
    _ours("wsmiddleware in Flask's context", is_in_flask=True, BENCH_CONTEXT="1"),
    _ours(
        "wsmiddleware in Flask's context, no extension",
        is_in_flask=True,
        BENCH_CONTEXT="1",
        WSMIDDLEWARE_SPEEDUPS="off",
    ),
)
SOCK = Peer(
    "Flask-Sock + gevent",
    (*_GUNICORN, "flask_sock_gevent:app"),
    ("flask-sock", "simple-websocket", "flask", "gunicorn", "gevent"),
    has_deflate=False,
)
FLOOR = Peer(
    "C epoll, raw TCP",
    ("{build}/floor", "{port}", "{mode}"),
    has_deflate=False,
    is_raw=True,
)

#: In the order of the tables.
PEERS = (
    OURS,
    PURE,
    *IN_FLASK,
    _script("picows + uvloop", "picows", "aiofastnet", "uvloop", has_deflate=False),
    _script("aiohttp + uvloop", "aiohttp", "uvloop"),
    _script("websockets + uvloop", "websockets", "uvloop"),
    _script("Starlette + uvicorn", "uvicorn", "starlette", "websockets", "uvloop", "httptools"),
    _script("gevent-websocket", "gevent-websocket", "gevent", has_deflate=False),
    SOCK,
    Peer("ws (Node)", ("node", "node_ws.js", "{port}"), ("ws",)),
    FLOOR,
)


class Server:
    """A running server."""

    def __init__(self, peer: Peer, port: int, popen: subprocess.Popen[bytes]) -> None:
        self.peer = peer
        self.port = port
        self._popen = popen

    def pids(self) -> list[int]:
        """Its processes: the one that was started and all below it."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parents[int(stat.parent.name)] = int(fields[1])
        found = [self._popen.pid]
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def is_alive(self) -> bool:
        """True while it runs."""
        return self._popen.poll() is None

    def cpu(self) -> float:
        """Seconds of processor time it has used."""
        used = 0
        for pid in self.pids():
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    used += int(file.read_text().split()[0])
        return used / 1e9

    def settle(self, limit: float = 15.0) -> bool:
        """Wait until it has nothing left to do; `False` when it still works after `limit`."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            before = self.cpu()
            time.sleep(0.03)
            if self.cpu() - before < 0.001:
                return True
        return False

    def stop(self) -> None:
        """End it."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(2)
        except subprocess.TimeoutExpired:
            for pid in reversed(self.pids()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._popen.wait()


@contextlib.contextmanager
def serving(
    peer: Peer, build: Path, *, mode: str = "echo", env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The peer's server, listening, on the last of our processors; stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [word.format(port=port, build=build, mode=mode) for word in peer.command]
    if peer.is_raw and mode != "fanout":
        del words[2]
    log = (build / f"{words[1 if peer.is_raw else -1].replace('/', '_')}.log").open("wb")
    with log:
        popen = subprocess.Popen(
            words,
            cwd=peer.folder,
            env={**os.environ, **peer.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) > 1:
        os.sched_setaffinity(popen.pid, cpus[-1:])
    server = Server(peer, port, popen)
    try:
        _wait_until_listening(server, Path(log.name))
        yield server
    finally:
        server.stop()


def _wait_until_listening(server: Server, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        if not server.is_alive() or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{server.peer.name} does not listen:\n{text}")
        time.sleep(0.02)
