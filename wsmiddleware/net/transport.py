"""Byte streams that never block: what a connection reads from and writes to.

A transport raises `BlockingIOError` where a call would have to wait, any other `OSError` when the
stream is broken. All of its calls belong to the thread of the hub that watches it.
"""

from __future__ import annotations

import _socket
import contextlib
import ssl
from collections.abc import Sequence
from typing import Any, Protocol

import gevent.socket
import gevent.ssl

__all__ = ["TcpTransport", "TlsTransport", "Transport", "abandon_socket", "wrap_socket"]

#: Bytes given to the TLS layer at once: four of its records.
_TLS_SLICE = 65536
_NODELAY = (_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)


class Transport(Protocol):
    """A non-blocking byte stream over one socket."""

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes (of at least 16 KiB); ``b""`` at the end of the stream."""
        ...

    def send(self, data: bytes | memoryview, /) -> int:
        """Write what fits and return how many bytes that was; 0 is as good as an exception."""
        ...

    def sendmsg(self, parts: Sequence[bytes | memoryview], /) -> int:
        """Write what fits of `parts`, one behind the other."""
        ...

    def fileno(self) -> int:
        """The descriptor that a watcher waits on."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Shut one or both directions down (``SHUT_WR``, ``SHUT_RDWR``).

        What `recv` gives afterwards is to be thrown away: it may be ciphertext.
        """
        ...

    def close(self) -> None:
        """End the stream and give the descriptor back. Its watchers must have been stopped."""
        ...

    def abandon(self) -> None:
        """Give the descriptor back in a forked child; the stream goes on at the parent's."""
        ...


class TcpTransport(_socket.socket):
    """A raw, non-blocking socket: C methods only, no greenlet ever waits in it."""

    __slots__ = ()

    def close(self) -> None:
        """End both directions, whoever else has the descriptor (a forked child), and close it."""
        with contextlib.suppress(OSError):
            self.shutdown(_socket.SHUT_RDWR)
        super().close()

    def abandon(self) -> None:
        """As `Transport.abandon`."""
        super().close()


class BorrowedTcpTransport(TcpTransport):
    """The same over a descriptor that somebody else will close."""

    __slots__ = ()

    def close(self) -> None:
        """End both directions and let go of the descriptor."""
        # shutdown() wakes a greenlet of the owner that waits on the descriptor; close() would not.
        with contextlib.suppress(OSError):
            self.shutdown(_socket.SHUT_RDWR)
        self.detach()

    def abandon(self) -> None:
        """As `Transport.abandon`; the descriptor is its owner's to close."""
        self.detach()


class TlsTransport:
    """A gevent `SSLSocket` with time-out 0, its "want" errors told as `BlockingIOError`."""

    __slots__ = ("_is_shut", "_sock")

    def __init__(self, sock: gevent.ssl.SSLSocket) -> None:
        sock.settimeout(0.0)
        self._sock = sock
        self._is_shut = False

    def recv(self, size: int) -> bytes:
        """Up to `size` decrypted bytes; ``b""`` at the end, with or without a close alert.

        `size` must be at least 16 KiB, the largest TLS record: a rest of a record would wait in the
        TLS layer, where no watcher sees it.
        """
        if self._is_shut:
            return bytes(gevent.socket.socket.recv(self._sock, size))
        try:
            return bytes(self._sock.recv(size))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            raise BlockingIOError from exc
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt and write what fits.

        What was not taken must be sent again, with nothing before it: the TLS layer may have
        written records of it, and tells only once a whole slice has gone.
        """
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            try:
                taken = self._sock.send(view[sent : sent + _TLS_SLICE])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not taken:
                break
            sent += taken
        return sent

    def sendmsg(self, parts: Sequence[bytes | memoryview]) -> int:
        """Encrypt and write what fits of `parts`, see `send`."""
        return self.send(b"".join(parts))

    def fileno(self) -> int:
        """The descriptor of the TCP socket below."""
        return int(self._sock.fileno())

    def shutdown(self, how: int) -> None:
        """Send a TLS close alert, then shut the TCP stream down; nothing is waited for."""
        # After our alert the TLS layer reports whatever still comes as an error.
        self._is_shut = True
        with contextlib.suppress(OSError, ValueError):
            self._sock._sslobj.shutdown()
        # Not SSLSocket.shutdown(): it drops the TLS layer, and what is read after it is ciphertext.
        gevent.socket.socket.shutdown(self._sock, how)

    def close(self) -> None:
        """Close the socket, sending a TLS close alert where that needs no wait."""
        with contextlib.suppress(OSError, ValueError):
            self._sock._sslobj.shutdown()
        with contextlib.suppress(OSError):
            gevent.socket.socket.shutdown(self._sock, _socket.SHUT_RDWR)
        self._sock.close()

    def abandon(self) -> None:
        """As `Transport.abandon`: nothing of TLS is sent either."""
        abandon_socket(self._sock)


def abandon_socket(sock: Any) -> None:
    """Close a socket's descriptor in a forked child; of a gevent socket, wake nobody who waits."""
    for name in ("_read_event", "_write_event"):
        watcher = getattr(sock, name, None)
        if watcher is not None:
            watcher.stop()
    fd = getattr(sock, "_sock", sock).detach()
    if fd >= 0:
        _socket.close(fd)  # not os.close(): patched, it waits for the loop


def wrap_socket(sock: gevent.socket.socket, *, detach: bool) -> Transport:
    """Make a transport of a gevent socket, with ``TCP_NODELAY`` set.

    `detach` takes a plain socket's descriptor away from `sock`, so that nobody else closes it;
    without it `sock` stays its owner's, who closes it. A TLS socket is always used itself.
    """
    # Small frames must not wait for the peer's delayed ACK; gevent leaves Nagle's algorithm on.
    with contextlib.suppress(OSError):  # a Unix socket has no such option
        sock.setsockopt(*_NODELAY)
    if isinstance(sock, gevent.ssl.SSLSocket):
        return TlsTransport(sock)
    cls, fd = (TcpTransport, sock.detach()) if detach else (BorrowedTcpTransport, sock.fileno())
    transport = cls(sock.family, sock.type, sock.proto, fileno=fd)
    transport.setblocking(False)
    return transport
