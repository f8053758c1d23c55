"""The Autobahn testsuite against our servers: ``python tests/autobahn/run.py [--quick]``.

Runs the suite's ``wstest -m fuzzingclient`` against an echo channel under each of `TARGETS` and
judges what it reports: nothing failed, nothing unimplemented, nothing non-strict, and no case left
out. The suite (`SUITE`, from PyPI) is code for CPython 2.7: it is found in ``PYTHON27``, among
pyenv's versions or on the PATH, and installed once into a virtual environment of its own, which
``AUTOBAHN`` names. Exit status 1 where a case failed; 0 with one line where there is no 2.7.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import collections
import functools
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import Process
from support.figures import write_figures
from support.servers import Tls, serve_by, write_app

SUITE = "autobahntestsuite==25.10.1"

#: The latest of each that still knows Python 2.7.
CONSTRAINTS = """
attrs==21.4.0
Automat==22.10.0
cffi==1.15.1
constantly==15.1.0
enum34==1.1.10
hyperlink==21.0.0
idna==2.10
ipaddress==1.0.23
linecache2==1.0.0
pyasn1==0.5.1
pyasn1-modules==0.3.0
pycparser==2.21
PyHamcrest==1.10.1
traceback2==1.4.0
typing==3.10.0.0
ujson==2.0.3
wsaccel==0.6.6
"""

APP = """
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    app = WebSocketMiddleware(page, config=False, max_message_size=32 * 2**20)
"""

ECHO = """
    class Echo(WebSocketListener):
        def on_message(self, wsclient, message):
            return message
"""

#: Of the suite: what is to be loaded into the server before all else is not for its Python.
SURROUNDINGS = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

#: What the suite calls a good end of a case, and of its closing handshake.
GOOD = {"OK", "INFORMATIONAL"}
#: 7.13.1, 7.13.2 and 7.1.6 say what a server does; there is no wrong answer to them.
MAX_INFORMATIONAL = 3


@dataclass(frozen=True)
class Target:
    """A way to serve, and the cases that it is put to."""

    name: str
    way: str
    cases: tuple[str, ...]
    is_secure: bool = False


_ALL = ("*",)
_PROTOCOL = tuple(f"{group}.*" for group in range(1, 8))

TARGETS = [
    Target("run", "run", _ALL),
    Target("our gunicorn worker", "worker", _ALL),
    Target("run over TLS", "run", _PROTOCOL, is_secure=True),
    Target("the stock worker", "stock", _PROTOCOL),
]

#: 1,000 messages of 8 KiB and more each: minutes.
HEAVY = [
    f"{group}.{setting}.{size}"
    for group in (12, 13)
    for setting in range(1, 8)
    for size in (9, 10, 14, 15, 16, 17, 18)
]


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="`run`, without the heavy cases: 2 min"
    )
    names = [target.name for target in TARGETS]
    parser.add_argument("--target", choices=names, action="append", help="only this one")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help='only these: "1.*" "9.1.2"')
    parser.add_argument("--reports", type=Path, help="where the suite's reports go")
    arguments = parser.parse_args()
    wstest = find_suite()
    if wstest is None:
        print("autobahn: no CPython 2.7 here, which the testsuite needs: not run")
        return 0
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        reports = (arguments.reports or Path(folder) / "reports").resolve()
        wanted = arguments.target or (names[:1] if arguments.quick else names)
        for target in TARGETS:
            if target.name not in wanted:
                continue
            if arguments.cases:
                target = replace(target, cases=tuple(arguments.cases))
            work = Path(folder) / target.name.replace(" ", "-")
            work.mkdir()
            skipped = HEAVY if arguments.quick else []
            with serve(target, work) as process:
                result = judge(target, run(wstest, target, process, reports, skipped))
                assert "Traceback" not in process.output, process.output
            results.append(result)
            if not (arguments.quick or arguments.cases):
                write_figures(f"autobahn-{TARGETS.index(target)}", result)
    return 1 if any(result["wrong"] for result in results) else 0


# -- the suite ------------------------------------------------------------------------------------


def find_suite() -> Path | None:
    """The ``wstest`` of a virtual environment, made at the first time; `None` without a 2.7."""
    default = Path.home() / ".cache" / "wsmiddleware" / SUITE.replace("==", "-")
    environment = Path(os.environ.get("AUTOBAHN") or default)
    wstest = environment / "bin" / "wstest"
    if not wstest.exists():
        python = next(_pythons(), None)
        if python is None:
            return None
        install(python, environment)
    return wstest


def _pythons() -> Iterator[str]:
    """CPythons 2.7 that work and have an `ssl`."""
    root = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    candidates = [
        os.environ.get("PYTHON27"),
        *sorted(glob.glob(f"{root}/versions/2.7.*/bin/python2.7")),
        shutil.which("python2.7"),
        shutil.which("python2"),
    ]
    check = "import sys, ssl; assert sys.version_info[:2] == (2, 7)"
    for python in filter(None, candidates):
        command = [python, "-c", check]
        if not subprocess.run(command, capture_output=True, env=SURROUNDINGS).returncode:
            yield python


def install(python: str, environment: Path) -> None:
    """Install the suite; it needs the network, and a minute."""
    print(f"autobahn: installing {SUITE} into {environment}", flush=True)
    run = functools.partial(subprocess.run, check=True, env=SURROUNDINGS)
    with tempfile.TemporaryDirectory() as folder:
        # The last virtualenv that makes environments of 2.7.
        run([sys.executable, "-m", "venv", f"{folder}/v"])
        pip = [f"{folder}/v/bin/pip", "install", "--quiet"]
        run([*pip, "virtualenv==20.21.1"])
        making = environment.with_name(environment.name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(environment, ignore_errors=True)
        environment.parent.mkdir(parents=True, exist_ok=True)
        virtualenv = [f"{folder}/v/bin/virtualenv", "--quiet", "--python", python]
        run([*virtualenv, str(environment)])
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(CONSTRAINTS, encoding="ascii")
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        try:
            run([*pip, "--constraint", str(constraints), SUITE])
        except BaseException:
            shutil.rmtree(environment, ignore_errors=True)
            raise


# -- one target -----------------------------------------------------------------------------------


def serve(target: Target, work: Path) -> Any:
    """The echo channel, as the target serves it."""
    write_app(work, APP, test=ECHO)
    options = []
    if target.is_secure:
        tls = Tls(work)
        options = ["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)]
    return serve_by(target.way, work, options)


def run(
    wstest: Path, target: Target, process: Process, reports: Path, skipped: list[str]
) -> dict[str, Any]:
    """The suite's own index of results, and how long it took."""
    server = process.server
    scheme = "wss" if target.is_secure else "ws"
    folder = reports / target.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "outdir": str(folder),
        "servers": [
            {"agent": "wsmiddleware", "url": f"{scheme}://{server.host}:{server.port}/ws/test"}
        ],
        "cases": list(target.cases),
        "exclude-cases": skipped,
        "exclude-agent-cases": {},
    }
    path = folder / "fuzzingclient.json"
    path.write_text(json.dumps(spec), encoding="ascii")
    command = [str(wstest), "-m", "fuzzingclient", "-s", str(path)]
    started = time.monotonic()
    log = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3000,
        text=True,
        env=SURROUNDINGS,
    )
    index = folder / "index.json"
    if log.returncode or not index.exists():
        raise SystemExit(f"autobahn: the suite did not run to its end:\n{log.stdout[-3000:]}")
    (results,) = json.loads(index.read_text(encoding="utf-8")).values()
    missing = expected(wstest, path) - set(results)
    return {"cases": results, "missing": missing, "seconds": time.monotonic() - started}


