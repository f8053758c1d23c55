"""The table of settings. Where their values come from is `wsmiddleware.config`.

The fields of `Settings` are the table. Each row gives keyword, default, kind of value, meaning and
unit; the file's key and the variable's name follow from the keyword. Keywords, variables, keys,
``--help``, the documentation and the error messages are all made from it: a new setting is one row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsmiddleware import values
from wsmiddleware.exceptions import ConfigError

__all__ = [
    "DEFAULT_DIRECTORY",
    "PREFIX",
    "SETTINGS",
    "Setting",
    "Settings",
    "help_text",
    "markdown_table",
    "shorten",
    "validate",
]

#: What every variable's name starts with.
PREFIX = "WSMIDDLEWARE_"
#: Where listeners are looked for by default: beside the file, or in the current directory.
DEFAULT_DIRECTORY = "{config-dir}/websockets/"


def _default_max_connections() -> int:
    try:
        import resource
    except ImportError:  # Windows: no such limit, and the seed warns of its smaller numbers
        return 10_000
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = 2**20
    return max(1, limit * 9 // 10)


def _row(
    default: object,
    kind: values.Kind,
    meaning: str,
    *,
    unit: str = "",
    shown: str = "",
    is_keyword_only: bool = False,
) -> Any:
    """One row; a callable default is asked when settings are made, `shown` is what help says."""
    shown = shown or (f"{default:g}" if isinstance(default, float) else json.dumps(default))
    metadata = {
        "kind": kind,
        "meaning": meaning,
        "unit": unit,
        "shown": shown,
        "is_keyword_only": is_keyword_only,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    # What is a keyword only is any object, which may have no hash.
    return dataclasses.field(
        default=default, hash=False if is_keyword_only else None, metadata=metadata
    )


_POSITIVE = values.number("a number above 0")
_ZERO_TOO = values.number("a number, 0 or above", zero=True)
_COUNT = values.integer("a whole number, 1 or above")
# Half of what zlib and the C extension can count to: a limit and what is added to it fit.
_SIZE = values.integer("a whole number from 1 to 2**62", most=2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings of one middleware; made by `load_settings`.

    Times are seconds, sizes bytes. ``directory`` is absolute (and may not exist when it is the
    default one). ``Settings()`` holds the defaults, without a directory.
    """

    directory: Path | None = _row(  # noqa: RUF009  (what it returns is a dataclass field)
        None, values.PATH, "listener files", shown=json.dumps(DEFAULT_DIRECTORY)
    )
    request_timeout: float = _row(
        50.0, _POSITIVE, "the longest any one callback may run", unit="seconds"
    )
    idle_timeout: float = _row(
        300.0,
        _ZERO_TOO,
        "no message either way for that long closes with 1001; the clock stands still while a "
        "callback runs or data of ours waits; 0 is never; a listener's own wins",
        unit="seconds",
    )
    ping_interval: float = _row(
        20.0, _ZERO_TOO, "time between keepalive pings; 0 is no pings", unit="seconds"
    )
    ping_timeout: float = _row(
        20.0, _POSITIVE, "no byte for that long after a ping closes with 1011", unit="seconds"
    )
    grace_period: float = _row(
        5.0,
        _ZERO_TOO,
        "what still runs of on_first_open and on_open_async when nobody is left, is then stopped",
        unit="seconds",
    )
    handshake_timeout: float = _row(
        10.0,
        _POSITIVE,
        "from the accept, or the first byte of a later request, to the end of its head",
        unit="seconds",
    )
    keep_alive: float = _row(
        5.0,
        _ZERO_TOO,
        "how long a connection may wait for its next request, 0 is none; gunicorn has its own",
        unit="seconds",
    )
    max_head_size: int = _row(
        2**16,
        _SIZE,
        "a longer head of a request, its request line and header lines, is answered with 431",
        unit="bytes",
    )
    max_message_size: int = _row(
        2**20,
        _SIZE,
        "a larger message, also after decompression, closes with 1009",
        unit="bytes",
    )
    max_connections: int = _row(
        _default_max_connections,
        _COUNT,
        "further handshakes get 503",
        shown="nine tenths of the file limit",
    )
    max_message_rate: float | None = _row(
        None,
        values.number("a number above 0, or none", none=True),
        "messages a second from one client, with a burst of as many; past it reading pauses",
        shown="none",
    )
    send_queue_size: int = _row(
        2**20, _SIZE, "what may wait for one client: the high-water mark", unit="bytes"
    )
    send_timeout: float = _row(
        5.0,
        _POSITIVE,
        "the longest send() waits for room, and a response for a peer that takes nothing of it",
        unit="seconds",
    )
    slow_consumer: Literal["close", "drop"] = _row(
        "close",
        values.choice("close", "drop"),
        "past the mark, a broadcast or send(wait=False) closes that client with 1013, "
        "or drops that message for it",
    )
    allowed_origins: str | tuple[str, ...] = _row(
        "same-origin", values.ORIGINS, "pages of which sites may connect"
    )
    subprotocols: tuple[str, ...] = _row(
        (), values.SUBPROTOCOLS, "in order of preference; a listener's own win", shown="none"
    )
    compression: bool = _row(True, values.BOOLEAN, "offer permessage-deflate (RFC 7692)")
    broadcast_scope: Literal["channel", "server"] = _row(
        "channel", values.choice("channel", "server"), "whom wsclient.broadcast() reaches"
    )
    close_timeout: float = _row(
        5.0, _POSITIVE, "wait for the peer's close frame, then the socket goes", unit="seconds"
    )
    debug: bool = _row(False, values.BOOLEAN, "send an unhandled exception's type and message")
    trusted_hosts: tuple[str, ...] = _row(
        (),
        values.HOSTS,
        "a handshake whose Host is none of them gets 400",
        shown="Flask's own, else any",
    )
    json: Any = _row(  # noqa: RUF009  (what it returns is a dataclass field)
        None,
        values.JSON,
        "makes text of what is sent that is neither text nor bytes, and reads messages for a "
        'listener with decode = "json"',
        shown="its own",
        is_keyword_only=True,
    )

    #: The file that was read or made; `None` when there is none.
    config_file: Path | None = None
    #: Keyword to where its value came from, for those that are not defaults. Not to be changed.
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The settings by keyword, ready for JSON: paths as text, tuples as lists."""
        result: dict[str, Any] = {}
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if setting.is_keyword_only and value is not None:
                value = getattr(value, "__name__", type(value).__name__)
            value = str(value) if isinstance(value, Path) else value
            result[setting.name] = list(value) if isinstance(value, tuple) else value
        return result


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table, as the documentation and the messages need it."""

    #: The keyword.
    name: str
    kind: values.Kind
    meaning: str
    unit: str
    #: The default, as help shows it.
    shown: str
    #: It is set in code: there is neither a key of the file nor a variable for it.
    is_keyword_only: bool = False

    @property
    def key(self) -> str:
        """The key in ``websocket.json``: the keyword in camelCase."""
        return re.sub(r"_([a-z])", lambda match: match[1].upper(), self.name)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()

    @property
    def valid(self) -> str:
        """What is valid, in words, with the unit."""
        return f"{self.kind.valid} ({self.unit})" if self.unit else self.kind.valid

    def check(self, value: object, place: str) -> Any:
        """The canonical form of a keyword's or the file's value; `ConfigError` says `place`."""
        with self._naming(place, value):
            return self.kind.check(value)

    def check_text(self, text: str, place: str) -> Any:
        """The canonical form of a variable's value; `ConfigError` says `place`."""
        with self._naming(place, text):
            return self.kind.check(self.kind.read(text.strip()))

    @contextlib.contextmanager
    def _naming(self, place: str, value: object) -> Iterator[None]:
        try:
            yield
        except ValueError as exc:
            why = f" ({exc})" if str(exc) else ""
            raise ConfigError(f"{place} is {shorten(value)}{why}; valid is {self.valid}") from exc


