"""Where the package logs to: the ``websocket`` logger, and a level below DEBUG for frames.

An application sets the logger up like any other. Without touching code, ``WSMIDDLEWARE_LOG=trace``
(or ``debug``, ``info``, ``warning``, ``error``, ``critical``) sends it to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

from wsmiddleware.exceptions import ConfigError

__all__ = [
    "LOGGER_NAME",
    "TRACE",
    "VARIABLE",
    "log",
    "logger",
    "parameter_name",
    "redact",
    "set_up_logging",
]

#: The logger's name, the seed's own.
LOGGER_NAME = "websocket"
#: The level at which every frame is logged.
TRACE = 5
#: The variable that sends the log to standard error.
VARIABLE = "WSMIDDLEWARE_LOG"

logger = logging.getLogger(LOGGER_NAME)


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]  # subscripted from 3.11 on
    """The logger for our own lines, from which nothing is raised.

    A handler or filter of the application's that fails costs its line: what we were about to do,
    for whomever, is done. As with an error that a handler meets itself, standard error tells.
    """

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        """As `logging.Logger.log`."""
        try:
            super().log(level, msg, *args, stacklevel=2, **options)
        except Exception:
            if logging.raiseExceptions:
                with contextlib.suppress(Exception):
                    traceback.print_exc()


log = _Log(logger, {})

# At import, against the habit: an application's own dictConfig may say "level": "TRACE" before
# the first middleware is made, and an unknown level name is an error there.
logging.addLevelName(TRACE, "TRACE")

_LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_HANDLER_NAME = "wsmiddleware-console"


def set_up_logging(environ: Mapping[str, str] = os.environ) -> None:
    """Send the log to standard error when ``WSMIDDLEWARE_LOG`` asks for it.

    Unset or empty, nothing is touched. Called whenever a middleware is made: a second call sets
    the level anew and adds no second handler. Raises `ConfigError` for a level that is none.
    """
    name = environ.get(VARIABLE, "").strip().lower()
    if not name:
        return
    if name not in _LEVELS:
        raise ConfigError(f"{VARIABLE} is {environ[VARIABLE]!r}; valid is {', '.join(_LEVELS)}")
    logger.setLevel(_LEVELS[name])
    if any(handler.get_name() == _HANDLER_NAME for handler in logger.handlers):
        return
    handler = logging.StreamHandler()
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)


_USERINFO = re.compile(r"\A([a-z][a-z0-9+.\-]*:)?//[^/?#]*@", re.IGNORECASE)


def redact(url: str) -> str:
    """The URL without what may be secret: user and password, values of the query, the fragment.

    Works on a path too, and never raises: what is no URL comes back as it is.
    """
    rest, has_fragment, _ = url.partition("#")
    rest, has_query, query = rest.partition("?")
    rest = _USERINFO.sub(lambda match: f"{match[1] or ''}//***@", rest)
    if has_query:
        rest += "?" + "&".join(_redact_parameter(part) for part in query.split("&"))
    return f"{rest}#***" if has_fragment else rest


def _redact_parameter(part: str) -> str:
    name = parameter_name(part)
    return f"{name}=***" if name else "***" if part else ""


def parameter_name(part: str) -> str:
    """The name in one part of a query, ``""`` where there is none or it may be a token itself.

    That is a part without a value: without ``=``, or with nothing behind it, as base64 ends.
    """
    name, _, value = part.partition("=")
    return name if value.strip("=") else ""
