"""Where a class, and a name in it, stand in a file: for the messages about what is to be mended."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["file_of", "place_of"]


def file_of(cls: type) -> str:
    """The file that defines a class; its module's name where there is no file."""
    name = cls.__module__
    return getattr(sys.modules.get(name), "__file__", None) or name


def place_of(cls: type, name: str = "") -> str:
    """File, line and class: of the class, or of where its body binds `name`.

    Reads the file; without the line where that cannot be told.
    """
    line = _line_of(cls, name)
    return f"{file_of(cls)}{f', line {line}' if line else ''}, class {cls.__qualname__}"


def _line_of(cls: type, name: str) -> int:
    try:
        tree = ast.parse(Path(file_of(cls)).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return 0
    node = dict(_classes(tree, "")).get(cls.__qualname__)
    if node is None:
        return 0
    return max(_bindings(node, name), default=0) if name else node.lineno


def _classes(node: ast.AST, before: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes in a node by their qualified names."""
    for child in ast.iter_child_nodes(node):
        inner = before
        if isinstance(child, ast.ClassDef):
            yield before + child.name, child
            inner = f"{before}{child.name}."
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = f"{before}{child.name}.<locals>."
        yield from _classes(child, inner)


def _bindings(node: ast.AST, name: str) -> Iterator[int]:
    """The lines where `name` gets a value, not those of names within functions and classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if child.name == name:
                yield child.lineno
        elif isinstance(child, ast.Name) and child.id == name:
            if isinstance(child.ctx, ast.Store):
                yield child.lineno
        else:
            yield from _bindings(child, name)
