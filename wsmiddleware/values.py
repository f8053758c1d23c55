"""The kinds of values that settings have: how one is read from text, and what is valid.

Pure functions. A `Kind` turns a value into its canonical form or raises `ValueError`; who names the
file, variable or keyword in the message is `wsmiddleware.config`. What comes from an environment
variable is text and is read by `Kind.read` first; keywords and JSON have types of their own, so
``"50"`` is no number there.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BOOLEAN",
    "HOSTS",
    "JSON",
    "MAX_HOST_SIZE",
    "MAX_ORIGIN_SIZE",
    "ORIGINS",
    "PATH",
    "SUBPROTOCOLS",
    "Kind",
    "choice",
    "integer",
    "is_opaque",
    "json_functions",
    "listing_of",
    "normalise_origin",
    "number",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. `check` and `read` raise `ValueError` for what is not `valid`."""

    #: What is valid, in words that end a sentence.
    valid: str
    #: A keyword's or file's value to its canonical form.
    check: Callable[[object], object]
    #: A variable's text to what `check` takes.
    read: Callable[[str], object] = str


def number(what: str, *, zero: bool = False, none: bool = False) -> Kind:
    """A finite number above 0, canonically a `float`; `zero` and `none` let those in too."""

    def check(value: object) -> float | None:
        if value is None and none:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        # OverflowError is what float() makes of an int of 400 digits.
        try:
            canonical = float(value)
        except OverflowError as exc:
            raise ValueError from exc
        if not math.isfinite(canonical) or canonical < 0 or (canonical == 0 and not zero):
            raise ValueError
        return canonical

    return Kind(what, check, _read_number)


def integer(what: str, *, most: float = math.inf) -> Kind:
    """A whole number from 1 to `most`."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError
        return value

    return Kind(what, check, _read_number)


def choice(*words: str) -> Kind:
    """One of a few words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return Kind(" or ".join(f'"{word}"' for word in words), check)


def _read_number(text: str) -> object:
    if text.lower() == "none":
        return None
    # int() and float() take "1_000", "nan" and other scripts' digits: only plain digits here.
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]*\.[0-9]+", text):
        return float(text)
    raise ValueError


_WORDS = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _read_boolean(text: str) -> object:
    if text.lower() not in _WORDS:
        raise ValueError
    return _WORDS[text.lower()]


def _check_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


#: On or off, canonically a `bool`.
BOOLEAN = Kind("true or false (in a variable also 1, 0, yes, no, on, off)", _check_boolean,
               _read_boolean)  # fmt: skip


def _check_path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ValueError
    return path


#: A path as written, canonically a `str`; what it is relative to is not known here.
PATH = Kind("the path of a directory", _check_path)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _read_list(text: str) -> object:
    return None if text.lower() == "none" else _split(text)


# RFC 6455, section 4.1: a subprotocol is a token as RFC 2616 defines it.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _check_subprotocols(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError
    names = tuple(value)
    if not all(isinstance(name, str) and _TOKEN.fullmatch(name) for name in names):
        raise ValueError
    if len(set(names)) != len(names):
        raise ValueError
    return names


#: Subprotocols in order of preference, canonically a tuple; none is the empty one.
SUBPROTOCOLS = Kind(
    "a list of different names of letters, digits and !#$%&'*+-.^_`|~ (in a variable separated by "
    "commas), or none",
    _check_subprotocols,
    _read_list,
)


