"""Requests on one connection as independent readers take them apart."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import llhttp

__all__ = ["Reading", "read_by_llhttp"]


class Reading(NamedTuple):
    """One request that was read to its end."""

    target: str
    body: bytes


class _Request(llhttp.Request):  # type: ignore[misc]
    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._target = self._body = b""

    def on_message_begin(self) -> None:
        self._target = self._body = b""

    def on_url(self, data: Any) -> None:
        self._target += bytes(data)

    def on_body(self, data: Any) -> None:
        self._body += bytes(data)

    def on_message_complete(self) -> None:
        self.readings.append(Reading(self._target.decode("latin-1"), self._body))


def read_by_llhttp(data: bytes) -> list[Reading]:
    """The requests that Node's parser finds, up to the first that is none."""
    parser = _Request()
    with contextlib.suppress(llhttp.Error):
        parser.execute(data)
    return parser.readings
