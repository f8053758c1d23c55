"""The callbacks of server and client, their arguments, and the check of a listener for them.

A name that nobody calls, and a callback that cannot be called, would stay unseen until the first
message is lost. `check` finds them when a listener is made known: names that are nearly those of
callbacks, and signatures that do not take what comes. Methods with names of their own are free.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.source import place_of

__all__ = ["CLIENT", "SERVER", "Callback", "Fits", "check", "check_made_without_arguments"]


class Callback(NamedTuple):
    """The arguments of a callback, after `self`."""

    takes: tuple[str, ...]
    #: How many of the last may be left out of the signature.
    optional: int = 0
    is_of_class: bool = False

    def written(self, name: str) -> str:
        """The signature, as one writes it."""
        first = "cls" if self.is_of_class else "self"
        before = "@classmethod " if self.is_of_class else ""
        return f"{before}def {name}({', '.join([first, *self.takes])})"


#: Those of a `WebSocketListener`.
SERVER: Mapping[str, Callback] = {
    "on_handshake": Callback(("request",), is_of_class=True),
    "on_first_open": Callback(("wsclients",), is_of_class=True),
    "on_open": Callback(("wsclient",)),
    "on_open_async": Callback(("wsclient",)),
    "on_message": Callback(("wsclient", "message")),
    "on_binary_message": Callback(("wsclient", "data")),
    "on_close": Callback(("wsclient", "reason_phrase")),
    "on_error": Callback(("wsclient", "exception")),
    "on_last_close": Callback((), is_of_class=True),
}

#: Those of a client's listener.
CLIENT: Mapping[str, Callback] = {
    "on_open": Callback(()),
    "on_message": Callback(("message",)),
    "on_binary_message": Callback(("binary",)),
    "on_close": Callback(()),
    "on_error": Callback(("type", "cause", "data"), optional=1),
    "on_ping": Callback(()),
    "on_pong": Callback(()),
}

#: Whether a value may be meant for an attribute: `paths`, a dict, is not meant for `path`.
Fits = Callable[[object], bool]

#: Names that are one letter off a callback, but words of their own.
_WORDS = frozenset(
    f"on{word}"
    for word in (
        *("pen", "oven", "omen", "clone", "chose", "lose", "closer", "closet", "terror"),
        *("pin", "pine", "king", "ring", "sing", "wing", "song", "long", "gong", "pond"),
    )
) | {"paths", "patch"}

# Takes the place of the instance while there is none.
_SOMEBODY = object()


def check(
    listener: object,
    callbacks: Mapping[str, Callback],
    attributes: Mapping[str, Fits] | None = None,
) -> frozenset[str]:
    """The names of the callbacks that a listener has, a class or an instance.

    `attributes` are names, besides callbacks, that may be misspelt. Raises `ListenerError`, which
    names file, line, what it found and what is meant. Runs nothing of the listener's own but what
    it takes to look a callback up.
    """
    spaces = _spaces(listener)
    meant = {**dict.fromkeys(callbacks, _is_callable), **(attributes or {})}
    for owner, name, near in _misspelt(spaces, meant):
        kind = "callback" if near in callbacks else "attribute"
        raise ListenerError(
            f"{place_of(owner, name)}: {name} is no {kind} of a listener (did you mean {near}?); "
            "what is your own needs another name"
        )
    found = frozenset(name for name in callbacks if hasattr(listener, name))
    for name in sorted(found):
        _check_one(listener, name, callbacks[name], spaces)
    return found


def check_made_without_arguments(cls: type) -> None:
    """`ListenerError` for a class that cannot be called without arguments."""
    if inspect.isabstract(cls):
        names = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ListenerError(f"{place_of(cls)}: leaves abstract: {names}")
    maker: Any = cls
    init = maker.__init__
    is_usual = type(cls).__call__ is type.__call__ and maker.__new__ is object.__new__
    if is_usual and isinstance(init, FunctionType):
        _check_call(MethodType(init, _SOMEBODY), "__init__", Callback(()), cls)


def _spaces(listener: object) -> list[tuple[type, Mapping[str, object]]]:
    """Where names are looked up, in that order, each with the class that it belongs to."""
    if isinstance(listener, type):
        return [(cls, vars(cls)) for cls in listener.__mro__ if _is_users(cls)]
    cls = type(listener)
    own = getattr(listener, "__dict__", None)
    first = [(cls, own)] if isinstance(own, dict) else []
    return [*first, *_spaces(cls)]


def _is_users(cls: type) -> bool:
    # Without our own base classes, which define every callback.
    return cls is not object and not cls.__module__.startswith("wsmiddleware.listeners.")


# -- names -----------------------------------------------------------------------------------------


def _misspelt(
    spaces: list[tuple[type, Mapping[str, object]]], meant: Mapping[str, Fits]
) -> list[tuple[type, str, str]]:
    """What is nearly a name that is meant: class, name, and the one that is meant."""
    found = []
    for at, (owner, names) in enumerate(spaces):
        for name, value in list(names.items()):
            near = _nearest(name, meant)
            if not near or not meant[near](value):
                continue
            # Beside the right one, or below it, a name is a helper's (`on_messages`, which
            # `on_message` calls); above it, it would have replaced what was inherited.
            if not any(near in space for _, space in spaces[: at + 1]):
                found.append((owner, name, near))
    return found


def _nearest(name: str, meant: Mapping[str, Fits]) -> str | None:
    if name in meant or name.startswith("_"):
        return None
    plain = _plain(name)
    for each in meant:  # onMessage, OnMessage, onmessage
        if plain == _plain(each):
            return each
    if plain in _WORDS:
        return None
    near = {each: _edits(plain, _plain(each)) for each in meant if _may_be(name, each)}
    best = min(near, key=near.__getitem__, default="")
    return best if best and near[best] <= _most_edits(best) else None


def _may_be(name: str, meant: str) -> bool:
    """Another word behind it (`on_message_sent`) is another name, another beginning is too."""
    return name[:2] == meant[:2] and not name.startswith(f"{meant}_")


def _most_edits(meant: str) -> int:
    return max(1, min(2, (len(_plain(meant)) - 1) // 4))


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def _edits(one: str, other: str) -> int:
    """How many letters to add, drop, change, or swap with the next make `other` of `one`."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def _is_callable(value: object) -> bool:
    wrapped = (classmethod, staticmethod, functools.partialmethod)
    return (callable(value) or isinstance(value, wrapped)) and not isinstance(value, type)