#: Every setting, in the order of the documentation.
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(row.name, **row.metadata) for row in dataclasses.fields(Settings) if row.metadata
)


def validate(name: str, value: object, source: str) -> Any:
    """The canonical form of a value for the setting `name`, wherever it stands.

    For those that a listener class has of its own; `source` says where that is.
    Raises `ConfigError`, and `KeyError` for a name that is no setting.
    """
    setting = next((row for row in SETTINGS if row.name == name), None)
    if setting is None:
        raise KeyError(name)
    return setting.check(value, f"{source}: {name}")


def markdown_table() -> str:
    """The table for the documentation, in Markdown."""
    lines = [
        "| keyword | in `websocket.json` | default | valid | meaning |",
        "|---|---|---|---|---|",
    ]
    for row in SETTINGS:
        # Its signs as they are: a "*" would begin something slanted, a "|" the next cell.
        words = [
            re.sub(r"[*_`|~<]", r"\\\g<0>", text) for text in (row.shown, row.valid, row.meaning)
        ]
        key = "keyword only" if row.is_keyword_only else f"`{row.key}`"
        lines.append("| " + " | ".join([f"`{row.name}`", key, *words]) + " |")
    return "\n".join(lines) + "\n"


def help_text() -> str:
    """The table for ``--help``: two lines a setting, by its variable."""
    lines = []
    for row in SETTINGS:
        if row.is_keyword_only:
            continue
        lines.append(f"{row.variable} (default {row.shown})")
        lines.append(f"    {row.meaning}. Valid: {row.valid}.")
    return "\n".join(lines) + "\n"


def shorten(value: object) -> str:
    """A value for an error message: its `repr`, but of bounded length."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
