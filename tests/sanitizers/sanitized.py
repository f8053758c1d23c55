"""The C extension built with sanitizers, beside a copy of the package: for asan.py and fuzz.py.

AddressSanitizer finds what is read or written outside of what was allocated, or after it was freed;
UndefinedBehaviorSanitizer what C leaves undefined. Both see the extension only: Python, gevent and
greenlet are what is installed. Linux, with the compiler's runtime libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "build", "compile_module", "make_environment"]

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_SOURCES = ROOT / "wsmiddleware" / "_extension"

_FLAGS = [
    *("-O1", "-g", "-fPIC", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    # What lies behind the bytes that have come is out of bounds, too.
    *("-include", str(_HERE / "fence.h"), f"-I{_SOURCES}"),
]

_OPTIONS = {
    "ASAN_OPTIONS": ":".join(
        [
            # What Python itself holds to the end would be reported. All that the extension gets, it
            # gets by way of Python: to suppress the one is to suppress the other. Leaks are looked
            # for by test_soak.py and by the tests that count references.
            "detect_leaks=0",
            # It moves local variables to the heap; greenlets move the stack, under their feet.
            "detect_stack_use_after_return=0",
            # What is too large is a MemoryError, as ever.
            "allocator_may_return_null=1",
        ]
    ),
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Each object an allocation of its own, or the borders between two of them are not seen.
    "PYTHONMALLOC": "malloc",
}


def build(folder: Path, compiler: str, *flags: str) -> None:
    """Put a copy of the package into `folder`, its extension built by `compiler` with `flags`."""
    package = folder / "wsmiddleware"
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "wsmiddleware", package, ignore=leave_out)
    compile_module(sorted(_SOURCES.glob("*.c")), package / "_speedups.so", compiler, *flags)


def compile_module(sources: Sequence[Path], target: Path, compiler: str, *flags: str) -> None:
    """Compile an extension module."""
    if shutil.which(compiler) is None:
        raise SystemExit(f"no {compiler} here: apt install {compiler}")
    include = f"-I{sysconfig.get_path('include')}"
    objects = []
    for source in sources:
        objects.append(str(target.parent / f"{source.stem}.o"))
        command = [compiler, *_FLAGS, *flags, include, "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    # Without the flags: the runtime is the one that is loaded before Python.
    subprocess.run([compiler, "-shared", *objects, "-o", str(target)], check=True)


def make_environment(folder: Path, *runtimes: str) -> dict[str, str]:
    """With what `build` has put into `folder` before any other, and `runtimes` before all else."""
    return {
        **os.environ,
        **_OPTIONS,
        "LD_PRELOAD": " ".join(runtimes),
        "PYTHONPATH": str(folder),
        "WSMIDDLEWARE_SPEEDUPS": "on",
    }
