"""What is measured: the cells, each a line of options for the load generator."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

__all__ = [
    "SIZES",
    "Cell",
    "echo_cells",
    "fanout_cells",
    "flask_cells",
    "name_of_size",
    "write_payloads",
]

SIZES = (32, 1024, 65536, 1 << 20)


@dataclass(frozen=True)
class Cell:
    """One measurement, told apart by its `key`."""

    key: str
    options: tuple[str, ...]
    is_deflate: bool = False
    #: So many times longer than the others: until each connection has had its turn a few times.
    stretch: int = 1
    #: Seconds of work before it is measured, at least.
    warm_up: float = 0.0
    #: Whose messages they are, where it is not the group's name.
    channel: str = ""


def name_of_size(size: int) -> str:
    """32 B, 64 KiB, 1 MiB."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1024)):
        if size >= factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def write_payloads(folder: Path) -> None:
    """JSON as an application sends it, of exactly the sizes of the cells: each message another.

    Sent again and again, one message alone would cost a peer next to nothing to compress that
    keeps its window from message to message: it would find all of it there.
    """
    prose = " ".join(" ".join(topics.values()).split())
    texts = itertools.cycle(re.findall(r"[A-Z][a-z]+(?:,? [a-z]+){3,20}\.", prose))
    for size in (128, 1024, 16384):
        random = Random(size)
        messages = [_json(size, texts, random) for _ in range(64)]
        (folder / f"{size}.json").write_text("".join(messages))


def _json(size: int, texts: Iterator[str], random: Random) -> str:
    def row(text: str) -> dict[str, str | int]:
        return {"id": random.getrandbits(32), "user": f"user{random.randrange(500)}", "text": text}

    rows = [row("")]
    while True:
        more = row(next(texts))
        missing = size - len(json.dumps(rows))
        if len(json.dumps(more)) + 2 > missing:  # the first text fills up what whole rows leave
            rows[0]["text"] = " ".join(itertools.islice(texts, 20))[:missing]
            return json.dumps(rows)
        rows.append(more)


def echo_cells() -> list[Cell]:
    """Every size, few and many connections, one and many outstanding, text and binary; JSON."""
    cells = []
    kinds = (("text", ()), ("binary", ("-b",)))
    for (kind, flag), size, connections, outstanding in itertools.product(
        kinds, SIZES, (1, 100), (1, 16)
    ):
        key = _key(kind, name_of_size(size), connections, outstanding)
        options = ("-s", str(size), *_counts(connections, outstanding), *flag)
        stretch = 4 if size * connections >= 100 << 20 else 2 if size >= 1 << 16 else 1
        cells.append(Cell(key, options, stretch=stretch))
    for size, connections, outstanding in itertools.product((128, 1024), (1, 100), (1, 16)):
        key = _key("compressed", name_of_size(size), connections, outstanding)
        options = (*_file(size), "-z", *_counts(connections, outstanding))
        cells.append(Cell(key, options, is_deflate=True))
    return cells


def flask_cells() -> list[Cell]:
    """Small echoes, by a listener of one callback and by one that has the others too."""
    listeners = {"on_message": "echo", "on_open_async, on_error too": "whole"}
    return [
        Cell(
            f"{name}, {name_of_size(size)}, 100, {outstanding}",
            ("-s", str(size), *_counts(100, outstanding)),
            channel=channel,
        )
        for (name, channel), size, outstanding in itertools.product(
            listeners.items(), (32, 1024), (1, 16)
        )
    ]


def fanout_cells() -> list[Cell]:
    """A small and a large message to many, plain and compressed."""
    cells = []
    for form, connections, size in itertools.product(
        ("plain", "compressed"), (1000, 5000), (128, 16384)
    ):
        key = f"{form}, {name_of_size(size)}, {connections}"
        options = ("-m", "fanout", *_file(size), "-n", str(connections))
        is_deflate = form == "compressed"
        if is_deflate:
            options = (*options, "-z")
        # Linux acknowledges each of a connection's first sixteen segments at once, in the sender's
        # time: half as much again for each delivery. Who stays connected is past that.
        cells.append(Cell(key, options, is_deflate, stretch=2, warm_up=connections / 5000))
    return cells


def _key(kind: str, size: str, connections: int, outstanding: int) -> str:
    return f"{kind}, {size}, {connections}, {outstanding}"


def _file(size: int) -> tuple[str, ...]:
    return ("-s", str(size), "-f", f"{{build}}/{size}.json")


def _counts(connections: int, outstanding: int) -> tuple[str, ...]:
    return ("-n", str(connections), "-P", str(outstanding))
