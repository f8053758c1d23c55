"""The application that a command line names: ``module:callable``, or a call of a factory.

``factory:create_app("test", debug=True)`` calls it once, with literals, as gunicorn does.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from wsmiddleware.exceptions import WebSocketError, text_of
from wsmiddleware.log import logger

__all__ = ["CommandError", "Spec", "load_app", "parse_spec"]


class CommandError(click.ClickException):
    """What the user has to mend, in one line; exit status 2."""

    exit_code = 2


class Spec(NamedTuple):
    """A module, the attribute in it, and the arguments where that is to be called."""

    module: str
    attribute: str
    arguments: tuple[list[Any], dict[str, Any]] | None


def load_app(spec: str) -> Callable[..., Any]:
    """The WSGI callable that `spec` names, imported from the current directory first.

    Runs the module, and the factory. Raises `CommandError` with the cause.
    """
    module, path, arguments = parse_spec(spec)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module)
        # To look for an attribute may run the user's code as well.
        for attribute in path.split("."):
            if not hasattr(target, attribute):
                raise CommandError(f"cannot import {spec}: {module} has no {path!r}")
            target = getattr(target, attribute)
        if arguments is not None and callable(target):
            positional, named = arguments
            target = target(*positional, **named)
    except (CommandError, KeyboardInterrupt):
        raise
    # SystemExit: a module that is a script by mistake; gevent.Timeout: one that waited too long.
    except BaseException as exc:
        logger.debug("%s cannot be imported", module, exc_info=exc)
        raise CommandError(f"cannot import {spec}: {_describe(exc)}") from exc
    if not callable(target):
        kind = type(target).__name__
        raise CommandError(f"cannot serve {spec}: it is of type {kind}, which cannot be called")
    if arguments is None and _is_factory(target):
        raise CommandError(
            f"cannot serve {spec}: it does not take (environ, start_response), as an application "
            f"does; a factory is called: '{spec}()', with its arguments if it wants some"
        )
    result: Callable[..., Any] = target
    return result


def parse_spec(spec: str) -> Spec:
    """Take ``module:callable`` apart, or ``module:factory(…)``. Raises `CommandError`."""
    name, _, path = spec.partition(":")
    if not name or not path:
        raise CommandError(
            f"APP is {spec!r}; valid is module:callable, as in app:app, or module:factory()"
        )
    if "/" in name or name.endswith(".py"):
        module = name.removesuffix(".py").strip("./").replace("/", ".")
        raise CommandError(f"APP is {spec!r}, a path; a module is meant: {module}:{path}")
    if "(" not in path:
        return Spec(name, path, None)
    try:
        return _parse_call(name, path)
    except (SyntaxError, ValueError) as exc:
        raise CommandError(
            f"APP is {spec!r}; a factory's arguments are literals: module:factory('text', key=1)"
        ) from exc


def _parse_call(module: str, text: str) -> Spec:
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError("no call")
    names = (ast.Name, ast.Attribute, ast.Load)
    if not all(isinstance(part, names) for part in ast.walk(call.func)):
        raise ValueError("no name")
    named: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("no literal")
        named[keyword.arg] = ast.literal_eval(keyword.value)
    positional = [ast.literal_eval(argument) for argument in call.args]
    return Spec(module, ast.unparse(call.func), (positional, named))


def _is_factory(target: Callable[..., Any]) -> bool:
    """True for what cannot be an application, by the arguments that it takes."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C, say
        return False
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return False
    places = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    needed = [each for each in parameters if each.default is each.empty]
    needed = [each for each in needed if each.kind is not each.VAR_KEYWORD]
    return len(places) < 2 or len(needed) > 2 or not needed


def _describe(exc: BaseException) -> str:
    """One error in one line, with its place in the user's code."""
    if isinstance(exc, WebSocketError):
        return str(exc)  # names its place itself
    text = "; ".join(line.strip() for line in text_of(exc).splitlines() if line.strip())
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename != importlib.__file__
    ]
    # The first frame is ours; an import that fails at once has no other.
    if isinstance(exc, SyntaxError) or len(frames) < 2:
        return f"{type(exc).__name__}: {text}"
    return f"{type(exc).__name__}: {text} ({frames[-1].filename}, line {frames[-1].lineno})"
