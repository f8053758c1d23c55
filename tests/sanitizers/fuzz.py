"""A coverage-guided fuzzer on the reading path in C: ``python tests/sanitizers/fuzz.py``.

For ten minutes (``--seconds``) libFuzzer, by way of atheris, invents inputs for reading.py, guided
by the edges that they reach in the C extension and in the Python engine. Exit status 1 where the
two differ or a sanitizer reports anything; the input is kept then, and ``--replay FILE`` runs it
alone. What reached new edges is kept in build/fuzz/corpus, where the next run begins. Needs clang.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from sanitized import ROOT, build, make_environment

from support.wire import BINARY, PING, TEXT, close_frame, frame
from wsmiddleware.protocol.deflate import compress

_COMPILER = ("clang", "-fsanitize=fuzzer-no-link", "-fno-sanitize=function")
#: Has all of the runtime: libFuzzer's, and clang's sanitizers'.
_RUNTIME = str(Path(atheris.path()) / "asan_with_fuzzer.so")
_WORK = ROOT / "build" / "fuzz"

#: What libFuzzer says of itself now and then: inputs, and edges reached.
_STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+)")


def main() -> int:
    """Build, fuzz, tell; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, *_COMPILER)
        if arguments.replay:
            return fuzz(folder, str(arguments.replay.resolve()))
        corpus, seeds = _WORK / "corpus", folder / "seeds"
        corpus.mkdir(parents=True, exist_ok=True)
        seeds.mkdir()
        for number, seed in enumerate(make_seeds()):
            (seeds / f"{number:03}").write_bytes(seed)
        options = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=4096", "-use_value_profile=1"]
        options += [f"-max_total_time={arguments.seconds}", f"-artifact_prefix={_WORK}/"]
        return fuzz(folder, *options, str(corpus), str(seeds))


def fuzz(folder: Path, *arguments: str) -> int:
    """Run libFuzzer with that, and say at the end what came of it; the exit status."""
    program = str(Path(__file__).with_name("reading.py"))
    command = [sys.executable, program, *arguments]
    environment = make_environment(folder, _RUNTIME)
    first = last = ("0", "0")
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr
        for line in process.stderr:
            print(line, end="", flush=True)
            if status := _STATUS.match(line):
                last = status.groups()
                first = last if first[0] == "0" else first
    found = "something" if process.returncode else "nothing"
    print(f"fuzz: {last[0]} inputs, {first[1]} edges at first, {last[1]} at last: found {found}")
    return 1 if process.returncode else 0


# -- where it begins ------------------------------------------------------------------------------


def make_seeds() -> Iterator[bytes]:
    """Inputs of reading.py: under all settings what `make_wires` gives, whole and cut in two."""
    for settings, wire in itertools.product(range(8), make_wires()):
        parts = [wire[start : start + 255] for start in range(0, len(wire), 255)]
        raw = b"".join(bytes([1, len(part)]) + part for part in parts)
        yield bytes([settings]) + raw
        yield bytes([settings]) + raw + b"\x00\x80\x00"
    # Large ones in the script's own words, 64 or 140 bytes 4,096 times, where they are allowed.
    for settings, first, size in itertools.product((6, 7), (0x81, 0x82), (64, 140)):
        large = bytes([2, first, 1, size]) + b"x" * size + b"\xffkey "
        yield bytes([settings]) + large + b"\x00\x01\x00\x00\xf0\x00" + large


def make_wires() -> Iterator[bytes]:
    """What the tests have peers send."""
    text, data = "grüße, 世界 🎉 " * 20, bytes(1000)
    yield frame(TEXT, "Hello") * 2
    yield frame(BINARY, bytes(range(126))) + frame(TEXT, text)
    yield frame(TEXT, "frag", fin=False) + frame(PING, "p") + frame(0, "ments")
    yield frame(TEXT | 0x40, compress(text.encode(), 15) or b"")
    yield frame(BINARY | 0x40, compress(data, 15) or b"") + frame(TEXT, "plain")
    yield frame(TEXT, b"x\xff")
    yield frame(TEXT, "x") + close_frame(1000, "bye")
    yield b"\x83\x80"
    for limit in (20, 1000):
        yield frame(BINARY, bytes(limit)) + frame(BINARY, bytes(limit + 1))
    # Lengths around the borders of their three forms (RFC 6455 section 5.2), in each of the longer.
    for length in (125, 126, 65535, 65536, 1 << 63):
        yield b"\x82\xfe" + (length & 0xFFFF).to_bytes(2, "big") + b"key payload"
        yield b"\x82\xff" + length.to_bytes(8, "big") + b"key payload"


if __name__ == "__main__":
    sys.exit(main())
