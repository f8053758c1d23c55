"""One connection to a Redis. The one file that imports redis-py.

redis-py opens it: names, TLS, the password. Then bytes are ours to send and hiredis's to parse: so
any byte counts as life, every wait has a limit, many commands travel as one, and a connection that
is lost is an error here and not a silent new one, in which whatever was published meanwhile has
been lost (redis-py's own pub/sub lost 58 of 5,000 messages over ten cuts).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

from .address import Address
from .trouble import LineLost, Refused, Remedy, Trouble, remedy_for

try:
    import hiredis
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as exc:
    raise ImportError(
        "a backplane on Redis needs redis-py: pip install 'wsmiddleware[redis]'"
    ) from exc

__all__ = ["Line", "open_line", "pack"]

_READ_SIZE = 65536
_OLDEST = (6, 2)


def pack(*words: bytes | str | int) -> bytes:
    """One command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # invariant tuples
    return packed


class Line:
    """One open connection. One caller at a time, but that `send` and `receive` may be two."""

    def __init__(self, connection: Any) -> None:
        # What redis-py would do with a lost connection is not wanted, so it is asked no more.
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._reader: Any = hiredis.Reader(replyError=Refused, notEnoughData=_Nothing)
        self._buffer = bytearray(_READ_SIZE)
        #: When it was last used, on the monotonic clock.
        self.used_at = time.monotonic()

    def call(self, commands: Sequence[bytes], timeout: float) -> list[object]:
        """Send commands as one and wait for all replies. Raises `LineLost`, then it is closed."""
        replies: list[object] = []
        deadline = time.monotonic() + timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(b"".join(commands))
            self._take(replies)
            while len(replies) < len(commands):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                self._fill()
                self._take(replies)
        except TimeoutError:
            self.close()
            raise LineLost(f"no answer within {timeout:g} s", replies) from None
        except (OSError, hiredis.ProtocolError) as exc:
            self.close()
            raise LineLost(_text(exc), replies) from exc
        except BaseException:
            # Whoever calls next would get the replies to this one.
            self.close()
            raise
        self.used_at = time.monotonic()
        return replies

    def send(self, commands: Sequence[bytes]) -> None:
        """Send, and leave the replies to `receive`. Raises `LineLost`."""
        try:
            self._socket.sendall(b"".join(commands))
        except OSError as exc:
            raise LineLost(_text(exc)) from exc

    def listen(self, timeout: float) -> None:
        """From now on `receive` and `send` wait so long at most."""
        self._socket.settimeout(timeout)

    def receive(self) -> tuple[list[object], bool]:
        """Whatever came, and whether any byte did; waits as `listen` said. Raises `LineLost`."""
        replies: list[object] = []
        try:
            self._fill()
            self._take(replies)
        except TimeoutError:
            return replies, False
        except (OSError, hiredis.ProtocolError) as exc:
            raise LineLost(_text(exc)) from exc
        return replies, True

    def is_stale(self) -> bool:
        """True when it was closed by the other side while nobody used it. Does not wait."""
        try:
            self._socket.settimeout(0)
            return self._socket.recv(1) is not None  # its end, or what nobody has asked for
        except (BlockingIOError, TimeoutError):
            return False
        except OSError as exc:
            return not _wants_more(exc)

    def close(self) -> None:
        """Close it; whoever reads it elsewhere is woken."""
        with contextlib.suppress(Exception):
            self._connection.disconnect()

    def forget(self) -> None:
        """Close this process's end only: after a fork the connection is the parent's."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _fill(self) -> None:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionResetError("closed by the other side")
        self._reader.feed(self._buffer, 0, count)

    def _take(self, replies: list[object]) -> None:
        gets = self._reader.gets
        while (reply := gets()) is not _Nothing:
            replies.append(reply)


class _Nothing:
    """What the parser gives where no whole reply is there."""


def _wants_more(exc: OSError) -> bool:
    return type(exc).__name__ == "SSLWantReadError"


def _text(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


# -- opening ---------------------------------------------------------------------------------------


def open_line(address: Address, timeout: float, name: str = "") -> Line:
    """Connect to the master. Every step may take `timeout` seconds. Raises `Trouble`."""
    hosts = [_ask_sentinels(address, timeout)] if address.master else list(address.hosts)
    host, port = hosts[0] if hosts else ("", 0)
    line = _connect(address, host, port, timeout)
    try:
        _examine(line, address, name, timeout)
    except LineLost as exc:
        raise Trouble(f"{address}: {exc}") from exc
    except BaseException:
        line.close()
        raise
    return line


def _connect(address: Address, host: str, port: int, timeout: float) -> Line:
    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
    }
    kind: type[Any] = redis.Connection
    if address.path:
        kind = redis.UnixDomainSocketConnection
        options["path"] = address.path
    else:
        options |= {"host": host, "port": port, "socket_keepalive": True}
        if address.is_tls:
            kind = redis.SSLConnection
            options |= _tls(address)
    return _opened(kind, options, timeout, str(address))


def _tls(address: Address) -> dict[str, Any]:
    options: dict[str, Any] = {
        key: value for key, value in address.options.items() if key.startswith("ssl_")
    }
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in (
            "1",
            "true",
            "yes",
        )
    elif options.get("ssl_cert_reqs") != "none":
        options["ssl_check_hostname"] = True
    return options


def _opened(kind: type[Any], options: dict[str, Any], timeout: float, where: str) -> Line:
    """A connection of redis-py, whose own retries and hand-over notices (RESP3) are off."""
    connection = kind(
        socket_timeout=timeout,
        **({} if "path" in options else {"socket_connect_timeout": timeout}),
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
        **options,
    )
    try:
        connection.connect()
    except redis.RedisError as exc:
        connection.disconnect()
        text = f"{type(exc).__name__} {exc}"
        is_loud = isinstance(exc, redis.AuthenticationError | redis.ResponseError) and (
            isinstance(exc, redis.AuthenticationError) or remedy_for(str(exc)) is not Remedy.WAIT
        )
        is_loud = is_loud and not isinstance(exc, redis.exceptions.BusyLoadingError)
        raise Trouble(f"{where}: {text}", is_loud=is_loud) from exc
    except BaseException:
        connection.disconnect()
        raise
    return Line(connection)


def _ask_sentinels(address: Address, timeout: float) -> tuple[str, int]:
    """Where the master is. The first Sentinel that knows it is believed."""
    reasons = []
    for host, port in address.hosts:
        options: dict[str, Any] = {
            "host": host,
            "port": port,
            "username": address.options.get("sentinel_username"),
            "password": address.options.get("sentinel_password"),
        }
        kind: type[Any] = redis.Connection
        if address.is_tls:
            kind = redis.SSLConnection
            options |= _tls(address)
        try:
            line = _opened(kind, options, timeout, f"Sentinel {host}:{port}")
            command = pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", address.master.encode())
            with contextlib.closing(line):
                reply = line.call([command], timeout)[0]
        except (Trouble, LineLost) as exc:
            reasons.append(str(exc))
            continue
        if isinstance(reply, list):
            return reply[0].decode(), int(reply[1])
        reasons.append(f"Sentinel {host}:{port} knows no master {address.master!r} ({reply!r})")
    raise Trouble("; ".join(reasons))


def _examine(line: Line, address: Address, name: str, timeout: float) -> None:
    """Is it one that we can work with? Its name is for who reads CLIENT LIST."""
    commands = [pack(b"HELLO"), pack(b"CLIENT", b"SETNAME", name.encode())]
    told = line.call(commands, timeout)[0]
    if isinstance(told, Refused):
        # A proxy may not know HELLO. What else is wrong shows at the first command.
        if told.remedy is Remedy.CALL:
            raise Trouble(f"{address}: {told}", is_loud=True)
        return
    facts = dict(zip(told[::2], told[1::2], strict=False)) if isinstance(told, list) else {}
    if facts.get(b"mode") == b"cluster":
        raise Trouble(f"{address} is a Redis Cluster, which is not supported yet", is_loud=True)
    version = str(facts.get(b"version", b""), "ascii", "replace")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < _OLDEST:
        raise Trouble(f"{address} is Redis {version}; 6.2 or later is needed", is_loud=True)
    if facts.get(b"role") not in (None, b"master"):
        raise Trouble(f"{address} is a {facts[b'role'].decode()} now, no master")