def _check_origins(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if value in ("same-origin", "*"):
            return value
        value = _split(value)
    if isinstance(value, bytes) or not isinstance(value, Sequence) or not value:
        raise ValueError
    return tuple(dict.fromkeys(map(_check_origin, value)))


def _check_origin(item: object) -> str:
    if item == "same-origin":
        return "same-origin"
    try:
        return normalise_origin(item, wildcards=True)
    except ValueError:
        if isinstance(item, str) and is_opaque(item):
            return item
        raise


#: ``"same-origin"``, ``"*"``, or a tuple: ``"same-origin"``, origins as `normalise_origin` gives
#: them, and what `is_opaque`.
ORIGINS = Kind(
    '"same-origin", "*", or a list (in a variable separated by commas) of "same-origin" and of '
    'origins as "https://example.com" or "http://localhost:8000": scheme, host and port, no path, '
    '"*" only in place of a whole label as in "https://*.example.com"; "null"; or another '
    'scheme\'s as the log shows it, as "file://"',
    _check_origins,
)

MAX_HOST_SIZE = 260
"""Characters of a host with its port: a name of 253 (RFC 1035), its dot, ``:65535``."""

MAX_ORIGIN_SIZE = 300
"""Characters of an origin: such a host, and a scheme; a longer one is none."""

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]*\]|[^\[\]:/?#@\s\\]+)(?::([0-9]{1,5}))?"
)
# Hyphens at either end too: browsers take them, and names that have them are there.
_LABEL = re.compile(r"[a-z0-9_\-]{1,63}")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def normalise_origin(origin: object, *, wildcards: bool = False) -> str:
    """The one way to write an origin (RFC 6454, section 6.2), so that equal ones compare equal.

    Lower case, international names in their ``xn--`` form, no default port; ``"null"`` stays, and
    so does a dot behind the host, which makes it another one for browsers too.
    `wildcards` lets ``*`` stand for a whole label of the host. Raises `ValueError` for anything
    that is no origin: a path, a user, a bad port, more than `MAX_ORIGIN_SIZE`.
    """
    if not isinstance(origin, str) or len(origin) > MAX_ORIGIN_SIZE:
        raise ValueError(f"not an origin: {origin!r}")
    if origin == "null":
        return origin
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        raise ValueError(f"not an origin: {origin!r}")
    scheme, host, port = match.groups()
    host = _normalise_host(host, wildcards=wildcards)
    if port is None or int(port) == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"not a port: {port}")
    return f"{scheme}://{host}:{int(port)}"


def _normalise_host(host: str, *, wildcards: bool) -> str:
    if host.startswith("["):
        return f"[{ipaddress.IPv6Address(host[1:-1])}]"
    # UnicodeError, which the idna codec raises, is a ValueError.
    labels = host if host.isascii() else host.encode("idna").decode("ascii")
    for label in labels.removesuffix(".").split("."):
        if not _LABEL.fullmatch(label) and not (wildcards and label == "*"):
            raise ValueError(f"not a host: {host!r}")
    return labels


# Nothing of http: and ws:, and no wildcard: those are more likely slips of the pen.
_OPAQUE = re.compile(r"(?!(?:http|ws)s?:)[a-z][a-z0-9+.\-]*://[ -)+-~]*", re.IGNORECASE)


def is_opaque(text: str) -> bool:
    """True for what programs send as ``Origin`` where it is none: ``file://``, ``app://.``.

    It has no host to compare, and is equal to itself only. Here it is in printable ASCII, as
    `listing_of` gives it.
    """
    return _OPAQUE.fullmatch(text) is not None


def listing_of(origin: str) -> str | None:
    """What lets in exactly an ``Origin`` header once it stands in `ORIGINS`, in printable ASCII.

    `None` where nothing does: the header is too long, or neither an origin nor `is_opaque`.
    """
    if len(origin) > MAX_ORIGIN_SIZE:
        return None
    shown = origin.encode("unicode_escape").decode("ascii")
    try:
        normalise_origin(shown)
    except ValueError:
        return shown if is_opaque(shown) else None
    return shown


def _check_hosts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError
    return tuple(dict.fromkeys(map(_check_host, value)))


def _check_host(item: object) -> str:
    if not isinstance(item, str) or len(item) > MAX_HOST_SIZE:
        raise ValueError(f"not a host: {item!r}")
    if item.startswith("[") != item.endswith("]"):
        raise ValueError(f"not a host: {item!r}")
    dot = "." if item.startswith(".") else ""
    return dot + _normalise_host(item.removeprefix(".").lower(), wildcards=False)


#: A tuple of hosts in lower case, in their ``xn--`` form; none is the empty one.
HOSTS = Kind(
    'a list (in a variable separated by commas) of hosts without a port, as "example.com", or '
    '".example.com" for it and all below it; or none',
    _check_hosts,
    _read_list,
)


def json_functions(value: object) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What makes text of a value, and a value of text; `ValueError` for what has no such two."""
    for names in (("dumps", "loads"), ("encode", "decode")):
        both = [getattr(value, name, None) for name in names]
        if all(map(callable, both)) and not isinstance(value, type):
            return both[0], both[1]  # type: ignore[return-value]
    raise ValueError


def _check_json(value: object) -> object:
    if value is not None:
        json_functions(value)
    return value


#: An object that makes text of values and values of text; none is our own.
JSON = Kind(
    "an object with dumps and loads, as orjson or Flask's app.json, or with encode and decode, as "
    "msgspec.json; or none",
    _check_json,
)
