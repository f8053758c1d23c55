"""The load generator: compiled here, run against one server, its findings as a dictionary."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from servers import Server

__all__ = ["Result", "build", "read", "run", "start", "wait_open"]

Result = dict[str, Any]

_HERE = Path(__file__).resolve().parent


def build(folder: Path) -> Path:
    """Compile ``wsload`` and the floor into `folder`; without zlib's header nothing compressed."""
    compiler = [os.environ.get("CC", "cc"), "-O2"]
    wsload = [*compiler, "-o", str(folder / "wsload"), str(_HERE / "wsload.c")]
    if subprocess.run([*wsload, "-DHAVE_ZLIB", "-lz"], capture_output=True).returncode:
        subprocess.run(wsload, check=True)
    floor = [*compiler, "-o", str(folder / "floor"), str(_HERE / "peers" / "floor.c")]
    subprocess.run(floor, check=True)
    return folder


def start(
    folder: Path, server: Server, options: tuple[str, ...], *, nice: int = 0
) -> subprocess.Popen[str]:
    """Start the generator, on another processor than the server if there is one."""
    cpu = sorted(os.sched_getaffinity(0))[0]
    words = [str(folder / "wsload"), "-p", str(server.port), "-C", str(cpu), *options]
    words += ["-S", ",".join(map(str, server.pids()))]
    if server.peer.is_raw:
        words.append("-r")
    # What makes the noise yields to what measures.
    words = ["nice", "-n", str(nice), *words] if nice else words
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)


def wait_open(process: subprocess.Popen[str]) -> bool:
    """Wait until all its connections are open; `False` when it could not open them."""
    assert process.stderr
    return process.stderr.readline() == "open\n"


def read(process: subprocess.Popen[str]) -> Result:
    """Wait for it and give what it has found; ``error`` says what went wrong."""
    output, _ = process.communicate()
    found: Result = json.loads(output) if output.strip() else {}
    if process.returncode and not found.get("error"):
        found["error"] = f"exit status {process.returncode}"
    return found


def run(folder: Path, server: Server, options: tuple[str, ...]) -> Result:
    """Run the generator to its end."""
    return read(start(folder, server, options))
