"""The options of `create_websocket_client`: one frozen table, checked when it is made.

What a server has as a setting of the same name is checked by that setting's own rule.
"""

from __future__ import annotations

import dataclasses
import difflib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsmiddleware import values
from wsmiddleware.exceptions import ConfigError
from wsmiddleware.protocol.opening import header_lines
from wsmiddleware.settings import Settings, shorten, validate

__all__ = ["ClientOptions", "read_options"]

_SECONDS = values.number("a number above 0 (seconds)")
_ATTEMPTS = values.integer("a whole number, 1 or above, or None")

#: Options that are no settings of a server.
_KINDS: dict[str, values.Kind] = {
    "connect_timeout": _SECONDS,
    "reconnect": values.BOOLEAN,
    "reconnect_delay": _SECONDS,
    "max_reconnect_delay": _SECONDS,
}
_SETTINGS = (
    "close_timeout",
    "compression",
    "max_message_size",
    "ping_interval",
    "ping_timeout",
    "send_queue_size",
    "send_timeout",
    "subprotocols",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What a client is made with. Times are seconds, sizes bytes.

    Raises `ConfigError` for a wrong value, and `ValueError` for headers or cookies that would not
    stay within their line.
    """

    #: Sent with the opening handshake: a mapping, or pairs of name and value.
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    #: Sent as one ``Cookie`` header.
    cookies: Mapping[str, str] = field(default_factory=dict)
    #: Offered, in order of preference.
    subprotocols: tuple[str, ...] = ()
    #: For DNS, TCP, TLS and the opening handshake together.
    connect_timeout: float = 5.0
    #: For ``wss:``; by default certificates and host names are checked.
    ssl_context: ssl.SSLContext | None = None
    #: A larger message, also after decompression, closes with 1009.
    max_message_size: int = 2**20
    #: Offer permessage-deflate (RFC 7692).
    compression: bool = True
    #: Time between keepalive pings; 0 is no pings.
    ping_interval: float = 20.0
    #: No byte for that long after a ping closes with 1011.
    ping_timeout: float = 20.0
    #: Bytes that may be queued before a send blocks.
    send_queue_size: int = 2**20
    #: The longest that a send blocks.
    send_timeout: float = 60.0
    #: How long to wait for the peer's close frame before TCP is dropped.
    close_timeout: float = 5.0
    #: Connect again whenever the connection ends otherwise than by `disconnect`.
    reconnect: bool = False
    #: Failed attempts in a row until it gives up; None is never.
    reconnect_attempts: int | None = None
    #: The first delay; it doubles up to `max_reconnect_delay`.
    reconnect_delay: float = 0.5
    max_reconnect_delay: float = 30.0
    #: Bytes that may be queued while disconnected; 0 refuses every message.
    offline_queue_size: int = 2**20

    def __post_init__(self) -> None:
        for name in _SETTINGS:
            self._set(name, validate(name, getattr(self, name), _PLACE))
        for name, kind in _KINDS.items():
            self._set(name, _check(name, kind, getattr(self, name)))
        if self.reconnect_attempts is not None:
            _check("reconnect_attempts", _ATTEMPTS, self.reconnect_attempts)
        if self.offline_queue_size != 0:
            _check("offline_queue_size", values.integer("0 or more bytes"), self.offline_queue_size)
        if not isinstance(self.ssl_context, (ssl.SSLContext, type(None))):
            raise _wrong("ssl_context", self.ssl_context, "an ssl.SSLContext or None")
        self._set("headers", header_lines(self.headers, self.cookies))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Headers and cookies, checked, as they are sent."""
        assert isinstance(self.headers, tuple)
        return self.headers

    @property
    def settings(self) -> Settings:
        """What a connection is made with."""
        return Settings(
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            send_queue_size=self.send_queue_size,
            send_timeout=self.send_timeout,
            close_timeout=self.close_timeout,
        )

    @property
    def timeouts(self) -> tuple[float, ...]:
        """The time-outs that the clock serves, in seconds; 0 is never."""
        return self.ping_interval, self.ping_timeout, self.close_timeout, self.send_timeout


_PLACE = "create_websocket_client()"


def read_options(options: Mapping[str, Any]) -> ClientOptions:
    """The options by keyword; `ConfigError` for one that is unknown."""
    names = [row.name for row in dataclasses.fields(ClientOptions)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            valid = ", ".join(names)
            raise ConfigError(f"{_PLACE}: option {name} is unknown{hint}; valid are {valid}")
    return ClientOptions(**options)


def _check(name: str, kind: values.Kind, value: object) -> object:
    try:
        return kind.check(value)
    except ValueError as exc:
        raise _wrong(name, value, kind.valid) from exc


def _wrong(name: str, value: object, valid: str) -> ConfigError:
    return ConfigError(f"{_PLACE}: {name} is {shorten(value)}; valid is {valid}")
