"""Where ``run`` listens: an address, a Unix socket, or a socket that was handed to the process.

Whatever cannot be listened on is an `OSError` or a `ValueError` whose text is for the user.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

__all__ = ["handed_over", "listen", "open_unix", "remove_unix", "take_over", "url_of"]

_BACKLOG = 1024

# systemd's first descriptor (sd_listen_fds(3)).
_FIRST_FD = 3

# Whoever may reach the folder may connect, as with a port: a proxy runs as somebody else.
_MODE = 0o666

# Nobody can connect to "every address".
_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; ``::`` takes IPv4, too, where the system can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual
        )
    except OSError as exc:
        raise OSError(f"cannot listen on {host}:{port}: {_reason(exc)}") from exc


def open_unix(path: str) -> socket.socket:
    """Listen on a Unix socket, which everybody may connect to who may reach its folder.

    One that nobody listens on any more is replaced.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        os.chmod(path, _MODE)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise OSError(f"cannot listen on {path}: {_reason(exc)}") from exc
    return listener


def _remove_stale(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError("there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError("somebody listens there already")


def remove_unix(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more; another's that took its place stays."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def take_over(fd: int) -> socket.socket:
    """A socket that was handed to the process as a descriptor, and that listens already."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError as exc:
        raise OSError(f"descriptor {fd} is no socket: {_reason(exc)}") from exc
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise ValueError(f"descriptor {fd} is a socket that does not listen")
    return listener


def handed_over() -> int | None:
    """The descriptor that systemd has handed to this process; once, and None without one."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    if count != "1":
        last = _FIRST_FD + int(count) - 1
        raise ValueError(
            f"{count} sockets were handed over ({_FIRST_FD} to {last}): --fd takes one"
        )
    return _FIRST_FD


def url_of(listener: socket.socket, host: str, scheme: str, paths: list[str]) -> Iterator[str]:
    """The URL of the page and of each of `paths`, as they are reached from this machine.

    `host` is the address as it was given. A Unix socket has none: its path stands before theirs.
    """
    address = listener.getsockname()
    if not isinstance(address, tuple):
        yield f"unix:{address}"
        yield from (f"ws+unix:{address}:{path}" for path in paths)
        return
    host = _REACHABLE.get(host, host)
    where = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
    yield f"http{scheme}://{where}/"
    yield from (f"ws{scheme}://{where}{path}" for path in paths)


def _reason(exc: OSError) -> str:
    return (exc.strerror or str(exc)).partition(" (")[0]
