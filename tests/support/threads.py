"""Threads of the operating system: `threading.Thread` is a greenlet in a patched process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import monkey

from support import wait_until

__all__ = ["in_thread"]

_get_thread_id = monkey.get_original("threading", "get_ident")
_start_thread = monkey.get_original("_thread", "start_new_thread")


def in_thread(function: Callable[[], Any]) -> Any:
    """What `function` gives in a native thread, while the loop goes on here."""
    results: list[tuple[bool, Any]] = []

    here = _get_thread_id()

    def run() -> None:
        try:
            assert _get_thread_id() != here
            results.append((True, function()))
        except BaseException as exc:
            results.append((False, exc))

    _start_thread(run, ())
    wait_until(lambda: results)
    is_fine, result = results[0]
    if not is_fine:
        raise result
    return result
