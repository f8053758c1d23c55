"""`Accept`: what `on_handshake` decides beside the user."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wsmiddleware.settings import shorten

__all__ = ["Accept", "seconds_of"]

# RFC 9110, sections 5.6.2 and 5.5: a name is a token, a value has no control characters.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t -~\xa0-\xff]*")

#: What makes a 101 one, says where it ends, or is for one hop: ours and the server's to say.
_OURS = frozenset(
    {
        *("connection", "upgrade", "keep-alive", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "content-length"),
    }
)


class Accept:
    """Returned by `on_handshake`: lets `user` in, and says how.

    `user` counts as it does returned alone: `False`, `None` and who is not authenticated refuse,
    `True` is ``REMOTE_USER``. `subprotocol` is the one to speak in place of the class's choice; it
    is spoken where the client has offered it (beside a token, say). `headers` go out with the 101:
    pairs of name and value, or a mapping; cookies among them, but nothing that is the handshake's
    own. `expires_at` is when the connection is closed with 4401, within a second: Unix seconds, or
    a `datetime` with a time zone; `None` is never.

    Raises `ValueError` for what cannot be sent or is no time.
    """

    __slots__ = ("expires_at", "headers", "subprotocol", "user")

    def __init__(
        self,
        user: Any,
        subprotocol: str | None = None,
        headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        expires_at: float | datetime.datetime | None = None,
    ) -> None:
        if subprotocol is not None and not _is_token(subprotocol):
            raise ValueError(f"subprotocol is {shorten(subprotocol)}; valid is one as 'chat.v1'")
        self.user = user
        self.subprotocol = subprotocol
        self.headers = _checked(headers)
        #: Unix seconds.
        self.expires_at = seconds_of(expires_at)

    def with_user(self, user: Any) -> Accept:
        """The same for `user`. Not this one changed: an application may keep it for others."""
        return Accept(user, self.subprotocol, self.headers, self.expires_at)

    def __repr__(self) -> str:
        return f"<Accept {shorten(self.user)}>"


def seconds_of(at: object) -> float | None:
    """Unix seconds of what `Accept.expires_at` may be; `ValueError` for what is no time."""
    if at is None:
        return None
    if isinstance(at, datetime.datetime):
        if at.utcoffset() is not None:
            return at.timestamp()
    elif isinstance(at, (int, float)) and not isinstance(at, bool) and abs(at) < math.inf:
        with contextlib.suppress(OverflowError):
            return float(at)
    raise ValueError(
        f"expires_at is {shorten(at)}; valid is Unix seconds, a datetime with a time zone, or None"
    )


def _checked(headers: Any) -> tuple[tuple[str, str], ...]:
    # Not a dict of werkzeug's headers: of several cookies it would keep one.
    pairs = headers.items() if hasattr(headers, "items") else headers
    return tuple(_checked_one(pair) for pair in pairs)


def _is_token(text: object) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _checked_one(pair: Any) -> tuple[str, str]:
    try:
        name, value = pair
        is_header = _is_token(name) and _VALUE.fullmatch(value) is not None
    except (TypeError, ValueError):
        is_header = False
    if not is_header or isinstance(pair, str):
        raise ValueError(f"{shorten(pair)} is no header; valid is a name and a value, both str")
    if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"the header {name} is the handshake's own; for the subprotocol there is "
                         "Accept(subprotocol=…)")  # fmt: skip
    return name, value
