"""What of an opening handshake is right and what is agreed to: RFC 6455, section 4.2. Pure.

Each check answers with the HTTP response that a peer gets, and the reason that the log tells an
operator. Their order is that of `wsmiddleware.admission`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from wsmiddleware.protocol import deflate, handshake
from wsmiddleware.settings import shorten
from wsmiddleware.values import normalise_origin

if TYPE_CHECKING:
    from wsmiddleware.listeners.channel import Channel
    from wsmiddleware.settings import Settings

__all__ = [
    "Acceptance",
    "Refusal",
    "agree",
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


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the 101 agrees to."""

    headers: list[tuple[str, str]]
    subprotocol: str = ""
    extensions: str = ""
    deflate: deflate.Deflate | None = None


def refuse(
    status: int,
    text: str,
    headers: Mapping[str, str] | None = None,
    *,
    reason: str = "",
    closes: bool = True,
) -> Refusal:
    """A refusal in plain text; `reason` is for the log where it may say more than the peer gets.

    `closes` ends the HTTP connection: what comes behind a refused handshake may be frames.
    """
    response = Response(text + "\n", status, mimetype="text/plain")
    response.headers.update(headers or {})
    if closes:
        response.headers["Connection"] = "close"
    return Refusal(response, text, reason or text)


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
        return refuse(426, "This is a WebSocket: connect with ws://.", {"Upgrade": "websocket"})
    problem = _find_problem(environ)
    if problem is not None:
        return refuse(400, problem)
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip(" \t") != "13":
        headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
        return refuse(426, "WebSocket version 13 is spoken here.", headers)
    return None


def _find_problem(environ: Mapping[str, Any]) -> str | None:
    protocol = environ.get("SERVER_PROTOCOL", "")
    if protocol in ("", "HTTP/0.9", "HTTP/1.0"):
        return "A WebSocket handshake needs HTTP/1.1."
    if environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        return "A WebSocket handshake has no body."
    host = environ.get("HTTP_HOST", "")
    if not _HOST.fullmatch(host):  # RFC 9112, section 3.2; servers join what is there twice
        return "A WebSocket handshake needs one Host header."
    if not handshake.is_valid_key(_key(environ)):
        return "Sec-WebSocket-Key must be 16 bytes in base64."
    return None


def _key(environ: Mapping[str, Any]) -> str:
    # What HTTP takes for white space, no more: str.strip() would let in what a proxy may not.
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    return key.strip(" \t")


def check_origin(environ: Mapping[str, Any], settings: Settings) -> Refusal | None:
    """Cross-site WebSocket hijacking ends here: RFC 6455, section 10.2."""
    origin = environ.get("HTTP_ORIGIN")
    allowed = settings.allowed_origins
    if origin is None or allowed == "*":
        return None  # no Origin is no browser, and has no ambient credentials to abuse
    host = environ.get("HTTP_HOST", "")
    if allowed == "same-origin":
        if _is_same_host(origin, host):
            return None
    elif any(_matches(origin, pattern) for pattern in allowed):
        return None
    return refuse(
        403,
        "This origin may not connect.",
        reason=f"foreign origin {shorten(origin)} for host {shorten(host)}; to let it in, add it "
        "to allowed_origins (WSMIDDLEWARE_ALLOWED_ORIGINS), or if a proxy changes the Host header, "
        "have it pass the original on and wrap the application in ProxyFix",
    )


# Pages of one site all ask the same: a fifth of what a handshake costs, measured together with
# `deflate.negotiate`. Bounded, for both come from the peer.
@functools.lru_cache(maxsize=256)
def _is_same_host(origin: str, host: str) -> bool:
    """Host and port are the same; the scheme is not compared, TLS may end at a proxy."""
    scheme = origin.partition("://")[0]
    try:
        return origin != "null" and normalise_origin(origin) == normalise_origin(
            f"{scheme}://{host}"
        )
    except ValueError:
        return False


def _matches(origin: str, pattern: str) -> bool:
    """An origin against one of `allowed_origins`, in which ``*`` stands for a whole label."""
    try:
        origin = normalise_origin(origin)
    except ValueError:
        return False
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
    environ: Mapping[str, Any], channel: Channel, settings: Settings, *, is_answered: bool
) -> Acceptance:
    """The 101 of an accepted handshake: RFC 6455, section 4.2.2.

    `is_answered` means that a 101 has gone out already, which agreed to nothing.
    """
    if is_answered:
        return Acceptance([])
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", handshake.accept_key(_key(environ))),
    ]
    offered = handshake.parse_tokens(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
    subprotocol = handshake.select_subprotocol(offered, channel.contract.subprotocols)
    if subprotocol:
        headers.append(("Sec-WebSocket-Protocol", subprotocol))
    agreed = None
    if settings.compression:
        agreed = deflate.negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
    if agreed is not None:
        headers.append(("Sec-WebSocket-Extensions", agreed[1]))
    return Acceptance(
        headers, subprotocol or "", agreed[1] if agreed else "", agreed[0] if agreed else None
    )
