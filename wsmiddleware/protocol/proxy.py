"""The PROXY protocol: the line, or the binary header, in which a proxy says for whom it connects.

It stands before everything else on a connection. Version 1 is a line of text, version 2 begins
with twelve bytes that no protocol begins with; both are HAProxy's (``doc/proxy-protocol.txt``).
"""

from __future__ import annotations

import ipaddress
import re
import struct
from http import HTTPStatus
from typing import NamedTuple

from wsmiddleware.protocol.head import HeadError

__all__ = ["V1", "V2", "ProxiedFor", "is_beginning", "missing", "parse_proxy_header"]

#: What a header of either version begins with.
V1 = b"PROXY "
V2 = b"\r\n\r\n\0\r\nQUIT\n"

# Section 2.1: the longest line there can be, its end included.
_MAX_LINE = 107
_LINE = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9a-fA-F:.]{2,45}) ([0-9a-fA-F:.]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})\r\n"
)
_UNKNOWN = re.compile(rb"PROXY UNKNOWN[^\r\n]*\r\n")

# Section 2.2: signature, version and command, family and transport, what follows in bytes.
_HEADER = struct.Struct(">12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_FAMILIES = {0x11: ("TCP4", struct.Struct(">4s4sHH")), 0x21: ("TCP6", struct.Struct(">16s16sHH"))}


class ProxiedFor(NamedTuple):
    """Whom a proxy speaks for, and where it was asked: addresses as text."""

    protocol: str
    client: str
    client_port: int
    proxy: str
    proxy_port: int


def is_beginning(data: bytes, versions: tuple[bytes, ...]) -> bool:
    """True where `data`, of one byte or more, may be the beginning of one of `versions`."""
    return any(data.startswith(each[: len(data)]) for each in versions)


def missing(data: bytes) -> int:
    """How many more bytes to read of the header that `data` begins with; 0 when it is whole.

    Raises `HeadError` for a line that does not end.
    """
    if data.startswith(V2):
        if len(data) < _HEADER.size:
            return _HEADER.size - len(data)
        return int(_HEADER.unpack_from(data)[3]) + _HEADER.size - len(data)
    if data.endswith(b"\r\n") and data.startswith(V1):
        return 0
    if len(data) >= _MAX_LINE:
        raise _broken(data)
    return 1  # no more than that may be taken: a request stands behind it


def parse_proxy_header(data: bytes) -> ProxiedFor | None:
    """Whom a whole header speaks for; `None` for the proxy itself, or somebody it cannot name.

    Raises `HeadError` for what is no such header.
    """
    return _parse_binary(data) if data.startswith(V2) else _parse_line(data)


def _parse_line(data: bytes) -> ProxiedFor | None:
    match = _LINE.fullmatch(data)
    if match is None:
        if _UNKNOWN.fullmatch(data):
            return None
        raise _broken(data)
    protocol, client, proxy = (match[number].decode() for number in (1, 2, 3))
    ports = int(match[4]), int(match[5])
    version = 4 if protocol == "TCP4" else 6
    try:
        is_right = all(ipaddress.ip_address(each).version == version for each in (client, proxy))
    except ValueError:
        is_right = False
    if not is_right or max(ports) > 65535:
        raise _broken(data)
    return ProxiedFor(protocol, client, ports[0], proxy, ports[1])


def _parse_binary(data: bytes) -> ProxiedFor | None:
    _, command, family, _ = _HEADER.unpack_from(data)
    if command == _LOCAL:
        return None
    if command != _PROXY:
        raise _broken(data)
    if family not in _FAMILIES:
        return None  # a Unix socket, or another transport: it has no address to tell
    protocol, layout = _FAMILIES[family]
    if len(data) < _HEADER.size + layout.size:
        raise _broken(data)
    client, proxy, *ports = layout.unpack_from(data, _HEADER.size)
    return ProxiedFor(
        protocol,
        str(ipaddress.ip_address(client)),
        ports[0],
        str(ipaddress.ip_address(proxy)),
        ports[1],
    )


def _broken(data: bytes) -> HeadError:
    return HeadError(HTTPStatus.BAD_REQUEST, "this is no header of the PROXY protocol", data)
