"""What a listener class says of its channel, checked: callbacks, `path`, settings of its own.

Who is connected is `wsmiddleware.listeners.channel`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.callbacks import SERVER, Fits, check, check_made_without_arguments
from wsmiddleware.listeners.source import file_of, place_of
from wsmiddleware.settings import Settings, validate

__all__ = ["Contract"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_words(value: object) -> bool:
    """A `str` that is not empty, or a sequence of such."""
    words = [value] if isinstance(value, str) else value
    return (
        isinstance(words, Sequence)
        and bool(words)
        and all(isinstance(word, str) and word for word in words)
    )


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/")


#: The settings that a class may have of its own, and which values may be meant for one.
_OWN: dict[str, Fits] = {
    "allowed_origins": _is_words,
    "compression": lambda value: isinstance(value, bool),
    "idle_timeout": _is_number,
    "max_message_rate": _is_number,
    "max_message_size": _is_number,
    "send_queue_size": _is_number,
    "subprotocols": _is_words,
}
_ATTRIBUTES: dict[str, Fits] = {
    **_OWN,
    "decode": lambda value: value == "json",
    "path": _is_path,
    "url": _is_path,
}

# A path as it stands in a URL, with werkzeug's parameters: "/", "/mqtt", "/ocpp/<id>".
_URL = re.compile(r"/|(?:/(?:<[^<>]+>|[^/\\<>?#%\s])+)+/?")


class Contract:
    """A listener class, read once. Raises `ListenerError` and `ConfigError`, which name the place.

    `settings` are what holds where the class says nothing.
    """

    __slots__ = (
        "binary_callback",
        "callbacks",
        "decode",
        "joins_handshake",
        "listener_class",
        "own",
        "path",
        "settings",
        "text_callback",
        "url",
    )

    def __init__(self, listener_class: type[WebSocketListener], settings: Settings) -> None:
        self.listener_class = cls = listener_class
        #: Those that the class has.
        self.callbacks = check(cls, SERVER, _ATTRIBUTES)
        check_made_without_arguments(cls)
        made_by = (type(cls).__call__, cls.__new__, cls.__init__)
        is_plain = made_by == (type.__call__, object.__new__, object.__init__)
        #: A handshake runs code of the user's: the hook, or to make the listener.
        self.joins_handshake = "on_handshake" in self.callbacks or not is_plain
        #: Who gets text and binary; ``""`` is nobody.
        self.text_callback = "on_message" if "on_message" in self.callbacks else ""
        self.binary_callback = self.text_callback
        if "on_binary_message" in self.callbacks:
            self.binary_callback = "on_binary_message"
        if not isinstance(cls.path, str) or (cls.path and not cls.path.startswith("/")):
            place = self.place_of("path")
            raise ListenerError(f'{place}: path is {cls.path!r}; valid is "" or "/room/<int:id>"')
        self.path = cls.path
        if cls.url and not (isinstance(cls.url, str) and _URL.fullmatch(cls.url)):
            place = self.place_of("url")
            raise ListenerError(f'{place}: url is {cls.url!r}; valid is "/mqtt" or "/ocpp/<id>"')
        self.url = cls.url
        if cls.decode not in (None, "json"):
            place = self.place_of("decode")
            raise ListenerError(f'{place}: decode is {cls.decode!r}; valid is "json" or None')
        self.decode = cls.decode
        own = {name: value for name in _OWN if (value := getattr(cls, name)) is not None}
        #: The names of the settings that the class has of its own.
        self.own = frozenset(own)
        #: What holds for the channel: those, and the middleware's.
        self.settings = settings
        if own:
            checked = {name: validate(name, own[name], self.place_of(name)) for name in own}
            self.settings = dataclasses.replace(settings, **checked)

    @property
    def where(self) -> str:
        """The file and the class, for whoever has to mend it."""
        return f"{file_of(self.listener_class)}, class {self.listener_class.__qualname__}"

    def place_of(self, name: str) -> str:
        """The file, the line and the class that give `name` its value."""
        mro = self.listener_class.__mro__
        return place_of(next(cls for cls in mro if name in vars(cls)), name)
