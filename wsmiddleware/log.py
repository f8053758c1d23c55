"""Where the package logs to: the ``websocket`` logger, and a level below DEBUG for frames.

An application sets the logger up like any other. Where it sets up none, warnings and errors go to
standard error, as Python does it, also beside websocket-client, which silences the logger of the
same name. What a peer has sent is escaped and shortened in every record. Without touching code,
``WSMIDDLEWARE_LOG=trace`` (or ``debug``, ``info``, ``warning``, ``error``, ``critical``) sends it
to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from wsmiddleware.exceptions import ConfigError

__all__ = [
    "LOGGER_NAME",
    "TRACE",
    "VARIABLE",
    "escape",
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
# Who disables this one has not meant ours: `dictConfig` disables all that it does not name.
_bystander = logging.getLogger(f"{LOGGER_NAME}._bystander")

# The part of websocket-client that logs, to the logger of the same name.
_STRANGER = "websocket._logging"

# Characters of one line of a record.
_SHOWN = 2048


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

    Unset or empty, no handler and no level is touched. Called whenever a middleware is made: a
    second call sets the level anew and adds no second handler. Raises `ConfigError` for a level
    that is none.
    """
    if _bystander.disabled:
        logger.disabled = _bystander.disabled = False
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


def escape(text: str, limit: int = _SHOWN) -> str:
    """`text` as one line that a terminal shows and does not obey, of `limit` characters of it.

    Escaped are control characters, those that turn the direction of writing or show nothing, and
    line ends of all kinds.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(
            character if character.isprintable() else repr(character)[1:-1] for character in shown
        )
    return shown if len(text) <= limit else f"{shown}… ({len(text)} characters)"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.pathname != getattr(sys.modules.get(_STRANGER), "__file__", None)


class _Escape(logging.Filter):
    """Every record of ours in one line, and behind it a traceback in which none is forged."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record):
            # What fails here fails in the handler as well, which tells it and goes on.
            with contextlib.suppress(Exception):
                _escape_record(record)
        return True


def _escape_record(record: logging.LogRecord) -> None:
    message = record.getMessage()
    if (shown := escape(message)) != message:
        record.msg, record.args = shown, None
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = _escaped_traceback(record.exc_info[1])


def _escaped_traceback(exc: BaseException) -> str | None:
    """The traceback where it is not plain; formatters take it before their own."""
    chunks = list(traceback.TracebackException.from_exception(exc, compact=True).format())
    escaped = []
    for chunk in chunks:
        lines = [escape(line) for line in chunk.rstrip("\n").split("\n")]
        # What an exception says may have several lines: none of them stands where a record begins.
        is_said = chunk[:1].strip() and not chunk.startswith("Traceback ")
        escaped.append(("\n    " if is_said else "\n").join(lines) + "\n")
    return None if escaped == chunks else "".join(escaped).rstrip("\n")


class _LastResort(logging.Handler):
    """Python's last resort, for what somebody else's `NullHandler` would keep from it."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers, is_silenced = _others()
        if not handlers and logging.lastResort and (_is_ours(record) or not is_silenced):
            logging.lastResort.handle(record)


def _others() -> tuple[list[logging.Handler], bool]:
    """Who takes our records beside the last resort, and whether websocket-client has silenced us.

    Its `NullHandler` is no choice for ours; a second one is.
    """
    found: list[logging.Handler] = []
    at: logging.Logger | None = logger
    while at is not None:
        found += at.handlers
        at = at.parent if at.propagate else None
    others = [each for each in found if not isinstance(each, _LastResort)]
    for each in others:
        if type(each) is logging.NullHandler and _STRANGER in sys.modules:
            others.remove(each)
            return others, True
    return others, False


# At import, too: an error may come before the first middleware.
logger.addFilter(_Escape())
logger.addHandler(_LastResort(logging.WARNING))

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
