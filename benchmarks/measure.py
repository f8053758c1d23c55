"""The measurements. Every repetition of a cell visits all servers in turn before the next one.

And each repetition visits them in another order: what one leaves behind (its connections end while
the next one begins) must not always meet the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import load
from cells import Cell, echo_cells, fanout_cells, flask_cells
from servers import FLOOR, OURS, PURE, SOCK, Peer, Server, serving

__all__ = ["GROUPS", "Measurement", "Row", "machine"]

Row = dict[str, Any]
_T = TypeVar("_T")

#: What one connection says to the quiet client's neighbours: as much as it can.
_FLOOD = ("-m", "echo", "-u", "/ws/echo", "-n", "1", "-P", "64")
_QUIET = ("-m", "echo", "-u", "/ws/echo", "-n", "1", "-i", "0.002", "-w", "0.2")


class Measurement:
    """One run: its peers, how often and how long, and the rows that it has found."""

    def __init__(
        self, build: Path, peers: list[Peer], *, repetitions: int, seconds: float, is_quick: bool
    ) -> None:
        self.rows: list[Row] = []
        self._build = build
        self._peers = [peer for peer in peers if not peer.is_in_flask]
        self._in_flask = [peer for peer in peers if peer.is_in_flask or peer in (OURS, SOCK)]
        self._repetitions = repetitions
        self._seconds = seconds
        self._is_quick = is_quick

    def run(self, group: str) -> None:
        """Measure one of `GROUPS`."""
        getattr(self, f"_{group}")()

    def _add(self, group: str, cell: str, peer: Peer, found: load.Result) -> None:
        self.rows.append({"group": group, "cell": cell, "peer": peer.name, **found})
        value = found.get("error") or found.get("cpu_us", "")
        print(f"{group}: {cell}: {peer.name}: {value}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _all(self, peers: list[Peer], *, mode: str) -> Iterator[dict[Peer, Server]]:
        with contextlib.ExitStack() as stack:
            yield {
                peer: stack.enter_context(serving(peer, self._build, mode=mode)) for peer in peers
            }

    def _each(self, peers: list[Peer], repetitions: int = 0) -> list[Peer]:
        """All of them in each repetition: as many as asked for, or more where it takes more."""
        turns = range(self._repetitions if self._is_quick else max(repetitions, self._repetitions))
        return [peer for turn in turns for peer in _shuffled(peers, turn)]

    def _time(self, stretch: int = 1, warm_up: float = 0.0) -> tuple[str, ...]:
        seconds = self._seconds * stretch
        return ("-d", str(seconds), "-w", str(max(seconds / 4, warm_up)))

    def _options(self, cell: Cell) -> tuple[str, ...]:
        return tuple(word.format(build=self._build) for word in cell.options)

    # -- messages per second, and what they cost ----------------------------------------------

    def _echo(self) -> None:
        cells = echo_cells()
        if self._is_quick:
            cells = [cell for cell in cells if cell.key.split(", ")[0] != "binary"]
        self._side_by_side("echo", cells, self._peers)

    def _flask(self) -> None:
        self._side_by_side("flask", flask_cells(), self._in_flask)

    def _fanout(self) -> None:
        cells = fanout_cells()
        if self._is_quick:
            cells = [cell for cell in cells if cell.key.endswith("1000")]
        self._side_by_side("fanout", cells, self._peers)

    def _side_by_side(self, group: str, cells: list[Cell], peers: list[Peer]) -> None:
        with self._all(peers, mode=group) as servers:
            fit = self._verified(group, cells, servers)
            for turn, cell in itertools.product(range(self._repetitions), cells):
                for peer, server in _shuffled(list(servers.items()), turn):
                    if (cell, peer) not in fit or not server.is_alive():
                        continue
                    options = (
                        "-u",
                        f"/ws/{cell.channel or group}",
                        *self._options(cell),
                        *self._time(cell.stretch, cell.warm_up),
                    )
                    self._add(group, cell.key, peer, load.run(self._build, server, options))
                    server.settle()

    def _verified(
        self, group: str, cells: list[Cell], servers: dict[Peer, Server]
    ) -> set[tuple[Cell, Peer]]:
        """A short run of everything in which each payload is compared; who passed it."""
        fit = set()
        for cell, (peer, server) in itertools.product(cells, servers.items()):
            if cell.is_deflate and not peer.has_deflate:
                continue
            path = f"/ws/{cell.channel or group}"
            options = ("-u", path, *self._options(cell), "-v", "-d", "0.1", "-w", "0")
            found = load.run(self._build, server, options)
            server.settle()
            if found.get("error"):
                self._add(group, cell.key, peer, {"error": found["error"]})
            else:
                fit.add((cell, peer))
        return fit

    # -- connections --------------------------------------------------------------------------

    def _connect(self) -> None:
        count = "1000" if self._is_quick else "5000"
        for peer in self._each(self._peers):
            # A fresh server each time: one that had as many before has their memory still.
            with serving(peer, self._build) as server:
                warm_up = ("-u", "/ws/echo", "-n", "20", "-d", "0.2", "-w", "0")
                load.run(self._build, server, warm_up)
                server.settle()
                options = ("-m", "connect", "-u", "/ws/echo", "-n", count)
                found = load.run(self._build, server, options)
            self._add("connect", f"{count} connections", peer, found)

    # -- fairness -----------------------------------------------------------------------------

    def _quiet(self) -> None:
        count = "1000" if self._is_quick else "5000"
        storm = ("-m", "fanout", "-u", "/ws/fanout", "-n", count, "-s", "128")
        duration = ("-d", str(max(2.0, 3 * self._seconds)))
        noises: dict[str, tuple[str, ...]] = {
            "in peace": (),
            "under a flood": _FLOOD,
            "during broadcasts": storm,
        }
        peers = [peer for peer in self._peers if not peer.is_raw]
        for peer, (name, noise) in itertools.product(self._each(peers), noises.items()):
            with serving(peer, self._build) as server:
                with self._noise(server, noise):
                    found = load.run(self._build, server, (*_QUIET, *duration))
                self._add("quiet", name, peer, found)

    @contextlib.contextmanager
    def _noise(self, server: Server, options: tuple[str, ...]) -> Iterator[None]:
        if not options:
            yield
            return
        process = load.start(self._build, server, (*options, "-d", "60"), nice=10)
        try:
            if not load.wait_open(process):
                raise RuntimeError(f"{server.peer.name}: {load.read(process)}")
            yield
        finally:
            process.kill()
            process.communicate()

    def _push(self) -> None:
        """Only ours can: a view that pushes, what it holds up, and how long a turn gets."""
        count = "1000" if self._is_quick else "5000"
        idle = ("-m", "connect", "-u", "/ws/echo", "-n", count, "-H", "60", "-s", "128")
        storm = ("-m", "fanout", "-u", "/ws/fanout", "-n", count, "-s", "128")
        for _ in range(self._repetitions):
            with serving(OURS, self._build) as server:
                with self._noise(server, idle):
                    info = [_get(server, "/info") for _ in range(20)]
                    push = [_get(server, "/push") for _ in range(5)]
                with self._noise(server, storm):
                    _get(server, "/turns/start")
                    load.run(self._build, server, (*_QUIET, "-d", "2"))
                    turn = _get(server, "/turns/stop")["longest_ms"]
            if any(each["count"] != int(count) for each in info + push):
                raise RuntimeError(f"not {count} connections at each push: {push}")
            found = {"turn_ms": turn}
            for name, results in {"info_ms": info, "push_ms": push}.items():
                found[name] = statistics.median(each["ms"] for each in results)
            self._add("push", f"{count} connections", OURS, found)

    # -- growth -------------------------------------------------------------------------------

    def _growth(self) -> None:
        peers = [peer for peer in self._peers if peer in (OURS, PURE, FLOOR)]
        connections = (100, 300, 1000) if self._is_quick else (100, 300, 1000, 3000, 10000)
        channels = (1, 10, 100) if self._is_quick else (1, 10, 100, 1000)
        # With a thousand connections all is in the processor's last cache, or another machine's is:
        # 5 or 8 µs, from one minute to the next.
        each = self._each(peers, repetitions=5)
        for peer, count in itertools.product(each, connections):
            with serving(peer, self._build) as server:
                options = ("-u", "/ws/echo", "-n", str(count), *self._time())
                found = load.run(self._build, server, options)
                self._add("growth", f"all of {count} connections busy", peer, found)
            with serving(peer, self._build) as server:
                idle = ("-m", "connect", "-u", "/ws/echo", "-n", str(count - 100), "-H", "60")
                with self._noise(server, idle if count > 100 else ()):
                    options = ("-u", "/ws/echo", "-n", "100", *self._time())
                    found = load.run(self._build, server, options)
                self._add("growth", f"100 of {count} connections busy", peer, found)
        for peer, count in itertools.product(each, channels):
            if not peer.is_raw:
                env = {"BENCH_LISTENERS": str(self._listeners(count))}
                with serving(peer, self._build, env=env) as server:
                    options = ("-u", "/ws/echo", "-k", str(count), "-n", "1000", *self._time())
                    found = load.run(self._build, server, options)
                self._add("growth", f"{count} channels", peer, found)

    def _listeners(self, count: int) -> Path:
        """A folder with the echo listener as `count` channels."""
        folder = self._build / f"{count}-channels"
        source = OURS.folder / "websockets" / "echo.py"
        folder.mkdir(exist_ok=True)
        for index in range(count):
            (folder / f"echo{index}.py").write_bytes(source.read_bytes())
        return folder


#: In the order of the report.
GROUPS = ("echo", "flask", "fanout", "connect", "quiet", "push", "growth")


def _shuffled(items: list[_T], turn: int) -> list[_T]:
    return Random(turn).sample(items, len(items))


def _get(server: Server, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as answer:
        body = answer.read()
    result: dict[str, Any] = json.loads(body) if body else {}
    return result


def machine() -> str:
    """What it ran on, in a line."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0))
    compiler = subprocess.run(
        [os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True, check=False
    ).stdout.split("\n")[0]
    return f"{model}, {cores} cores; Linux {os.uname().release}; {compiler}"
