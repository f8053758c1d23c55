"""Under WSMIDDLEWARE_TEST_STRICT a skipped test has failed: CI has everything that tests need."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

#: Read once: conftest.py takes the variable away from the tests and their processes.
IS_STRICT = os.environ.get("WSMIDDLEWARE_TEST_STRICT", "") not in ("", "0")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that does, by `pytest.importorskip`."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    if IS_STRICT and report.skipped and not hasattr(report, "wasxfail"):
        where: Any = report.longrepr
        reason = where[2] if isinstance(where, tuple) else where
        report.outcome = "failed"
        report.longrepr = f"WSMIDDLEWARE_TEST_STRICT allows no skip. {reason}"
    return report
