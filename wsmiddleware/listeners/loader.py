"""Listener files to listener classes: ``<directory>/chat.py`` is the channel ``chat``.

Files are loaded by their path under the private name ``wsmiddleware_listeners.<hash>.<channel>``.
Nothing goes on ``sys.path``: a directory called ``websockets`` must not hide the distribution of
that name. A listener file may import what lies beside it relatively (``from ._common import …``).
User code runs while it loads, and may block.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import CodeType, ModuleType

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.copies import PACKAGE, package_name, warn_of_modules
from wsmiddleware.log import logger

__all__ = ["listener_files", "load_file"]


def listener_files(directory: str | os.PathLike[str]) -> list[Path]:
    """The files of the directory that are channels, by name in order.

    Those whose names start with ``_`` or ``.`` or are no identifiers are none; symlinks that leave
    the directory are not followed, and the log says so. A directory that does not exist holds no
    channels: whether that is a mistake is for the settings to say. Raises `ListenerError` when it
    cannot be read.
    """
    try:
        entries = sorted(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ListenerError(f"{directory}: cannot be read: {exc.strerror}") from exc
    inside = Path(os.path.realpath(directory))
    _warn_of_package(inside)
    return [path for path in entries if path.suffix == ".py" and _is_channel(path, inside)]


def load_file(path: str | os.PathLike[str]) -> type[WebSocketListener]:
    """The listener class of one file, which is run anew at every call.

    It is the one subclass of `WebSocketListener` that the file defines, or that of several which is
    called like the file, case and underscores aside. Raises `ListenerError`, which shows file, line
    and cause.
    """
    # Not resolved: the channel is called as the link, not as the file that it points to.
    file = Path(os.path.abspath(path))
    try:
        module = _execute(file)
    # SystemExit: a file that is a script by mistake must not end the server without a word.
    except (Exception, SystemExit) as exc:
        logger.debug("%s: cannot be loaded", file, exc_info=exc)
        raise ListenerError(_describe(file, exc)) from exc
    listener_class = _choose(file, module)
    warn_of_modules(file)
    return listener_class


def _warn_of_package(directory: Path) -> None:
    """A folder with an ``__init__.py`` is imported before what is installed under its name."""
    if not (directory / "__init__.py").exists():
        return
    others = [path for path in sys.path if Path(os.path.realpath(path)) != directory.parent]
    hidden = importlib.machinery.PathFinder.find_spec(directory.name, others)
    if hidden is not None and hidden.origin is not None:
        logger.warning(
            "%s: makes the folder a package, which hides %s: delete it, listeners need none",
            directory / "__init__.py",
            os.path.dirname(hidden.origin),
        )


def _is_channel(path: Path, inside: Path) -> bool:
    if path.name.startswith(("_", ".")):
        return False
    if not path.stem.isidentifier():
        logger.warning("%s: no channel, its name is not a Python identifier", path)
        return False
    # Containment first: nothing is asked of what a link out of the directory points to.
    if not Path(os.path.realpath(path)).is_relative_to(inside):
        logger.warning("%s: no channel, it is a link that leaves the directory", path)
        return False
    return path.is_file()


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles what the file says now: no ``__pycache__`` beside the listeners, and no bytecode
    that is stale because two saves fell into one second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(file: Path) -> ModuleType:
    name = f"{_package_for(file.parent)}.{file.stem}"
    spec = importlib.util.spec_from_loader(name, _SourceLoader(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    if previous is not None and not isinstance(previous.__loader__, _SourceLoader):
        # A file beside it has imported it: run once more, it would be another class there.
        previous.__loader__ = spec.loader
        return previous
    # In sys.modules before it runs, where dataclasses, pickle and typing look classes up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        raise
    return module


def _package_for(directory: Path) -> str:
    name = package_name(directory)
    # The outer package is empty; the inner one's __path__ is what relative imports look in.
    for package, search in ((PACKAGE, []), (name, [str(directory)])):
        if package not in sys.modules:
            module = ModuleType(package, "Holds listener files; see wsmiddleware.listeners.loader.")
            module.__path__ = search
            sys.modules[package] = module
    return name


def _describe(file: Path, exc: BaseException) -> str:
    """Place and cause in one line: what a traceback would be read for."""
    # Frames of the import system itself say nothing to anyone.
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(exc.__traceback__)
        if not frame.f_code.co_filename.startswith("<frozen") and frame.f_globals is not globals()
    ]
    cause = traceback.format_exception_only(exc)[0].strip()
    if isinstance(exc, SyntaxError):
        cause = f"{type(exc).__name__}: {exc.msg}"
        if exc.filename:
            places.append((exc.filename, exc.lineno or 0))
    own = [line for name, line in places if name == str(file)]
    place = f"{file}, line {own[-1]}" if own else str(file)
    if not places or places[-1][0] == str(file):
        return f"{place}: {cause}"
    return f"{place}: {cause} (in {places[-1][0]}, line {places[-1][1]})"


def _choose(file: Path, module: ModuleType) -> type[WebSocketListener]:
    # Not isinstance(): that asks a proxy such as flask.request for its __class__, and on Python
    # 3.10 it takes list[int] for a class.
    classes: list[type] = [
        value for value in vars(module).values() if issubclass(type(value), type)
    ]
    # An alias is one class under two names: dict.fromkeys keeps one, in the order of definition.
    defined = list(dict.fromkeys(cls for cls in classes if cls.__module__ == module.__name__))
    listeners = [cls for cls in defined if issubclass(cls, WebSocketListener)]
    named = [cls for cls in listeners if _plain(cls.__name__) == _plain(file.stem)]
    if len(listeners) == 1:
        return listeners[0]
    if len(named) == 1:
        return named[0]
    if listeners:
        found = ", ".join(cls.__name__ for cls in listeners)
        how_many = "more than one" if named else "none"
        raise ListenerError(
            f"{file}: defines several listeners, {how_many} called like the file: {found}"
        )
    found = ", ".join(cls.__name__ for cls in defined) or "no class"
    raise ListenerError(
        f"{file}: defines no subclass of WebSocketListener (found: {found}{_imported(classes)})"
    )


def _imported(classes: list[type]) -> str:
    names = [
        cls.__name__
        for cls in classes
        if issubclass(cls, WebSocketListener) and cls is not WebSocketListener
    ]
    return f"; imported: {', '.join(names)}" if names else ""


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()
