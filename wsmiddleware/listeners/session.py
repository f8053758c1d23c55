"""What a user may know of a connection and of the request that opened it."""

from __future__ import annotations

import datetime
import io
import math
import secrets
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from werkzeug.wrappers import Request

from wsmiddleware.listeners.accept import seconds_of
from wsmiddleware.log import parameter_name
from wsmiddleware.protocol.frames import CloseCode, close_arguments

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers, ImmutableMultiDict

    from wsmiddleware.net.connection import Connection

__all__ = ["RequestRecord", "Session"]

#: Of no use once the request is over; sockets and streams that must not be kept alive among them.
_TRANSIENT = ("wsgi.", "wsmiddleware.", "werkzeug.", "gunicorn.", "gevent.")


class RequestRecord:
    """A WSGI environ, kept small: a connection may live for days.

    A dict of a browser's request is 2.5 KiB beside its strings. The names are shared by requests
    that have the same ones, and the values are a tuple.
    """

    __slots__ = ("_is_secure", "_names", "_values")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._names = names = _kept_names(tuple(environ))
        self._values = tuple(map(environ.__getitem__, names))
        self._is_secure = environ.get("wsgi.url_scheme") == "https"

    def get(self, name: str) -> Any:
        """One value of the environ, `None` where it has none."""
        try:
            return self._values[self._names.index(name)]
        except ValueError:
            return None

    def environ(self) -> dict[str, Any]:
        """The environ anew: the request as it came, with an empty body."""
        return {
            **dict(zip(self._names, self._values, strict=True)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self._is_secure else "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    @property
    def is_secure(self) -> bool:
        """True when the request came over TLS, as far as the environ tells."""
        return self._is_secure


# A cache: all names of an environ, to those that are kept of it. Saves 3 % of a connect. The names
# come from peers and outlive their connections, so their number and size are bounded.
_known_names: dict[tuple[str, ...], tuple[str, ...]] = {}
_MAX_KNOWN = 256
_MAX_KNOWN_NAMES = 64
_MAX_KNOWN_SIZE = 2048
#: Parameters of a query that an operator is shown.
_MAX_PARAMETERS = 100


def _kept_names(every: tuple[str, ...]) -> tuple[str, ...]:
    names = _known_names.get(every)
    if names is None:
        names = tuple(name for name in every if not name.startswith(_TRANSIENT))
        if len(every) <= _MAX_KNOWN_NAMES and sum(map(len, every)) <= _MAX_KNOWN_SIZE:
            if len(_known_names) >= _MAX_KNOWN:
                _known_names.clear()  # at once: other threads may be here too
            _known_names[every] = names
    return names


class Session:
    """One connection's session. Attributes and items are the same; the seed's getters exist too.

    Everything can be read from any greenlet and native thread, also after the connection has gone.
    """

    __slots__ = (
        "_connection",
        "_properties",
        "_record",
        "_route",
        "extensions",
        "id",
        "negotiated_subprotocol",
        "opened_at",
        "path_parameters",
        "user_principal",
    )

    def __init__(
        self,
        record: RequestRecord,
        *,
        path_parameters: Mapping[str, Any],
        route: str,
        subprotocol: str,
        extensions: str,
        user_principal: Any,
    ) -> None:
        #: Unique in the cluster and unguessable (128 random bits).
        self.id = secrets.token_urlsafe(16)
        #: When the connection opened, in seconds since the epoch.
        self.opened_at = time.time()
        #: What the class's `path` matched, by name.
        self.path_parameters = path_parameters
        #: The agreed subprotocol, ``""`` where there is none.
        self.negotiated_subprotocol = subprotocol
        #: The agreed extensions as the response header gave them, ``""`` where there are none.
        self.extensions = extensions
        #: What `on_handshake` returned, else ``REMOTE_USER``, else `None`. May be set.
        self.user_principal = user_principal
        self._record = record
        #: How the path is written where it has parameters, which may be tokens; else ``""``.
        self._route = route
        self._properties: dict[str, Any] | None = None
        self._connection: Connection | None = None

    def attach(self, connection: Connection) -> None:
        """The connection that this is the session of, once there is one."""
        self._connection = connection

    @property
    def request(self) -> Request:
        """The opening handshake as a werkzeug request, made anew at each call, without a body."""
        return Request(self._record.environ(), populate_request=False)

    def environ(self) -> dict[str, Any]:
        """The opening handshake as a WSGI environ, made anew at each call, without a body."""
        return self._record.environ()

    @property
    def request_uri(self) -> str:
        """The path, without the query."""
        return self._path("SCRIPT_NAME") + self._path("PATH_INFO")

    def _path(self, name: str) -> str:
        path: str = self._record.get(name) or ""
        return path.encode("latin-1").decode("utf-8", "replace")  # as WSGI has it

    @property
    def query_string(self) -> str:
        """What followed ``?`` in the URL, as it came."""
        return str(self._record.get("QUERY_STRING") or "")

    @property
    def request_parameter_map(self) -> dict[str, list[str]]:
        """The parameters of the query: name to values."""
        return dict(self.request.args.lists())

    @property
    def protocol_version(self) -> str:
        """The WebSocket version, always ``"13"``."""
        return "13"

    @property
    def max_idle_timeout(self) -> int:
        """Milliseconds without a message until the connection is closed; 0 is never. May be set."""
        return round(self._connection.keepalive.idle_timeout * 1000) if self._connection else 0

    @max_idle_timeout.setter
    def max_idle_timeout(self, milliseconds: float) -> None:
        if not 0 <= milliseconds < math.inf:
            raise ValueError(f"max_idle_timeout is milliseconds, 0 or above, not {milliseconds!r}")
        if self._connection is not None:
            self._connection.set_idle_timeout(milliseconds / 1000)

    @property
    def expires_at(self) -> float | None:
        """When the connection is closed with 4401, in Unix seconds; `None` is never. May be set.

        To Unix seconds, a `datetime` with a time zone, or `None`; else it is a `ValueError`.
        """
        ends = math.inf if self._connection is None else self._connection.expires_at
        return None if ends == math.inf else ends

    @expires_at.setter
    def expires_at(self, at: float | datetime.datetime | None) -> None:
        seconds = seconds_of(at)
        if self._connection is not None:
            self._connection.set_expiry(math.inf if seconds is None else seconds)

    @property
    def user_properties(self) -> dict[str, Any]:
        """A dict of the connection's own."""
        if self._properties is None:
            self._properties = {}
        return self._properties

    @property
    def is_secure(self) -> bool:
        """True over TLS (behind a proxy: as `ProxyFix` around the middleware says)."""
        return self._record.is_secure

    @property
    def remote_address(self) -> str:
        """The peer's address (behind a proxy: as `ProxyFix` around the middleware says)."""
        return str(self._record.get("REMOTE_ADDR") or "")

    @property
    def headers(self) -> Headers:
        """The request's headers."""
        return self.request.headers

    @property
    def cookies(self) -> ImmutableMultiDict[str, str]:
        """The request's cookies."""
        return self.request.cookies

    def is_open(self) -> bool:
        """True while the connection is open."""
        return self._connection is not None and self._connection.is_open

    def close(
        self, code: CloseCode | int | str = CloseCode.NORMAL_CLOSURE, reason: str = ""
    ) -> None:
        """Close the connection; see ``wsclient.close``. Never waits."""
        number, reason = close_arguments(code, reason)
        if self._connection is not None:
            self._connection.close(number, reason)

    def to_dict(self) -> dict[str, Any]:
        """What may be shown to an operator: no header, cookie, query value, property or token.

        ``request_uri`` has the class's `path` as it is written, not with what it matched.
        """
        principal = self.user_principal
        return {
            "id": self.id,
            "request_uri": self._path("SCRIPT_NAME") + (self._route or self._path("PATH_INFO")),
            "query_parameters": self._parameter_names(),
            "negotiated_subprotocol": self.negotiated_subprotocol,
            "protocol_version": self.protocol_version,
            "extensions": self.extensions,
            "max_idle_timeout": self.max_idle_timeout,
            "expires_at": self.expires_at,
            "user_principal": principal if isinstance(principal, str) else None,
            "is_secure": self.is_secure,
            "remote_address": self.remote_address,
            "opened_at": self.opened_at,
            "is_open": self.is_open(),
        }

    def _parameter_names(self) -> list[str]:
        parts = self.query_string.split("&", _MAX_PARAMETERS)[:_MAX_PARAMETERS]
        names = map(parameter_name, parts)
        return sorted({unquote_plus(name) for name in names if name})

    def __getitem__(self, name: str) -> Any:
        if name == "is_open":
            return self.is_open()
        if name not in _GETTABLE:
            raise KeyError(name)
        return getattr(self, name)

    def __getattr__(self, name: str) -> Any:
        # The seed's getters (getId, getUserProperties …) in Python's spelling, for ported code.
        if name.startswith("get_") and name[4:] in _GETTABLE:
            return lambda: getattr(self, name[4:])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Session {self.id} {'open' if self.is_open() else 'closed'}>"


_GETTABLE = frozenset(name for name in vars(Session) if not name.startswith("_")) - {
    "attach",
    "close",
    "environ",
    "is_open",
    "to_dict",
}
