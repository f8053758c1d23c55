"""Run this server and its peers side by side, and write ``docs/benchmarks.md`` with its plots.

    python benchmarks/run.py --quick

A peer that is not installed is left out. Linux only: processor time comes from /proc.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import load
from cells import write_payloads
from measure import GROUPS, Measurement, machine
from report import write_report
from servers import OURS, PEERS

_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """The command; its exit status."""
    options = _parse()
    if options.redraw:
        write_report(json.loads(options.redraw.read_text()), options.output)
        return 0
    _raise_file_limit()
    run = _measure(options)
    write_report(run, options.output)
    failed = [row for row in run["rows"] if row.get("error") and row["peer"].startswith(OURS.name)]
    for row in failed:
        print(f"{row['peer']}: {row['group']}: {row['cell']}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes, fewer cells")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP",
                        help=f"some of {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--peers", nargs="+", default=[], metavar="WORD",
                        help="only servers whose name contains one of these")  # fmt: skip
    parser.add_argument("--repetitions", type=int, help="of each cell (default 5, quick: 1)")
    parser.add_argument("--seconds", type=float, help="per cell (default 0.3)")
    parser.add_argument("--output", type=Path, default=_ROOT / "docs", help="the folder")
    parser.add_argument("--raw", type=Path, help="write every single result to this JSON file")
    parser.add_argument("--redraw", type=Path, help="measure nothing, read such a file")
    return parser.parse_args()


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 20000 if hard == resource.RLIM_INFINITY else min(20000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    words = [word.lower() for word in options.peers]
    chosen = [p for p in PEERS if not words or any(word in p.name.lower() for word in words)]
    peers = [peer for peer in chosen if peer.is_present()]
    repetitions = options.repetitions or (1 if options.quick else 5)
    seconds = options.seconds or 0.3
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="wsmiddleware-bench-") as folder:
        build = load.build(Path(folder))
        write_payloads(build)
        measurement = Measurement(
            build, peers, repetitions=repetitions, seconds=seconds, is_quick=options.quick
        )
        run = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": machine(),
            "load": load_before,
            "python": platform.python_version(),
            "repetitions": repetitions,
            "seconds": seconds,
            "is_quick": options.quick,
            "peers": {peer.name: peer.versions() for peer in peers},
            "absent": [peer.name for peer in chosen if peer not in peers],
            "rows": measurement.rows,
        }
        for group in options.only:
            measurement.run(group)
            if options.raw:
                # After each group: an hour's work should survive the last one's failure.
                options.raw.write_text(json.dumps(run))
    return run


if __name__ == "__main__":
    sys.exit(main())
