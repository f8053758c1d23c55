"""What a proxy in front may say of a request, by gunicorn's settings of those names.

`Forwarding` is what the settings allow, for all connections of a server; `Forwarded` what it made
of the headers of one request.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from wsmiddleware.protocol.head import HeadError

__all__ = ["Forwarded", "Forwarding", "Trust", "mount"]


class Trust:
    """The peers that are trusted: addresses, networks, or ``*`` for everybody."""

    def __init__(self, allowed: Iterable[str]) -> None:
        names = {name.strip() for name in allowed}
        self._is_everybody = "*" in names
        self._networks = [ipaddress.ip_network(name, strict=False) for name in names - {"*", ""}]

    def __contains__(self, peer: object) -> bool:
        """True for a trusted peer's socket address; that of a Unix socket always is."""
        if self._is_everybody or not isinstance(peer, tuple):
            return True
        try:
            address = ipaddress.ip_address(peer[0])
        except ValueError:  # with a zone, of a link
            return False
        return any(address in network for network in self._networks)


class Forwarded(NamedTuple):
    """What a trusted proxy has said of one request."""

    #: ``https`` or ``http`` where a trusted proxy says so.
    scheme: str | None
    #: Where the application is mounted.
    script_name: str
    #: Headers whose names have an underscore, for the environ.
    headers: dict[str, str]


class Forwarding:
    """The settings ``forwarded_allow_ips``, ``secure_scheme_headers`` and those of underscores."""

    def __init__(self, config: Any) -> None:
        self._trust = Trust(config.forwarded_allow_ips)
        self._schemes: dict[str, str] = config.secure_scheme_headers
        self._forwarder = frozenset(config.forwarder_headers)
        self._map: str = config.header_map
        #: Given to the process, by ``--env SCRIPT_NAME=/path``.
        self._script_name = os.environ.get("SCRIPT_NAME", "")

    def trusts(self, peer: object) -> bool:
        """True where what `peer` says of others counts."""
        return peer in self._trust

    def read(self, items: Iterable[tuple[str, str]], *, is_trusted: bool) -> Forwarded:
        """What the headers of a request say. Raises `HeadError` where that is not allowed."""
        scheme, script_name = None, self._script_name
        headers: dict[str, str] = {}
        for name, value in items:
            name = name.upper()
            if is_trusted and name in self._schemes:
                found = "https" if value == self._schemes[name] else "http"
                if scheme not in (None, found):
                    raise HeadError(HTTPStatus.BAD_REQUEST, "headers that contradict on the scheme")
                scheme = found
            if "_" in name and self._takes(name, is_trusted=is_trusted):
                key = f"HTTP_{name.replace('-', '_')}"
                headers[key] = f"{headers[key]},{value}" if key in headers else value
                if name == "SCRIPT_NAME":
                    script_name = value
        return Forwarded(scheme, script_name, headers)

    def _takes(self, name: str, *, is_trusted: bool) -> bool:
        """Whether a header counts that could be mistaken for one with a hyphen."""
        if is_trusted and (name in self._forwarder or "*" in self._forwarder):
            return True
        if self._map == "refuse":
            reason = "a header whose name has an underscore"
            raise HeadError(HTTPStatus.BAD_REQUEST, reason, name.encode("latin-1", "replace"))
        return self._map == "dangerous"


def mount(target: str, script_name: str) -> str:
    """``PATH_INFO`` below `script_name`, of a target. Raises `HeadError` outside of it."""
    path = target.partition("?")[0]
    if not path.startswith(script_name):
        found = f"{path} is not below {script_name}".encode("latin-1", "replace")
        reason = "the path does not begin with SCRIPT_NAME"
        raise HeadError(HTTPStatus.INTERNAL_SERVER_ERROR, reason, found)
    return unquote_to_bytes(path[len(script_name) :]).decode("latin-1")
