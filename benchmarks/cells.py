"""What is measured: the cells, each a line of options for the load generator."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SIZES", "Cell", "echo_cells", "fanout_cells", "name_of_size", "write_payloads"]

SIZES = (32, 1024, 65536, 1 << 20)


@dataclass(frozen=True)
class Cell:
    """One measurement, told apart by its `key`."""

    key: str
    options: tuple[str, ...]
    is_deflate: bool = False
    #: So many times longer than the others: until each connection has had its turn a few times.
    stretch: int = 1


def name_of_size(size: int) -> str:
    """32 B, 64 KiB, 1 MiB."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1024)):
        if size >= factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def write_payloads(folder: Path) -> None:
    """JSON as an application sends it, of exactly the sizes of the compressed cells."""
    for size in (128, 1024, 16384):
        rows = [
            {"id": 1000 + 7 * i, "user": f"user{i * i % 97}", "text": f"message {i} of the day"}
            for i in range(size // 32)
        ]
        # A last field fills up what whole rows leave open.
        text = json.dumps(rows)[: size - 10]
        (folder / f"{size}.json").write_text(text + '", "x": 1]'[:10].ljust(10))


def echo_cells() -> list[Cell]:
    """Every size, few and many connections, one and many outstanding, text and binary; JSON."""
    cells = []
    kinds = (("text", ()), ("binary", ("-b",)))
    for (kind, flag), size, connections, outstanding in itertools.product(
        kinds, SIZES, (1, 100), (1, 16)
    ):
        key = _key(kind, name_of_size(size), connections, outstanding)
        options = ("-s", str(size), *_counts(connections, outstanding), *flag)
        stretch = 4 if size * connections >= 100 << 20 else 2 if size >= 1 << 20 else 1
        cells.append(Cell(key, options, stretch=stretch))
    for connections, outstanding in itertools.product((1, 100), (1, 16)):
        key = _key("compressed", "1 KiB", connections, outstanding)
        options = ("-f", "{build}/1024.json", "-z", *_counts(connections, outstanding))
        cells.append(Cell(key, options, is_deflate=True))
    return cells


def fanout_cells() -> list[Cell]:
    """A small and a large message to many, plain and compressed."""
    cells = []
    for form, connections, size in itertools.product(
        ("plain", "compressed"), (1000, 5000), (128, 16384)
    ):
        key = f"{form}, {name_of_size(size)}, {connections}"
        options = ("-m", "fanout", "-f", f"{{build}}/{size}.json", "-n", str(connections))
        is_deflate = form == "compressed"
        cells.append(Cell(key, (*options, "-z") if is_deflate else options, is_deflate))
    return cells


def _key(kind: str, size: str, connections: int, outstanding: int) -> str:
    return f"{kind}, {size}, {connections}, {outstanding}"


def _counts(connections: int, outstanding: int) -> tuple[str, ...]:
    return ("-n", str(connections), "-P", str(outstanding))
