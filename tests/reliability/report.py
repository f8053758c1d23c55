"""Writes ``docs/reliability.md`` from the figures of the last runs: ``docs/figures/*.json``.

    python tests/reliability/report.py

The figures are written by `tox -e reliability`, `tox -e autobahn` and `tox -e soak`, which call
this at their end. Nothing on the page is typed in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "PAGE", "render"]

_DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = _DOCS / "figures"
PAGE = _DOCS / "reliability.md"

_HEAD = """# Reliability

What hostile, broken and unlucky peers, faults and long runs were made to do to the server, and what
came of it. The figures are those of the last runs, written by them: `tox -e reliability`,
`tox -e autobahn` and `tox -e soak`. Short forms of all three run in the continuous integration;
[Security](security.md) names the tests.

The C extension has two more, for whoever changes it. `tox -e asan` runs its tests and Autobahn's
cases 1 to 7 and 9 with AddressSanitizer and UndefinedBehaviorSanitizer. `tox -e fuzz` invents what
a peer might send for ten minutes, guided by the code that it reaches: the extension and the engine
in Python must take it to the same messages and the same end.
"""


def render(folder: Path = FIGURES) -> str:
    """The page."""
    parts = [_HEAD]
    machine = _read(folder / "machine.json")
    if machine:
        parts.append(f"Measured on {machine}.\n")
    parts += [_autobahn(folder), _tests(folder), _soak(folder)]
    return "\n".join(parts)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _autobahn(folder: Path) -> str:
    results = [_read(path) for path in sorted(folder.glob("autobahn-*.json"))]
    rows = [
        [
            each["target"],
            each["cases"],
            each["ok"],
            each["informational"],
            len(each["wrong"]),
            f"{each['seconds']:.0f}",
        ]
        for each in results
    ]
    head = ["served by", "cases", "OK", "informational", "anything else", "seconds"]
    return (
        "## Conformance: the Autobahn testsuite\n\n"
        "Anything else is failed, unimplemented, non-strict, an unclean closing handshake or not "
        "run; one such case fails the run.\n\n" + _table(head, rows)
    )


def _tests(folder: Path) -> str:
    figures = _read(folder / "tests.json") or {}
    rows = [[row, each["bound"], each["measured"]] for row, each in sorted(figures.items())]
    return (
        "## Hostile peers, concurrency, faults, going down, fuzzing\n\n"
        "A bound that does not hold fails the test.\n\n"
        + _table(["what", "bound", "measured"], rows)
    )


def _soak(folder: Path) -> str:
    soak = _read(folder / "soak.json")
    if soak is None:
        return "## A long run\n\nNot run.\n"
    rows = [[each["what"], each["before"], each["after"], each["bound"]] for each in soak["rows"]]
    summary = soak["summary"] + "".join(f"; **{line}**" for line in soak["wrong"])
    head = ["the server holds", "before", "after", "bound"]
    return f"## A long run\n\n{summary}.\n\n" + _table(head, rows)


if __name__ == "__main__":
    if sys.argv[1:] == ["--forget-tests"]:  # before a whole run: no row of a test that is no more
        (FIGURES / "tests.json").unlink(missing_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
