"""A run as ``docs/benchmarks.md`` and its plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from servers import FLOOR, OURS, PURE
from svg import draw_bars, draw_lines
from targets import TARGETS, Target

__all__ = ["write_report"]

Run = dict[str, Any]
Values = dict[tuple[str, str, str], dict[str, list[float]]]

_INTRODUCTION = """\
# Benchmarks

This server and its peers side by side in one run, on the same work. This file is written by

```console
pip install tox && tox -e bench
```

(or `tox -e bench -- --quick` for a look in minutes). Only peers that are installed take part; for
Node's, `npm install ws` somewhere and name its `node_modules` in `NODE_PATH`.

**What is measured.** Mostly the *processor time of the server for each message*, in microseconds,
read from `/proc` by the load generator ([wsload.c](../benchmarks/wsload.c)): throughput and latency
depend on what else a machine does, processor time much less. One core handles 1,000,000 divided by
that number of messages a second. For fan-out a message is one delivery to one client.

**How.** Every repetition of a cell visits all servers in turn, each time in another order, so that
neither a change of the machine's mood nor what a neighbour leaves behind hits always the same;
tables show medians. Before that comes a run in which every payload is compared, which a server has
to pass. Server and load generator have a processor of their own where there are two. Every peer is
set up as its own documentation advises (`benchmarks/peers/`), on uvloop where it can. Ours is the
real one: `python -m wsmiddleware run` with a Flask application (without `request_context`), a
listener of three lines and every default on: keepalive, limits, time-outs, counters. *no extension*
is the same with `WSMIDDLEWARE_SPEEDUPS=off`. The floor, an epoll loop in C over raw TCP, knows no
WebSocket at all.

