"""WebSocket URLs (RFC 6455 section 3): text in, the parts that a client needs out."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote

__all__ = ["Target", "parse_url"]

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)\Z", re.DOTALL
)
_PORT = re.compile(r"[0-9]{1,5}\Z")
# RFC 3986 section 3.2.2, with the underscore that real host names have; the length of a label is
# that of RFC 1035 section 2.3.4, past which resolvers raise what they like.
_LABEL = r"[A-Za-z0-9_~!$&'()*+,;=-]{1,63}"
# Section 2.3.4 there: 255 bytes in all, which is a name of 253, and its dot.
_MAX_HOST_SIZE = 254
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z")
# Kept as they are: what RFC 3986 allows in a path and a query, and "%" of what is encoded already.
_SAFE = "!$&'()*+,;=:@/?-._~%[]|"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL points to."""

    #: True for ``wss``.
    is_secure: bool
    #: For the DNS, for TLS, or an address: an IPv6 one without brackets.
    host: str
    port: int
    #: The value of the ``Host`` header.
    authority: str
    #: Path and query: what the request line asks for.
    resource: str

    def __str__(self) -> str:
        return f"ws{'s' if self.is_secure else ''}://{self.authority}{self.resource}"


def parse_url(url: str) -> Target:
    """Take a ``ws:`` or ``wss:`` URL apart.

    Raises `ValueError`, without the query, for another scheme, a fragment, a user, a missing host,
    a port that is none, and for spaces and control characters. Other characters outside ASCII are
    encoded: IDNA in the host, UTF-8 and percent signs in the rest.
    """
    shown = url.partition("?")[0]
    match = _URL.match(url)
    if match is None:
        raise ValueError(f"{shown!r} is no URL; valid is ws://host[:port]/path or wss://…")
    scheme = match["scheme"].lower()
    if scheme not in ("ws", "wss"):
        raise ValueError(f"{shown!r}: the scheme is {scheme!r}; valid is ws or wss")
    if any(character <= " " or "\x7f" <= character <= "\xa0" for character in url):
        raise ValueError(f"{shown!r}: a space or control character must be percent-encoded")
    if "#" in url:
        # Section 3: fragments are meaningless, and "#" itself must be written as %23.
        raise ValueError(f"{shown.partition('#')[0]!r}: a fragment (#…) is not allowed")
    default = 443 if scheme == "wss" else 80
    host, port = _split_authority(match["authority"], default, shown)
    name = host.partition("%")[0]  # the zone of a link-local address is nobody else's business
    authority = f"[{name}]" if ":" in name else name
    if port != default:
        authority += f":{port}"
    rest = match["rest"]
    resource = quote(rest if rest.startswith("/") else f"/{rest}", safe=_SAFE)
    return Target(scheme == "wss", host, port, authority, resource)


def _split_authority(authority: str, default: int, shown: str) -> tuple[str, int]:
    if "@" in authority:
        place = shown.replace(authority.rpartition("@")[0] + "@", "")
        raise ValueError(
            f"{place!r}: a user in the URL is not allowed; send an Authorization header"
        )
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        _check_ipv6(host if bracket else "", shown)
        host = host.replace("%25", "%", 1)
    else:
        host, colon, port = authority.partition(":")
        host, tail = _encode_host(host, shown), colon + port
    if tail in ("", ":"):
        return host, default
    if not tail.startswith(":") or not _PORT.match(tail[1:]) or not 0 < int(tail[1:]) < 65536:
        raise ValueError(f"{shown!r}: the port is {tail.lstrip(':')!r}; valid is 1 to 65535")
    return host, int(tail[1:])


def _check_ipv6(host: str, shown: str) -> None:
    try:
        ipaddress.IPv6Address(host.replace("%25", "%", 1))
    except ValueError:
        raise ValueError(f"{shown!r}: no IPv6 address stands in the brackets") from None


def _encode_host(host: str, shown: str) -> str:
    if len(host) > _MAX_HOST_SIZE:  # before it is encoded, which takes long
        raise ValueError(f"the host {host[:40]!r}… has more than {_MAX_HOST_SIZE} characters")
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise ValueError(f"{shown!r}: the host is no name that the DNS can hold ({exc})") from exc
    if not _HOST.match(name):
        raise ValueError(
            f"{shown!r}: the host is {host!r}; valid is a name of labels of 1 to 63 characters"
        )
    return name.lower()
