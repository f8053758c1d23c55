"""What sees a peer's bytes takes time that grows with them, and no faster.

That each regular expression is known, and why it is linear, `tests/test_architecture.py` holds.
"""

from __future__ import annotations

import importlib
import itertools
import re
import time

import pytest

from support import ROOT

PACKAGE = ROOT / "wsmiddleware"

#: Half of what a head may have by default.
SIZE = 32_768


def patterns() -> dict[str, re.Pattern[str] | re.Pattern[bytes]]:
    """Those at the top of the modules, by where they stand."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if file.stem in ("__init__", "__main__"):
            continue
        module = importlib.import_module(f"wsmiddleware.{name}")
        for key, value in vars(module).items():
            if isinstance(value, re.Pattern):
                found[f"{name}.{key}"] = value
    return found


def test_patterns_are_found() -> None:
    assert {"protocol.opening._FIELD", "policy._HOST", "values._OPAQUE"} <= set(patterns())


#: What may come before, again and again, and behind.
BEFORE = ["", "a", "a:", "http://", "a://", "[", '"', "HTTP/1.1 200 ", "Host: x\r\n", "//"]
AGAIN = [
    " ",
    "\t ",
    "a",
    "a.",
    "ü",
    ":",
    "0",
    "\\",
    "\\a",
    ",",
    ";",
    '"',
    "/",
    "-",
    "@",
    "a: b\r\n",
]
BEHIND = ["", "\0", "\r", "é", "a", "]", "*"]


@pytest.mark.parametrize("name", sorted(patterns()))
def test_pattern_takes_linear_time(name: str) -> None:
    """One that looks at each byte again for each other one would take seconds."""
    pattern = patterns()[name]
    is_text = isinstance(pattern.pattern, str)
    for before, again, behind in itertools.product(BEFORE, AGAIN, BEHIND):
        text = (before + again * (SIZE // len(again)))[: SIZE - len(behind)] + behind
        head = text if is_text else text.encode("latin-1")
        started = time.thread_time()
        pattern.match(head)  # type: ignore[arg-type]
        pattern.fullmatch(head)  # type: ignore[arg-type]
        spent = time.thread_time() - started
        assert spent < 0.25, (before, again, behind)