What is compressed or goes to many is JSON: rows of numbers, names and English prose, each message
another (zlib's usual level leaves a third of 16 KiB). One message again and again would flatter
whoever keeps a window from message to message and finds the whole of it there.

Fan-out is measured once each connection has had its first messages: Linux acknowledges the first
sixteen segments of a connection one by one, in the sender's time, and a delivery costs half as much
again until then, whoever sends. Who stays connected is past that in the first minute.
"""


def write_report(run: Run, folder: Path) -> None:
    """Write ``benchmarks.md`` and ``benchmarks/*.svg`` into `folder`."""
    plots = folder / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    values = _collect(run)
    groups = {row["group"] for row in run["rows"]}
    parts = [_INTRODUCTION, _setup(run, values)]
    writers: dict[str, Callable[[Run, Values, Path], str]] = {
        "echo": _echo,
        "flask": _flask,
        "fanout": _fanout,
        "connect": _connect,
        "quiet": _quiet,
        "push": _push,
        "growth": _growth,
    }
    parts += [write(run, values, plots) for group, write in writers.items() if group in groups]
    parts += [_targets(run, values), _limits(values)]
    text = "\n".join(part for part in parts if part)
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")


# -- the numbers ------------------------------------------------------------------------------


def _collect(run: Run) -> Values:
    values: Values = {}
    for row in run["rows"]:
        found = values.setdefault((row["group"], row["cell"], row["peer"]), {})
        if row.get("error") or row.get("messages") == 0:
            continue
        for name, value in row.items():
            if isinstance(value, (int, float)):
                found.setdefault(name, []).append(value)
    return values


def _median(values: Values, group: str, cell: str, peer: str, name: str = "cpu_us") -> float | None:
    found = values.get((group, cell, peer), {}).get(name)
    return statistics.median(found) if found else None


def _cells(run: Run, group: str) -> list[str]:
    return list(dict.fromkeys(row["cell"] for row in run["rows"] if row["group"] == group))


def _peers(run: Run, group: str) -> list[str]:
    found = {row["peer"] for row in run["rows"] if row["group"] == group}
    return [peer for peer in run["peers"] if peer in found]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _matrix(
    run: Run, values: Values, group: str, cells: Iterable[str], name: str = "cpu_us"
) -> str:
    peers = _peers(run, group)
    return _table(
        ["", *peers],
        (
            [cell, *(_number(_median(values, group, cell, p, name)) for p in peers)]
            for cell in cells
        ),
    )


# -- the sections -----------------------------------------------------------------------------


def _setup(run: Run, values: Values) -> str:
    spreads = [
        (max(found["cpu_us"]) - min(found["cpu_us"])) / statistics.median(found["cpu_us"])
        for found in values.values()
        if len(found.get("cpu_us", ())) > 1 and statistics.median(found["cpu_us"])
    ]
    counts = (len(found.get("cpu_us", ())) for key, found in values.items() if key[0] == "growth")
    growth = max(counts, default=0)
    lines = [
        "## This run\n",
        f"- {run['date']}; {run['machine']}; Python {run['python']}",
        f"- load of the machine before it: {run['load']:.1f}",
        f"- {run['repetitions']} repetitions of {run['seconds']:g} s for each cell"
        + (f", {growth} for how cost grows" if growth > run["repetitions"] else "")
        + (", a quick run" if run["is_quick"] else ""),
    ]
    if spreads:
        lines.append(
            "- spread of the processor time between repetitions, (largest - smallest) ÷ median: "
            f"{statistics.median(spreads):.0%} in the middle, "
            f"{statistics.quantiles(spreads, n=10)[-1]:.0%} in nine of ten cells"
        )
    lines += [f"- {name}: {versions}" for name, versions in run["peers"].items()]
    lines += [f"- not present: {name}" for name in run["absent"]]
    return "\n".join(lines) + "\n"


def _echo(run: Run, values: Values, plots: Path) -> str:
    cells = _cells(run, "echo")
    picked = [c for c in ("text, 32 B, 100, 1", "text, 32 B, 100, 16", "text, 64 KiB, 100, 1")
              if c in cells]  # fmt: skip
    draw_bars(plots / "echo.svg", "Echo: server processor time for each message", "µs",
              _bars(run, values, "echo", picked))  # fmt: skip
    return "\n".join([
        "## Echo\n",
        "![Echo](benchmarks/echo.svg)\n",
        "Kind, size, connections, outstanding messages on each of them. Processor time, µs:\n",
        _matrix(run, values, "echo", cells),
        "Messages a second:\n",
        _matrix(run, values, "echo", cells, "rate"),
        "Latency, the median and the 99th percentile in µs, 100 connections of text:\n",
        _latencies(run, values, "echo", [c for c in cells if c.startswith("text") and "100" in c]),
    ])  # fmt: skip


def _flask(run: Run, values: Values, plots: Path) -> str:
    return "\n".join([
        "## In Flask's context\n",
        "Callbacks that see `session`, `request`, `g` and `current_user`, by\n"
        "`request_context=app.request_context`; beside them callbacks without it, and Flask-Sock,\n"
        "whose function is in such a context while the connection lives. What the listener has,\n"
        "size, connections, outstanding messages on each. Processor time, µs:\n",
        _matrix(run, values, "flask", _cells(run, "flask")),
    ])  # fmt: skip


def _bars(
    run: Run, values: Values, group: str, cells: Iterable[str]
) -> dict[str, dict[str, float]]:
    bars: dict[str, dict[str, float]] = {}
    for cell in cells:
        for peer in run["peers"]:
            value = _median(values, group, cell, peer)
            if value:
                bars.setdefault(cell, {})[peer] = value
    return bars


def _latencies(run: Run, values: Values, group: str, cells: Iterable[str]) -> str:
    def pair(cell: str, peer: str) -> str:
        names = ("p50_us", "p99_us")
        return " / ".join(_number(_median(values, group, cell, peer, name)) for name in names)

    peers = _peers(run, group)
    return _table(["", *peers], ([cell, *(pair(cell, peer) for peer in peers)] for cell in cells))


def _fanout(run: Run, values: Values, plots: Path) -> str:
    cells = _cells(run, "fanout")
    bars = _bars(run, values, "fanout", [cell for cell in cells if cell.startswith("plain")])
    title = "Fan-out: server processor time for each delivery"
    draw_bars(plots / "fanout.svg", title, "µs", bars)
    return "\n".join([
        "## Fan-out\n",
        "![Fan-out](benchmarks/fanout.svg)\n",
        "One client's message to all: form, size, clients. Processor time for each delivery, µs:\n",
        _matrix(run, values, "fanout", cells),
        "Until the last client has it, the median in µs:\n",
        _matrix(run, values, "fanout", cells, "p50_us"),
    ])  # fmt: skip


def _connect(run: Run, values: Values, plots: Path) -> str:
    names = {
        "connect_us": "CPU for a connect, µs",
        "close_us": "CPU for a close, µs",
        "kib": "memory of an idle connection, KiB",
        "idle_percent": "CPU while all are idle, %",
    }
    (cell,), peers = _cells(run, "connect"), _peers(run, "connect")
    rows = (
        [text, *(_number(_median(values, "connect", cell, p, name)) for p in peers)]
        for name, text in names.items()
    )
    return f"## Connections\n\n{cell}, opened 64 at a time:\n\n" + _table(["", *peers], rows)


def _quiet(run: Run, values: Values, plots: Path) -> str:
    return "\n".join([
        "## A quiet client among others\n",
        "Latency of a client that sends a message each 2 ms, median / 99th percentile in µs:\n"
        "alone; while another keeps 64 messages on their way; while broadcasts go to thousands.\n",
        _latencies(run, values, "quiet", _cells(run, "quiet")),
    ])  # fmt: skip


def _push(run: Run, values: Values, plots: Path) -> str:
    (cell,) = _cells(run, "push")
    names = {
        "info_ms": "`websocket_info()`",
        "push_ms": "a view that pushes to each instance of it",
        "turn_ms": "the longest that broadcasts to all of them held the loop",
    }
    rows = (
        [text, _number(_median(values, "push", cell, OURS.name, name))]
        for name, text in names.items()
    )
    return f"## From a view\n\nWith {cell}:\n\n" + _table(["", "ms"], rows)


def _growth(run: Run, values: Values, plots: Path) -> str:
    cells = _cells(run, "growth")
    lines: dict[str, list[tuple[float, float]]] = {}
    peers = [p for p in (OURS.name, PURE.name, FLOOR.name) if p in run["peers"]]
    for peer in peers:
        for cell in cells:
            value = _median(values, "growth", cell, peer)
            if value is None:
                continue
            kind, count = _growth_kind(cell)
            lines.setdefault(f"{peer}: {kind}", []).append((count, value))
    plain = {name: line for name, line in lines.items() if PURE.name not in name}
    draw_lines(plots / "growth.svg", "How the cost of a message grows", "µs", plain)
    rows = [[c, *(_number(_median(values, "growth", c, p)) for p in peers)] for c in cells]
    few, many = (
        _median(values, "growth", f"all of {count} connections busy", FLOOR.name)
        for count in (100, 10000)
    )
    floor = (
        f"From 100 to 10,000 busy connections the floor costs {100 * (many / few - 1):.0f} % more:"
        "\nwhat the system keeps of a socket is in no cache any more when its turn comes.\n"
        if few and many
        else ""
    )
    return "\n".join([
        "## How cost grows\n",
        "![Growth](benchmarks/growth.svg)\n",
        "Echo of 32 B, one outstanding. Processor time, µs:\n",
        _table(["", *peers], rows),
        floor,
    ])  # fmt: skip


def _growth_kind(cell: str) -> tuple[str, float]:
    words = cell.split()
    if "channels" in words:
        return "channels", float(words[0])
    return ("all busy" if words[0] == "all" else "100 busy"), float(words[2])


# -- what was promised ------------------------------------------------------------------------


def _targets(run: Run, values: Values) -> str:
    """Every promise with its figure: the peer's processor time divided by ours."""
    lines = [
        line
        for target in TARGETS
        for cell in target.cells
        if (line := _target_line(run, values, target, cell))
    ]
    if not lines:
        return ""
    peers = list(dict.fromkeys(peer for target in TARGETS for peer in target.ratios))
    return "\n".join([
        "## How many times cheaper\n",
        "A peer's processor time divided by ours; what this project set out to reach in brackets,\n"
        "**bold** where it is not met. First with the extension, then without it.\n",
        _table(["", *peers], ([line[0], *(line[1].get(peer, "") for peer in peers)]
                              for line in lines)),
    ])  # fmt: skip


def _limits(values: Values) -> str:
    """The promises that are no ratio of messages."""

    def found(group: str, peer: str, name: str, cell: str = "connections") -> float:
        """The median in the group's cell of that name, NaN where it was not measured."""
        cells = [key[1] for key in values if key[0] == group and key[1].endswith(cell)]
        value = _median(values, group, cells[0], peer, name) if cells else None
        return math.nan if value is None else value

    def connect(peer: str) -> float:
        return found("connect", peer, "connect_us")

    def both(peer: str) -> float:
        return connect(peer) + found("connect", peer, "close_us")

    def p99(noise: str) -> float:
        return found("quiet", ours, "p99_us", noise)

    def growth(few: str, many: str) -> float:
        return abs(found("growth", ours, "cpu_us", many) / found("growth", ours, "cpu_us", few) - 1)

    ours, gevent = OURS.name, "gevent-websocket"
    promises = [
        ("memory of an idle connection, KiB", found("connect", ours, "kib"), 4.0),
        ("CPU to open and close a connection, µs (gevent-websocket's)", both(ours), both(gevent)),
        ("CPU to open it, of that, µs (gevent-websocket's)", connect(ours), connect(gevent)),
        ("`websocket_info()`, ms", found("push", ours, "info_ms"), 2.0),
        ("longest turn of a broadcast, ms", found("push", ours, "turn_ms"), 5.0),
        ("a quiet client's p99 under a flood, µs (3 x in peace)", p99("flood"), 3 * p99("peace")),
        ("100 or 10,000 connections, all busy: change in CPU for a message, %",
         100 * growth("all of 100 connections busy", "all of 10000 connections busy"), 25.0),
        ("100 or 10,000 connections, 100 busy: the same, %",
         100 * growth("100 of 100 connections busy", "100 of 10000 connections busy"), 25.0),
        ("1 or 1,000 channels: the same, %", 100 * growth("1 channels", "1000 channels"), 25.0),
    ]  # fmt: skip
    rows = [
        [text, _number(value) if value <= most else f"**{_number(value)}**", _number(most)]
        for text, value, most in promises
        if not math.isnan(value) and not math.isnan(most)
    ]
    if not rows:
        return ""
    return "\n".join([
        "## Limits\n",
        "**Bold** where it is not met.\n",
        _table(["", "measured", "at most"], rows),
    ])  # fmt: skip


def _target_line(
    run: Run, values: Values, target: Target, cell: str
) -> tuple[str, dict[str, str]] | None:
    found: dict[str, str] = {}
    for peer, wanted in target.ratios.items():
        theirs = _median(values, target.group, cell, peer)
        figures = []
        for ours, ratio in zip(target.ours, wanted, strict=True):
            value = _median(values, target.group, cell, ours)
            if theirs is None or not value:
                continue
            text = f"{theirs / value:.2f} ({ratio:.3g})"
            figures.append(text if theirs / value >= ratio else f"**{text}**")
        if figures:
            found[peer] = ", ".join(figures)
    return (f"{target.group}: {cell}", found) if found else None