_EXPECTED = """
import json, sys
from autobahntestsuite.caseset import CaseSet
from autobahntestsuite.case import Cases, CaseCategories, CaseSubCategories
from autobahntestsuite.case import CaseSetname, CaseBasename
cases = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
print(json.dumps(list(cases.parseSpecCases(json.load(open(sys.argv[1]))))))
"""


def expected(wstest: Path, path: Path) -> set[str]:
    """The cases that the suite was asked for."""
    python = wstest.with_name("python")
    command = [python, "-c", _EXPECTED, path]
    found = subprocess.run(command, check=True, capture_output=True, env=SURROUNDINGS)
    return set(json.loads(found.stdout))


def judge(target: Target, got: dict[str, Any]) -> dict[str, Any]:
    """One line for each case that is not as it should be, and the count of all."""
    counts: collections.Counter[str] = collections.Counter()
    wrong = [f"{case}: not run" for case in sorted(got["missing"])]
    for case, result in got["cases"].items():
        kind, end = result["behavior"], result["behaviorClose"]
        counts[kind if end in GOOD else f"closing handshake {end}"] += 1
        if kind not in GOOD or end not in GOOD:
            wrong.append(f"{case}: {kind}, closing handshake {end}")
    if counts["INFORMATIONAL"] > MAX_INFORMATIONAL:
        wrong.append(f"{counts['INFORMATIONAL']} informational cases")
    for line in wrong:
        print(f"autobahn, {target.name}: {line}")
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    seconds = round(got["seconds"], 1)
    print(f"autobahn, {target.name}: {summary}, {seconds} s", flush=True)
    return {
        "target": target.name,
        "cases": sum(counts.values()),
        "ok": counts["OK"],
        "informational": counts["INFORMATIONAL"],
        "wrong": wrong,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
