"""The tests under sanitizers: ``python tests/sanitizers/asan.py [arguments of pytest]``.

`SUITES`, then Autobahn's cases (`CASES`) against `run`, with the extension as sanitized.py makes
it. Before that it is shown what it must find: `PLANTED`. With arguments, pytest gets those and
nothing else runs. Exit status 1 where a test fails or a sanitizer reports anything, in any process.

Local variables of the extension have no red zones here: greenlets copy stacks, red zones with them,
and the marks of one stack would be taken for those of the next. fuzz.py, which has no greenlets,
looks at them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sanitized import ROOT, build, compile_module, make_environment

SUITES = ["tests/net", "tests/protocol", "tests/listeners", "tests/test_speedups.py"]
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*"]

_COMPILER = ("gcc", "--param", "asan-stack=0")

#: A program that calls what is planted, and what must be said of it.
PLANTED = {
    "heap(b'12345678')": "heap-buffer-overflow",
    "undefined(2**31 - 1)": "signed integer overflow",
    "import socket; a, b = socket.socketpair(); a.send(b'12345678'); fence(b.fileno())": (
        "use-after-poison"
    ),
}


def main() -> int:
    """Build, show, run; the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, *_COMPILER)
        runtimes = [find_runtime(name) for name in ("libasan.so", "libubsan.so")]
        environment = make_environment(folder, *runtimes)
        check(folder, environment)
        reports = folder / "reports"
        reports.mkdir()
        for variable in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
            # Also of processes whose standard error nobody reads.
            environment[variable] += f":log_path={reports}/report"
        commands = [[str(Path(sys.executable).with_name("pytest")), *(sys.argv[1:] or SUITES)]]
        if not sys.argv[1:]:
            autobahn = str(ROOT / "tests" / "autobahn" / "run.py")
            commands.append([sys.executable, autobahn, "--target", "run", "--cases", *CASES])
        results = [subprocess.run(each, cwd=ROOT, env=environment) for each in commands]
        return tell(reports) | any(result.returncode for result in results)


def find_runtime(name: str) -> str:
    """Where the compiler has that library."""
    command = [_COMPILER[0], f"-print-file-name={name}"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"{_COMPILER[0]} has no {name}: install its sanitizers")
    return path


def check(folder: Path, environment: dict[str, str]) -> None:
    """That what is tested is what was built, and that what is planted is found."""
    source = Path(__file__).with_name("planted.c")
    compile_module([source], folder / "planted.so", *_COMPILER)
    where = "from wsmiddleware import _speedups; print(_speedups.__file__)"
    found = _run(where, environment)
    assert found.stdout.strip() == str(folder / "wsmiddleware" / "_speedups.so"), found
    for program, report in PLANTED.items():
        found = _run(f"from planted import *; {program}", environment)
        assert found.returncode and report in found.stderr, (program, found)
    print(f"asan: found all {len(PLANTED)} planted faults", flush=True)


def _run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    # Not in the checkout, which would be found first.
    return subprocess.run(
        command, env=environment, cwd=environment["PYTHONPATH"], capture_output=True, text=True
    )


def tell(reports: Path) -> bool:
    """Print what the sanitizers have reported; whether there was anything."""
    found = sorted(reports.iterdir())
    for path in found:
        print(path.read_text(encoding="utf-8", errors="replace"))
    print(f"asan: {len(found)} reports of the sanitizers", flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
