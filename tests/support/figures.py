"""What a run of the tests has measured, for ``docs/reliability.md``; and how long a run it is.

``WSMIDDLEWARE_TEST_LONG=1`` asks for the long forms, ``WSMIDDLEWARE_TEST_FIGURES`` names a folder
that takes the figures. conftest.py takes the variables away from the tests: they are read here.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import pytest

__all__ = ["IS_LONG", "longer", "pytest_terminal_summary", "record", "write_figures"]

#: The long forms run: `tox -e reliability`.
IS_LONG = os.environ.get("WSMIDDLEWARE_TEST_LONG", "") not in ("", "0")

_FOLDER = os.environ.get("WSMIDDLEWARE_TEST_FIGURES", "")

_figures: dict[str, dict[str, Any]] = {}

Value = TypeVar("Value")


def longer(usual: Value, long: Value) -> Value:
    """One of both, as the run is."""
    return long if IS_LONG else usual


def record(row: str, *, bound: str, measured: str) -> None:
    """Keep what a test has measured and what it was held against; both as the page shows them."""
    _figures[row] = {"bound": bound, "measured": measured}


def write_figures(name: str, figures: object, folder: str = _FOLDER) -> None:
    """Write one file of figures, where a folder is wanted."""
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for stem, content in ((name, figures), ("machine", _describe_machine())):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (path / f"{stem}.json").write_text(text, encoding="utf-8")


def _describe_machine() -> str:
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, CPython {python}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the figures at the end of the run, and writes them."""
    for row, figure in _figures.items():
        line = f"{row}: {figure['measured']} (bound: {figure['bound']})"
        terminalreporter.write_line(line)
    if _figures and _FOLDER:
        path = Path(_FOLDER, "tests.json")
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_figures("tests", {**known, **_figures})
