"""The short form of ``tox -e soak``: a leak of each connection shows in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ROOT
from support.servers import environment


def test_nothing_is_left_of_hundreds_of_visits(tmp_path: Path) -> None:
    program = str(ROOT / "tests" / "reliability" / "soak.py")
    arguments = [sys.executable, program, "--seconds", "6", "--clients", "100"]
    soak = subprocess.run(
        arguments,
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert soak.returncode == 0, soak.stdout
    assert soak.stdout.startswith("soak: 6 s, 100 clients at a time, "), soak.stdout
