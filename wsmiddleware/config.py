"""Where the values of the settings come from; the table itself is `wsmiddleware.settings`.

Keyword arguments beat environment variables (``WSMIDDLEWARE_`` and the keyword in upper case; an
empty one counts as not set) beat ``websocket.json`` beat the defaults. Whatever is unknown or wrong
is a `ConfigError` that names the place, the key, what it held and what is valid.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wsmiddleware.exceptions import ConfigError, raise_all
from wsmiddleware.log import VARIABLE as LOG_VARIABLE
from wsmiddleware.log import logger
from wsmiddleware.settings import (
    DEFAULT_DIRECTORY,
    PREFIX,
    SETTINGS,
    Setting,
    Settings,
    help_text,
    markdown_table,
    shorten,
    validate,
)
from wsmiddleware.speedups import VARIABLE as SPEEDUPS_VARIABLE

__all__ = [
    "CONFIG_VARIABLE",
    "SETTINGS",
    "Setting",
    "Settings",
    "help_text",
    "load_settings",
    "markdown_table",
    "validate",
]

#: The variable that names the file.
CONFIG_VARIABLE = "WSMIDDLEWARE_CONFIG"

_FILE_NAME = "websocket.json"
# What the seed's documentation shows, in its order.
_SEED_DEFAULTS = {"directory": DEFAULT_DIRECTORY, "requestTimeout": 50, "idleTimeout": 300}

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_IN_TEXT = [setting for setting in SETTINGS if not setting.is_keyword_only]
_BY_KEY = {setting.key: setting for setting in _IN_TEXT}
_BY_VARIABLE = {setting.variable: setting for setting in _IN_TEXT}

# Ours, but no settings.
_OTHER_VARIABLES = (CONFIG_VARIABLE, LOG_VARIABLE, SPEEDUPS_VARIABLE)
# What Kubernetes puts into every container when a service is called "wsmiddleware".
_NOT_OURS = re.compile(PREFIX + r"(SERVICE_(HOST|PORT)|PORT)(_.*)?")


class _Found(NamedTuple):
    """A checked value, the words for where it stood, and where its relative paths start."""

    value: Any
    place: str
    start: Path
    is_in_file: bool = False


@contextlib.contextmanager
def _collected(errors: list[ConfigError]) -> Iterator[None]:
    """Take a `ConfigError` of the block up, so that a start shows all that is wrong at once."""
    try:
        yield
    except ConfigError as exc:
        errors.append(exc)


def load_settings(
    config: str | os.PathLike[str] | Literal[False] | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: str | os.PathLike[str] | None = None,
) -> Settings:
    """The settings from keywords (`overrides`), variables, the file and the defaults.

    The file is ``$WSMIDDLEWARE_CONFIG``, else `config`, else ``websocket.json`` in `cwd` (the
    current directory), and is made where it does not exist; a place that cannot be written to is a
    logged warning. ``config=False`` means no file, whatever the variable says. ``listeners`` in
    `overrides` is another word for ``directory``; its `None` counts as not given. A missing
    listener directory is a warning when it is the default one. Reads and may write files. Raises
    one `ConfigError` that shows all that is wrong.
    """
    base = Path(os.path.abspath(cwd or Path.cwd()))
    path = _config_path(config, environ, base)
    errors: list[ConfigError] = []
    found = {
        **(_from_file(path, errors) if path else {}),
        **_from_environ(environ, base, errors),
        **_from_keywords(dict(overrides or {}), base, errors),
    }
    directory, is_default, place = _directory(found.get("directory"), path.parent if path else base)
    try:
        raise_all(errors, "settings are wrong")
        _check_directory(directory, place, is_default=is_default)
    except ConfigError as exc:
        exc.places = (directory,) if path is None else (directory, path)
        raise
    checked = {name: item.value for name, item in found.items()}
    checked["directory"] = directory
    return Settings(
        config_file=path if path and os.path.exists(path) else None,
        sources={name: item.place for name, item in found.items()},
        **checked,
    )


def _config_path(config: object, environ: Mapping[str, str], base: Path) -> Path | None:
    if config is False:
        return None
    named: object = environ.get(CONFIG_VARIABLE) or config
    if named is None:
        return base / _FILE_NAME
    if not isinstance(named, (str, os.PathLike)):
        raise ConfigError(f"config is {shorten(named)}; valid is the path of a file, or False")
    path = Path(os.path.abspath(base / named))
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{path}: can be neither read nor made: there is no folder {path.parent}")
    return path


def _from_keywords(
    keywords: dict[str, object], base: Path, errors: list[ConfigError]
) -> dict[str, _Found]:
    listeners = keywords.pop("listeners", None)
    with _collected(errors):
        if listeners is not None and "directory" in keywords:
            directory = shorten(keywords["directory"])
            raise ConfigError(
                f"listeners ({shorten(listeners)}) and directory ({directory}) "
                "are two words for one setting: give one of them"
            )
    found = {}
    for name, value in keywords.items():
        with _collected(errors):
            if name not in _BY_NAME:
                raise _unknown("keyword argument", name, _BY_NAME)
            place = f"keyword argument {name}"
            found[name] = _Found(_BY_NAME[name].check(value, place), place, base)
    if listeners is not None:
        with _collected(errors):
            place = "keyword argument listeners"
            path = _BY_NAME["directory"].check(listeners, place)
            found["directory"] = _Found(path, place, base)
    return found


def _from_environ(
    environ: Mapping[str, str], base: Path, errors: list[ConfigError]
) -> dict[str, _Found]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if _NOT_OURS.fullmatch(variable) or not text:
            continue
        with _collected(errors):
            if variable not in _BY_VARIABLE:
                valid = [*_BY_VARIABLE, *_OTHER_VARIABLES]
                raise _unknown("environment variable", variable, valid)
            setting, place = _BY_VARIABLE[variable], f"environment variable {variable}"
            found[setting.name] = _Found(setting.check_text(text, place), place, base)
    return found


def _from_file(path: Path, errors: list[ConfigError]) -> dict[str, _Found]:
    data: dict[str, object] = {}
    try:
        with _collected(errors):
            data = _read_file(path)
    except FileNotFoundError:
        _make_file(path)
    found = {}
    for key, value in data.items():
        with _collected(errors):
            if key not in _BY_KEY:
                raise _unknown(f"{path}: key", f'"{key}"', [f'"{name}"' for name in _BY_KEY])
            setting, place = _BY_KEY[key], f'{path}: "{key}"'
            checked = setting.check(value, place)
            found[setting.name] = _Found(checked, place, path.parent, is_in_file=True)
    return found


def _unknown(what: str, name: str, valid: Iterable[str]) -> ConfigError:
    # The value is not shown: what it is for is unknown, so it may be a password.
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ConfigError(f"{what} {name} is unknown{hint}; valid are {', '.join(names)}")


def _read_file(path: Path) -> dict[str, object]:
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        data = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_object)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise ConfigError(f"{path}, {where}: not valid JSON: {exc.msg}") from exc
    except (ValueError, RecursionError) as exc:  # not UTF-8, a key twice, or nested too deeply
        raise ConfigError(f"{path}: not valid JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {shorten(data)}; valid is a JSON object: {{…}}")
    return data


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f'the key "{twice}" stands there twice')
    return data


def _make_file(path: Path) -> None:
    # Several workers may start at once: each writes a file of its own, and the rename is atomic,
    # so that nobody reads half of one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps(_SEED_DEFAULTS, indent=2) + "\n")
        temporary.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            temporary.unlink()
        logger.warning("%s: cannot be made (%s), going on with the defaults", path, exc.strerror)


def _directory(found: _Found | None, folder: Path) -> tuple[Path, bool, str]:
    """The listener directory, whether that is the default one, and the words for where it stood."""
    default = folder / "websockets"
    if found is None:
        return default, True, "the default"
    text = re.sub(r"\{([a-z-]+)\}", lambda match: _folder(match, folder), found.value)
    path = Path(os.path.abspath(found.start / text))
    # The file that we made ourselves spells the default out; it is the default all the same.
    return path, found.is_in_file and path == default, found.place


def _folder(match: re.Match[str], config: Path) -> str:
    """What a word in braces stands for; itself where nothing does."""
    if match[1] in ("config-dir", "lucee-config"):
        return str(config)
    if match[1] == "temp-directory":
        return tempfile.gettempdir()
    return os.path.expanduser("~") if match[1] == "home-directory" else match[0]


def _check_directory(path: Path, place: str, *, is_default: bool) -> None:
    if os.path.isdir(path):
        return
    if os.path.exists(path) or not is_default:
        what = "is not a directory" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"{place}: the listener directory {path} {what}")
    logger.warning("the listener directory %s does not exist: no listener is loaded from it", path)
