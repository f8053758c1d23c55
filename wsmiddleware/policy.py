"""Checks an opening handshake and chooses what is agreed to: RFC 6455, section 4.2. No I/O.

Each check answers with the HTTP response that a peer gets, and the reason that the log tells an
operator. Their order is that of `wsmiddleware.admission`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import SecurityError
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_host

from wsmiddleware.protocol import deflate, handshake
from wsmiddleware.settings import shorten
from wsmiddleware.values import (
    MAX_HOST_SIZE,
    MAX_ORIGIN_SIZE,
    listing_of,
    normalise_origin,
)

if TYPE_CHECKING:
    from wsmiddleware.listeners.accept import Accept
    from wsmiddleware.listeners.channel import Channel
    from wsmiddleware.settings import Settings

__all__ = [
    "Acceptance",
    "Refusal",
    "agree",
    "check_host",
    "check_origin",
    "check_request",
    "decode_path",
    "refuse",
]


# A name or an address, and maybe a port: RFC 3986, section 3.2.
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s/?#@,:\[\]\\]+)(:[0-9]*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a handshake that is refused, and why, for the log."""

    response: Response
    text: str
    reason: str
    #: The reason says what an operator may change.
    is_advice: bool = False


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the 101 agrees to."""

    headers: list[tuple[str, str]]
    subprotocol: str = ""
    extensions: str = ""
    deflate: deflate.Deflate | None = None
    #: How many subprotocols were offered, where none of them is spoken.
    unspoken: int = 0


def refuse(
    status: int,
    text: str,
    headers: Mapping[str, str] | None = None,
    *,
    reason: str = "",
    closes: bool = True,
) -> Refusal:
    """A refusal in plain text; `reason` is for the operator where there is something to change.

    `closes` ends the HTTP connection: what comes behind a refused handshake may be frames.
    """
    response = Response(text + "\n", status, mimetype="text/plain")
    response.headers.update(headers or {})
    if closes:
        response.headers["Connection"] = "close"
    return Refusal(response, text, reason or text, is_advice=bool(reason))


def decode_path(environ: Mapping[str, Any]) -> str:
    """The path below the mount point as text: PEP 3333 gives its UTF-8 as latin-1."""
    path: str = environ.get("PATH_INFO", "")
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def check_request(environ: Mapping[str, Any]) -> Refusal | None:
    """RFC 6455, section 4.2.1: the request is a handshake of version 13, to the letter."""
    if environ["REQUEST_METHOD"] != "GET":
        return refuse(405, "A WebSocket handshake is a GET.", {"Allow": "GET"})
    if not (
        handshake.has_token(environ.get("HTTP_UPGRADE", ""), "websocket")
        and handshake.has_token(environ.get("HTTP_CONNECTION", ""), "upgrade")
    ):
        advice = _advise_proxy(environ)
        text = advice or "This is a WebSocket: connect with ws://."
        return refuse(426, text, {"Upgrade": "websocket"}, reason=advice)
    problem = _find_problem(environ)
    if problem is not None:
        return refuse(400, problem, reason=_advise_proxy(environ))
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip(" \t") != "13":
        headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
        return refuse(426, "WebSocket version 13 is spoken here.", headers)
    return None


_LISTS = ("HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_EXTENSIONS")
_TOO_LONG = (
    f"Sec-WebSocket-Protocol and Sec-WebSocket-Extensions have at most {handshake.MAX_LIST_SIZE} "
    f"bytes and {handshake.MAX_LIST_ITEMS} items."
)


def _advise_proxy(environ: Mapping[str, Any]) -> str:
    """What a proxy lacks that took of a handshake what is hop by hop; ``""`` where none did."""
    if "HTTP_SEC_WEBSOCKET_KEY" not in environ:
        return ""
    lines = []
    if _is_old(environ):
        lines.append("proxy_http_version 1.1;")
    if not environ.get("HTTP_UPGRADE"):
        lines.append("proxy_set_header Upgrade $http_upgrade;")
    if not handshake.has_token(environ.get("HTTP_CONNECTION", ""), "upgrade"):
        lines.append('proxy_set_header Connection "upgrade";')
    if not lines:
        return ""
    return (
        f"A proxy took from this WebSocket handshake what makes it one. Add {' '.join(lines)} "
        "to its configuration (the words are nginx's)."
    )


def _is_old(environ: Mapping[str, Any]) -> bool:
    return environ.get("SERVER_PROTOCOL", "") in ("", "HTTP/0.9", "HTTP/1.0")


def _find_problem(environ: Mapping[str, Any]) -> str | None:
    if _is_old(environ):
        return "A WebSocket handshake needs HTTP/1.1."
    if environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        return "A WebSocket handshake has no body."
    host = environ.get("HTTP_HOST", "")
    # RFC 9112, section 3.2; servers join what is there twice.
    if len(host) > MAX_HOST_SIZE or not _HOST.fullmatch(host):
        return "A WebSocket handshake needs one Host header."
    if not handshake.is_valid_key(_key(environ)):
        return "Sec-WebSocket-Key must be 16 bytes in base64."
    for name in _LISTS:
        if name in environ and not handshake.is_short_enough(environ[name]):
            return _TOO_LONG
    return None


def _key(environ: Mapping[str, Any]) -> str:
    # What HTTP takes for white space, no more: str.strip() would let in what a proxy may not.
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    return key.strip(" \t")


def check_host(environ: dict[str, Any], trusted: Collection[str] | None) -> Refusal | None:
    """Prevents DNS rebinding: a page whose own name leads to us is of the same origin.

    `trusted` is as werkzeug's ``Request.trusted_hosts``, and so is the answer.
    """
    if isinstance(trusted, str):
        trusted = (trusted,)
    if trusted is None or _is_trusted(environ, trusted):
        return None
    return refuse(
        400,
        "This host is not served here.",
        reason=f"untrusted host {shorten(environ.get('HTTP_HOST', ''))}; to serve it, add it to "
        "trusted_hosts (WSMIDDLEWARE_TRUSTED_HOSTS; without it Flask's TRUSTED_HOSTS count), or if "
        "a proxy changes the Host header, have it pass the original on and wrap the application in "
        "ProxyFix",
    )


def _is_trusted(environ: dict[str, Any], trusted: Collection[str]) -> bool:
    host = _HOST.fullmatch(environ.get("HTTP_HOST", ""))
    # What werkzeug takes for no host, whoever lists it.
    if host is not None and ("[" in host[1] or "_" in host[1]):
        return host[1] in trusted
    try:
        get_host(environ, trusted)
    except (SecurityError, UnicodeError):  # before 3.1.7 it encodes names
        return False
    return True


def check_origin(
    environ: Mapping[str, Any], settings: Settings, whose: str = "WSMIDDLEWARE_ALLOWED_ORIGINS"
) -> Refusal | None:
    """Prevents cross-site WebSocket hijacking: RFC 6455, section 10.2.

    `whose` tells the operator which ``allowed_origins`` it is.
    """
    origin = environ.get("HTTP_ORIGIN")
    allowed = settings.allowed_origins
    if origin is None or allowed == "*":
        return None  # no Origin is no browser, and has no ambient credentials to abuse
    host = environ.get("HTTP_HOST", "")
    if _is_let_in(origin, host, (allowed,) if isinstance(allowed, str) else allowed):
        return None
    return refuse(
        403, "This origin may not connect.", reason=_describe_foreign(origin, host, whose)
    )


def _describe_foreign(origin: str, host: str, whose: str) -> str:
    listing = listing_of(origin)
    if listing is None:
        told = (
            f"{shorten(origin)} for host {shorten(host)}; it is no scheme://host:port, so that "
            f"allowed_origins ({whose}) cannot list it: a program may leave it out"
        )
    else:
        told = (
            f"'{listing}' for host {shorten(host)}; to let it in, add it to allowed_origins "
            f"({whose})"
        )
    return (
        f"foreign origin {told}, or if a proxy changes the Host header, have it pass the original "
        "on and wrap the application in ProxyFix"
    )


def _is_let_in(origin: str, host: str, allowed: Collection[str]) -> bool:
    if len(origin) > MAX_ORIGIN_SIZE or len(host) > MAX_HOST_SIZE:
        return False
    if "same-origin" in allowed and _is_same_host(origin, host):
        return True
    listing = listing_of(origin)
    if listing is None:
        return False
    try:
        normal = normalise_origin(listing)
    except ValueError:
        return listing in allowed
    return any(_matches(normal, pattern) for pattern in allowed)


# Cached, as all pages of one site ask the same. With the cache of `deflate.negotiate` it saves 20 %
# of a handshake. Both keys come from the peer, so few and small ones are kept.
@functools.lru_cache(maxsize=256)
def _is_same_host(origin: str, host: str) -> bool:
    """Host and port are the same; the scheme is not compared, TLS may end at a proxy."""
    # To encode other names takes time that nobody is owed: an origin is ASCII (RFC 6454, 6.2).
    if origin == "null" or not (origin.isascii() and host.isascii()):
        return False
    scheme = origin.partition("://")[0]
    try:
        return normalise_origin(origin) == normalise_origin(f"{scheme}://{host}")
    except ValueError:
        return False


def _matches(origin: str, pattern: str) -> bool:
    """A normal origin against one of `allowed_origins`, in which ``*`` is a whole label."""
    if "*" not in pattern:
        return origin == pattern
    scheme, _, rest = origin.partition("://")
    pattern_scheme, _, pattern_rest = pattern.partition("://")
    labels, pattern_labels = rest.split("."), pattern_rest.split(".")
    return (
        scheme == pattern_scheme
        and len(labels) == len(pattern_labels)
        and all(_is_label(a, b) for a, b in zip(labels, pattern_labels, strict=True))
    )


def _is_label(label: str, pattern: str) -> bool:
    # The last label carries the port, if there is one: "*:8000" stands for any label with it.
    name, _, port = label.partition(":")
    pattern_name, _, pattern_port = pattern.partition(":")
    # There is no label behind the dot that may end a host.
    return port == pattern_port and (name == pattern_name or (pattern_name == "*" and name != ""))


def agree(
    environ: Mapping[str, Any],
    channel: Channel,
    accept: Accept | None = None,
    *,
    is_answered: bool,
) -> Acceptance:
    """The 101 of an accepted handshake: RFC 6455, section 4.2.2.

    `accept` is what the listener's hook says of it. `is_answered` means that a 101 has gone out
    already, which agreed to nothing.
    """
    if is_answered:
        return Acceptance([])
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", handshake.accept_key(_key(environ))),
    ]
    offered = handshake.parse_tokens(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
    spoken = channel.settings.subprotocols
    if accept is not None and accept.subprotocol is not None:
        spoken = (accept.subprotocol,)
    subprotocol = handshake.select_subprotocol(offered, spoken)
    if subprotocol:
        headers.append(("Sec-WebSocket-Protocol", subprotocol))
    agreed = None
    if channel.settings.compression:
        agreed = deflate.negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
    if agreed is not None:
        headers.append(("Sec-WebSocket-Extensions", agreed[1]))
    if accept is not None:
        headers += accept.headers
    return Acceptance(
        headers,
        subprotocol or "",
        agreed[1] if agreed else "",
        agreed[0] if agreed else None,
        unspoken=len(offered) if subprotocol is None else 0,
    )
