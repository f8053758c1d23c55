"""The promise that `.ci/run` relies on: under WSMIDDLEWARE_TEST_STRICT a skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

SKIPS_ITSELF = "import pytest\ndef test_it(): pytest.skip('no redis-server')\n"
SKIPS_AS_A_WHOLE = "import pytest\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(("strict", "outcome"), [("1", "1 failed, 1 error"), ("0", "2 skipped")])
def test_skip_fails_where_it_is_strict(strict: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]", encoding="utf-8")
    (tmp_path / "test_one.py").write_text(SKIPS_ITSELF, encoding="utf-8")
    (tmp_path / "test_all.py").write_text(SKIPS_AS_A_WHOLE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "support.strict"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        "WSMIDDLEWARE_TEST_STRICT": strict,
    }
    options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "."]
    run = subprocess.run(
        [*command, *options], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert outcome in run.stdout
