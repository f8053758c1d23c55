"""From a URL to an open transport: DNS, TCP, TLS and the opening handshake, under one deadline.

On gevent's own sockets, so that it waits in the calling greenlet only, patched process or not.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import time
from typing import Any, NamedTuple

import gevent
import gevent.socket
import gevent.ssl

from wsmiddleware.exceptions import HandshakeError, text_of
from wsmiddleware.log import redact
from wsmiddleware.net.transport import Transport, wrap_socket
from wsmiddleware.protocol.opening import Agreement, Opening, Response
from wsmiddleware.protocol.uri import Target

__all__ = ["Dialled", "dial"]

_RECV_SIZE = 65536


class Dialled(NamedTuple):
    """A connection that is open, and not read yet."""

    transport: Transport
    response: Response
    agreement: Agreement
    #: The server's first frames, where they came with the answer.
    leftover: bytes


def dial(
    target: Target, opening: Opening, ssl_context: ssl.SSLContext | None, timeout: float
) -> Dialled:
    """Connect and shake hands; blocks the calling greenlet for at most `timeout` seconds.

    Raises `HandshakeError` whatever fails; its cause, where there is one, is what was raised.
    """
    attempt = _Attempt(target, opening, ssl_context, timeout)
    try:
        with contextlib.closing(attempt), gevent.Timeout(timeout, _Overdue()):
            return attempt.run()
    except _Overdue:
        message = f"{attempt.step} took longer than {timeout:g} s (connect_timeout)"
        raise _failed(target, message) from None
    except HandshakeError as exc:
        raise _failed(target, exc.message, exc.response) from exc.__cause__
    except Exception as exc:  # an OSError; or what a resolver or a TLS context of the user's raises
        message = f"{attempt.step} failed: {_reason(exc)}"
        raise _failed(target, message) from exc


class _Overdue(Exception):
    """`connect_timeout` has passed."""


class _Attempt:
    """One connection on its way; `close` drops it, unless it has arrived."""

    def __init__(
        self,
        target: Target,
        opening: Opening,
        ssl_context: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        #: The step that is being tried, for the error's message.
        self.step = "the DNS look-up"
        self._target = target
        self._opening = opening
        self._ssl_context = ssl_context
        self._deadline = time.monotonic() + timeout
        self._sock: Any = None

    def run(self) -> Dialled:
        self._connect()
        if self._target.is_secure:
            self._secure()
        self.step = "the opening handshake"
        response = self._exchange()
        agreement = self._opening.agree(response)
        sock, self._sock = self._sock, None
        return Dialled(wrap_socket(sock, detach=True), response, agreement, self._opening.leftover)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def _connect(self) -> None:
        host, port = self._target.host, self._target.port
        addresses = gevent.socket.getaddrinfo(host, port, type=gevent.socket.SOCK_STREAM)
        for left, (family, kind, proto, _, address) in zip(
            range(len(addresses), 0, -1), addresses, strict=True
        ):
            self.step = f"the connection to {address[0]} port {port}"
            self._sock = gevent.socket.socket(family, kind, proto)
            # An address that drops packets must leave time for those after it.
            if left > 1:
                share = (self._deadline - time.monotonic()) / left
                self._sock.settimeout(max(0.001, share))
            try:
                self._sock.connect(address)
            except OSError:
                self._sock.close()
                if left == 1:
                    raise
            else:
                self._sock.settimeout(None)
                return

    def _secure(self) -> None:
        self.step = "the TLS handshake"
        # Not context.wrap_socket(): a plain SSLContext would make a socket that blocks the loop.
        self._sock = gevent.ssl.SSLSocket(
            sock=self._sock,
            server_hostname=self._target.host.partition("%")[0],
            do_handshake_on_connect=False,
            _context=self._ssl_context or _default_context(),
        )
        self._sock.do_handshake()

    def _exchange(self) -> Response:
        response = None
        try:
            self._sock.sendall(self._opening.request)
            while response is None:
                response = self._opening.feed(self._sock.recv(_RECV_SIZE))
        except (OSError, _Overdue):
            # A refusal whose body did not come whole is still a refusal.
            response = self._opening.refusal()
            if response is None:
                raise
        return response


@functools.lru_cache(maxsize=1)
def _default_context() -> ssl.SSLContext:
    """A context that checks certificates and host names. Shared: it takes 1 MB of memory."""
    return ssl.create_default_context()


def _failed(target: Target, message: str, response: object | None = None) -> HandshakeError:
    return HandshakeError(f"cannot connect to {redact(str(target))}: {message}", response)


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted, {exc.verify_message}"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return f"{type(exc).__name__}: {text_of(exc)}"
