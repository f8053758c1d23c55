"""docs/reliability.md is what the runs wrote, and docs/security.md names tests that there are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from support import ROOT

SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report", Path(__file__).with_name("report.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_made_of_the_figures() -> None:
    module = report()
    assert module.PAGE.read_text(encoding="utf-8") == module.render()


@pytest.mark.parametrize("name", ["machine", "tests", "soak"])
def test_figures_are_there(name: str) -> None:
    assert (report().FIGURES / f"{name}.json").exists()


NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", SECURITY)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_named_test_is_there(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not name or f"def {name}(" in text


def test_every_row_names_a_test() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ")]
    body = [row for row in rows if not row.startswith(("| threat", "| ---", "| what"))]
    held = [row for row in body if row.count("|") >= 5]
    assert len(held) > 25
    for row in held:
        assert "`tests/" in row, row
