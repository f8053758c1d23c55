"""Threads of the operating system: `threading.Thread` is a greenlet in a patched process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import monkey

from support import wait_until

__all__ = ["in_thread"]

_start_thread = monkey.get_original("_thread", "start_new_thread")


def in_thread(function: Callable[[], Any]) -> Any:
    """What `function` gives in a native thread, while the loop goes on here."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as exc:
            results.append(exc)

    _start_thread(run, ())
    wait_until(lambda: results)
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]
