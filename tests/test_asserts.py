"""The tests themselves: an assertion that cannot fail, or is never reached, holds nothing."""

from __future__ import annotations

import ast
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.loud import Loud

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))

#: Called by pytest, by the package or by a base class: nothing in the tests names them.
CALLED_BY_OTHERS = re.compile(r"test_|on_|pytest_|__\w+__$")


def is_always_true(node: ast.expr) -> bool:
    """True for a condition that no value of its names makes false, in any of its branches."""
    if isinstance(node, ast.IfExp):
        return is_always_true(node.body) or is_always_true(node.orelse)
    if isinstance(node, ast.BoolOp):
        return any(map(is_always_true, node.values))
    if isinstance(node, ast.NamedExpr):
        return is_always_true(node.value)
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return bool(node.elts)
    if isinstance(node, ast.Dict):
        return bool(node.keys)
    if isinstance(node, ast.Constant):
        return bool(node.value)
    return isinstance(node, (ast.JoinedStr, ast.Lambda, ast.GeneratorExp))


def asserts_in(node: ast.AST) -> Iterator[ast.Assert]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Assert))


def holds_nothing(tree: ast.AST) -> list[str]:
    """What is written like a check and is none."""
    found = [each for each in asserts_in(tree) if is_always_true(each.test)]
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and "raises(" in ast.unparse(node.items[0]):
            # Not reached where the line before it raises, as it shall.
            found += [each for line in node.body[1:] for each in asserts_in(line)]
    loose = (ast.Compare, ast.BoolOp, ast.UnaryOp)
    statements = [each for each in ast.walk(tree) if isinstance(each, ast.Expr)]
    lines: list[ast.stmt] = [
        *found,
        *(each for each in statements if isinstance(each.value, loose)),
    ]
    return [f"line {each.lineno}: {ast.unparse(each)}" for each in lines]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_assertion_can_fail(file: Path) -> None:
    assert not holds_nothing(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "assert a == b if c else [1]",
        "assert [1] if c else a == b",
        "assert (a == b, 'why')",
        "assert a == b or 'why'",
        "assert a and 'why'",
        "assert f'{a}'",
        "assert lambda: a == b",
        "assert (a for a in b)",
        "assert True",
        "a == b",
        "not a",
        "with pytest.raises(ValueError):\n    a()\n    assert a.b",
    ],
)
def test_what_holds_nothing_is_found(source: str) -> None:
    assert holds_nothing(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    ["assert a == ([1] if c else [])", "assert a < 1 if c else a > 2", "assert a, 'why'", "a()"],
)
def test_what_can_fail_is_none_of_it(source: str) -> None:
    assert not holds_nothing(ast.parse(source))


def test_function_with_assertions_is_called() -> None:
    names: Counter[str] = Counter()
    checks = set()
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        names.update(re.findall(r"\w+", text))
        for node in ast.walk(ast.parse(text)):
            # Who decorates a function registers it, mostly.
            if (
                isinstance(node, ast.FunctionDef)
                and not node.decorator_list
                and [*asserts_in(node)]
            ):
                checks.add(node.name)
    assert not [name for name in checks if names[name] < 2 and not CALLED_BY_OTHERS.match(name)]


def test_assertion_that_fails_in_a_callback_is_seen() -> None:
    log = logging.getLogger("asserts")
    with pytest.raises(AssertionError, match="one is not two"), Loud(log):
        try:
            raise AssertionError("one is not two")
        except AssertionError:
            log.exception("on_open raised it")
