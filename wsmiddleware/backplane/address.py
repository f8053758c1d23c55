"""Where a Redis is: its URL, read. Nothing that it says of a wrong one holds a password.

::

    redis://[user:password@]host[:6379][/db]
    unix://[user:password@]/path/to/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379][,host…][/db]/name

rediss is redis over TLS; valkey and valkeys are the same two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from wsmiddleware.exceptions import ConfigError

__all__ = ["SCHEMES", "Address"]

#: What a URL may begin with.
SCHEMES = (
    *("redis", "rediss", "valkey", "valkeys", "unix"),
    *("redis+sentinel", "rediss+sentinel", "valkey+sentinel", "valkeys+sentinel"),
)
_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINELS = {"sentinel_username", "sentinel_password"}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_NO_CLUSTER = "Redis Cluster is not supported yet: one Redis, or Sentinel by redis+sentinel://"


@dataclass(frozen=True)
class Address:
    """One Redis; `hosts` are those of Sentinels where `master` names what they watch."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    master: str = ""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_tls(self) -> bool:
        """Over TLS."""
        return self.scheme.split("+")[0] in ("rediss", "valkeys")

    def __str__(self) -> str:
        """For the log, without what is secret."""
        if self.path:
            return f"unix://{self.path}?db={self.database}"
        hosts = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)
        return f"{self.scheme}://{hosts}/{self.database}" + (self.master and f"/{self.master}")

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL. Raises `ConfigError`, which says what is wrong and shows nothing of it."""
        scheme, has_scheme, rest = url.partition("://")
        if "cluster" in scheme:
            raise ConfigError(f"the backplane's URL: {_NO_CLUSTER}")
        if not has_scheme or scheme not in SCHEMES:
            raise _wrong(f"it begins with one of {', '.join(f'{name}://' for name in SCHEMES)}")
        rest, _, query = rest.partition("?")
        before, _, path = rest.partition("/")
        # A password's own "/", "?" or "@" would move the borders, and show it as something else.
        if "@" in path or "@" in query or "#" in rest or before.count("@") > 1:
            raise _wrong("in user and password, write @ as %40, / as %2F, ? as %3F, # as %23")
        user, _, places = before.rpartition("@")
        options = _options(query, scheme)
        username, colon, password = user.partition(":")
        credentials = (unquote(username) or None, unquote(password) if colon else None)
        if scheme == "unix":
            if places or not path:
                raise _wrong("a socket's has three slashes: unix:///path/to/socket")
            database = _database(options.pop("db", "0"))
            return cls(scheme, (), "/" + unquote(path), database, *credentials)
        hosts = _hosts(places, scheme)
        parts = [unquote(part) for part in path.split("/") if part]
        master = _master(parts) if scheme.endswith("+sentinel") else ""
        if len(parts) > 1:
            raise _wrong("behind the host comes the number of the database and nothing else")
        database = _database(options.pop("db", parts[0] if parts else "0"))
        return cls(scheme, hosts, "", database, *credentials, master, options)


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"the backplane's URL is wrong (not shown, it may hold a password): {what}")


def _hosts(places: str, scheme: str) -> tuple[tuple[str, int], ...]:
    is_sentinel = scheme.endswith("+sentinel")
    listed = places.split(",")
    if len(listed) > 1 and not is_sentinel:
        raise _wrong(f"it names several hosts. {_NO_CLUSTER}")
    hosts = []
    for place in listed:
        match = _HOST.fullmatch(place or "localhost")
        port = int(match[2] or (26379 if is_sentinel else 6379)) if match else 0
        if match is None or not 0 < port < 65536:
            raise _wrong("a host is a name or an address ([::1]), and its port 1 to 65535")
        hosts.append((match[1].strip("[]"), port))
    return tuple(hosts)


def _master(parts: list[str]) -> str:
    """Take the name out of the path's parts."""
    if not parts:
        raise _wrong("it ends with the name that the Sentinels know: redis+sentinel://host/0/name")
    return parts.pop()


def _database(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise _wrong("the database is a number, such as redis://host/0")
    return int(text)


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"db"}
    if scheme.startswith(("rediss", "valkeys")):
        known |= _TLS
    if scheme.endswith("+sentinel"):
        known |= _SENTINELS
    if set(options) - known:
        raise _wrong(f"behind the ? may stand for {scheme}:// {', '.join(sorted(known))}")
    return options