# -- signatures ------------------------------------------------------------------------------------


def _check_one(
    listener: object,
    name: str,
    callback: Callback,
    spaces: list[tuple[type, Mapping[str, object]]],
) -> None:
    value: Any = getattr(listener, name)
    kind = listener if isinstance(listener, type) else type(listener)
    owner = next((cls for cls, names in spaces if name in names), kind)
    where = f"{place_of(owner, name)}: {name}"
    if not callable(value):
        raise ListenerError(f"{where} is no method: {value!r}")
    if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
        raise ListenerError(f"{where} is async; callbacks are plain functions that may block")
    if inspect.isgeneratorfunction(value):
        raise ListenerError(f"{where} has a yield, so that nothing of it runs; send() or return")
    if isinstance(listener, type):
        is_classmethod = getattr(value, "__self__", None) is listener
        if is_classmethod != callback.is_of_class:
            must = "must not be" if is_classmethod else "must be"
            raise ListenerError(f"{where} {must} a classmethod")
        value = _as_called(inspect.getattr_static(listener, name), listener)
    _check_call(value, name, callback, owner)


def _as_called(value: Any, cls: type) -> Any:
    """What an instance has of what its class has; None where only the user's own code can tell."""
    known = (FunctionType, staticmethod, classmethod, functools.partial, functools.partialmethod)
    if not isinstance(value, known):
        return None
    return value.__get__(_SOMEBODY, cls) if hasattr(value, "__get__") else value


def _check_call(value: Any, name: str, callback: Callback, owner: type) -> None:
    """`ListenerError` where `value` is known not to take what it is called with."""
    first: tuple[object, ...] = ()
    if isinstance(value, MethodType):
        value, first = value.__func__, (value.__self__,)
    if not isinstance(value, (FunctionType, functools.partial)):
        return
    try:
        # Not what a decorator wraps: the wrapper is called, and may pass on other arguments.
        signature = inspect.signature(value, follow_wrapped=False)
    except (ValueError, TypeError):
        return
    arguments = (*first, *callback.takes)
    shortest = len(arguments) - callback.optional
    if any(_takes(signature, arguments[:n]) for n in range(shortest, len(arguments) + 1)):
        return
    raise ListenerError(
        f"{place_of(owner, name)}: {name} takes {_shown(signature)}, which is not what it is "
        f"called with: write {callback.written(name)}"
    )


def _takes(signature: inspect.Signature, arguments: tuple[object, ...]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _shown(signature: inspect.Signature) -> str:
    empty = inspect.Parameter.empty
    bare = [each.replace(annotation=empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
