"""What goes over the wire of a message, and what a text says: JSON, our own or the application's.

Our own sends, beside what the standard library does, dates and times (ISO 8601), `Decimal` and
`UUID` (as text), dataclasses and enums, as keys too. It knows no NaN and no infinity, which are no
JSON: a browser could not read them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

from wsmiddleware.values import json_functions

__all__ = ["Data", "reader", "sender", "to_data"]

Data: TypeAlias = str | bytes | bytearray | memoryview


def reader(own: object) -> Callable[[str], Any]:
    """What makes a value of a text: the ``loads`` of the setting ``json``, ours for `None`.

    It raises what it likes for a text that is no JSON; ours a `ValueError`, or a `RecursionError`.
    """
    return _DECODER.decode if own is None else json_functions(own)[1]


def sender(own: object) -> Callable[[object], Data]:
    """What makes of a message what is sent; `own` is the setting ``json``, `None` for ours.

    It gives `str`, which is sent as text, for all that is not bytes-like, and raises `TypeError`
    for what JSON cannot hold.
    """
    dumps = _dumps if own is None else _as_text(json_functions(own)[0])

    def to_data(message: object) -> Data:
        if isinstance(message, (str, bytes, bytearray, memoryview)):
            return message
        try:
            return dumps(message)
        except (TypeError, ValueError) as exc:
            # Not first: it would cost what is JSON an exception.
            data = _to_bytes(message)
            if data is not None:
                return data
            kind = type(message).__name__
            raise TypeError(
                f"cannot send {kind}: str, bytes or what JSON can hold is sent ({exc})"
            ) from exc

    return to_data


def _as_text(dumps: Callable[[object], str | bytes]) -> Callable[[object], str]:
    """Some give bytes; a peer is to get text all the same."""

    def dumps_text(message: object) -> str:
        text = dumps(message)
        text = text if isinstance(text, str) else str(text, "utf-8")
        text.encode()  # half of a surrogate pair is the caller's mistake, not the connection's
        return text

    return dumps_text


def _dumps(message: object) -> str:
    encoder = _ENCODER
    try:
        text = encoder.encode(message)
    except TypeError:
        # A key that is no JSON, for one; what is left raises again.
        message = _with_plain_keys(message)
        text = encoder.encode(message)
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair: UTF-8 cannot hold it, JSON can as an escape.
        return _ASCII_ENCODER.encode(message)
    return text


def _plain(value: Any) -> object:
    """What stands in JSON for a value of Python that has no JSON of its own."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} is none")


def _with_plain_keys(value: object) -> object:
    if isinstance(value, dict):
        return {_plain_key(key): _with_plain_keys(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_plain_keys(each) for each in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _with_plain_keys(_plain(value))


def _plain_key(key: object) -> object:
    return key if key is None or isinstance(key, (str, int, float)) else _plain(key)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)
_ASCII_ENCODER = json.JSONEncoder(allow_nan=False, default=_plain)
_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _to_bytes(message: Any) -> bytes | None:
    """What an `array`, an `mmap` … holds; `None` for what is not bytes-like."""
    try:
        view = memoryview(message)
    except TypeError:
        return None
    # A single number (numpy's, ctypes') is meant as one, not as its bytes in memory.
    return view.tobytes() if view.ndim else None


#: What is sent of a message where there are no settings: by our own JSON.
to_data = sender(None)
