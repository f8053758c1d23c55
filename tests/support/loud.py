"""An assertion that fails where the package catches what is raised: in a callback, in a view."""

from __future__ import annotations

import logging

__all__ = ["Loud"]


class Loud(logging.Handler):
    """Raises at the end of a `with` the first `AssertionError` that was logged in it."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__(logging.ERROR)
        self._log = log
        self._failed: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what failed."""
        exc = record.exc_info[1] if record.exc_info else None
        if isinstance(exc, AssertionError):
            self._failed.append(exc)

    def __enter__(self) -> None:
        self._log.addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        self._log.removeHandler(self)
        if self._failed:
            raise self._failed[0]
