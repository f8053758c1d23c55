"""The promise that `.ci/run` relies on: under WSMIDDLEWARE_TEST_STRICT a skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

SKIPS_ITSELF = "import pytest\ndef test_it(): pytest.skip('no redis-server')\n"
SKIPS_AS_A_WHOLE = "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): ...\n"


def run_pytest(source: str, tmp_path: Path, strict: str) -> str:
    (tmp_path / "test_it.py").write_text(source, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]", encoding="utf-8")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        "WSMIDDLEWARE_TEST_STRICT": strict,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "support.strict",
        "-p",
        "no:cacheprovider",
        ".",
    ]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("source", "outcome"), [(SKIPS_ITSELF, "1 failed"), (SKIPS_AS_A_WHOLE, "1 error")]
)
def test_skip_fails_where_it_is_strict(source: str, outcome: str, tmp_path: Path) -> None:
    assert outcome in run_pytest(source, tmp_path, "1")
    assert "1 skipped" in run_pytest(source, tmp_path, "0")
