"""Bounds the requests of a connection: how long they may wait or go on, and whom an error hits.

`BoundedHandler` stands between our handler and its reading, and `Limits` belong to the server.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
from greenlet import GreenletExit

from wsmiddleware.log import log as _logger
from wsmiddleware.net.limit import Late, Limit, Stalled, send_all
from wsmiddleware.net.turnstile import Turnstile
from wsmiddleware.reading import RequestReader

__all__ = ["BoundedHandler", "Limits", "limits_of", "report"]

# Seconds in one turn of the loop for all bodies and responses that flow without a wait.
_FLOW_TIME = 0.005

_TIMEOUT_RESPONSE = (
    "408 Request Timeout",
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long connections of one server may keep their own greenlets, or all others, waiting."""

    #: For a request's head, from the accept or from the first byte of a later one.
    heads: Limit
    #: For the first byte of the next request.
    idle: Limit
    #: For the peer to take anything of a response.
    sends: Limit
    #: Lets the loop go on while a body or a response flows without a wait.
    flow: Turnstile = field(default_factory=lambda: Turnstile(_FLOW_TIME))


class BoundedHandler(RequestReader):
    """Serves the requests of one connection; none takes longer than its peer is allowed to."""

    #: Seconds from the accept, or from the first byte of a later request, to the end of its head;
    #: then 408, or nothing where nothing has come, and the connection is closed.
    handshake_timeout: float = 10.0
    #: Seconds that a connection may wait for its next request; 0 closes it behind each.
    keep_alive: float = 5.0
    #: Seconds that the peer may take nothing of a response; then the connection is reset.
    send_timeout: float = 5.0

    code: int | None
    #: True once a byte of the request has come.
    _has_begun = False

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        self._limits = limits_of(server)
        super().__init__(sock, address, server, rfile)

    # -- waiting for the peer -----------------------------------------------------------------

    def handle_one_request(self) -> Any:
        """Serve one request within its time-outs."""
        try:
            return super().handle_one_request()
        except Late:
            if self._has_begun:
                self._refuse(*_TIMEOUT_RESPONSE)
            return None
        finally:
            self._limits.heads.end()
            self._limits.idle.end()

    def read_requestline(self) -> str:
        """Wait for a request: a later one for `keep_alive` seconds. The first byte starts a clock.

        That of the first has been started by the accept, under our server.
        """
        is_first, self._has_begun = not self.requestline, False
        if not is_first and getattr(self.server, "is_draining", False):
            return ""
        limits = self._limits
        (limits.heads if is_first else limits.idle).begin()
        idle = getattr(self.server, "idle_handlers", None)
        if idle is not None:
            idle.add(self)
        try:
            self._has_begun = bool(self.rfile.peek(1))
        finally:
            if idle is not None:
                idle.discard(self)
        if not is_first:
            limits.idle.end()
            limits.heads.begin()
        return super().read_requestline()

    def read_request(self, raw_requestline: str) -> bool:
        """Read the rest of the head, and stop its clock: a body is for the application to read."""
        is_read = super().read_request(raw_requestline)
        self._limits.heads.end()
        return is_read

    def handle_one_response(self) -> None:
        """Call the application; a peer that sends without a break does not hold the loop up."""
        if self._source is not None:
            self._source.gate = self._limits.flow.go_through
        try:
            super().handle_one_response()
        finally:
            if self._source is not None:
                self._source.gate = None

    def _send_last(self, response: bytes) -> None:
        self._limits.heads.end()
        super()._send_last(response)

    # -- sending to it ------------------------------------------------------------------------

    def get_environ(self) -> dict[str, Any]:
        """As PEP 3333."""
        environ = super().get_environ()
        if self.wsgi_input.socket is not None:
            self.wsgi_input.socket = _Sink(self.send_all)
        return environ

    def write(self, data: bytes) -> None:
        """Send a piece of the response; a long one lets others go on in between. Blocks."""
        if self.headers_sent:
            self._limits.flow.go_through()
        super().write(data)

    def send_all(self, data: bytes) -> None:
        """Send all of it. Blocks while the peer takes some; raises `Stalled` when it stops."""
        limits = self._limits
        try:
            send_all(self.socket, data, limits.sends, limits.flow)
        except Stalled as exc:
            _logger.info("a response to %s is cut off: %s", self.client_address, exc.strerror)
            raise

    def _sendall(self, data: bytes) -> None:
        try:
            self.send_all(data)
        except OSError as exc:
            self.status = f"socket error: {exc}"
            self.code = -abs(self.code or 0)
            raise
        self.response_length += len(data)

    # -- what user code raises ----------------------------------------------------------------

    def handle_error(self, kind: type[BaseException], exc: BaseException, trace: Any) -> None:
        """Answer 500 for what user code has raised, whatever it is; a kill ends the connection."""
        super().handle_error(kind, exc, trace)
        if issubclass(kind, GreenletExit):
            self.close_connection = True

    def _log_error(self, kind: type[BaseException], exc: BaseException, trace: Any) -> None:
        report(self.server.secure_environ_class(self.environ or {}), kind, exc, trace)


class _Sink:
    """What pywsgi takes for a socket that it sends ``100 Continue`` to."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.sendall = send


def limits_of(server: Any) -> Limits:
    """The server's, made at its first connection; a foreign server is given some, too."""
    limits: Limits | None = getattr(server, "limits", None)
    if limits is None:
        times = []
        for name in ("handshake_timeout", "keep_alive", "send_timeout"):
            own = getattr(server, name, None)
            times.append(getattr(server.handler_class, name) if own is None else own)
        heads, idle, sends = map(Limit, times)
        limits = server.limits = Limits(heads, idle, sends)
    return limits


def report(context: object, kind: type[BaseException], exc: BaseException, trace: Any) -> None:
    """Log the traceback of what a request has raised, as gevent does; it ends nobody else.

    Except the `KeyboardInterrupt` of a Ctrl-C, which gevent hands to the main greenlet. It would
    hand on `SystemExit` and `SystemError` as well. A `GreenletExit` is nothing to tell.
    """
    hub = gevent.get_hub()
    # Where SIGINT is handled, by `serve` or by gunicorn, it raises none.
    may_be_signal = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    is_signal = may_be_signal and issubclass(kind, KeyboardInterrupt)
    if issubclass(kind, hub.SYSTEM_ERROR) and not is_signal:
        hub.print_exception(context, kind, exc, trace)
    else:
        hub.handle_error(context, kind, exc, trace)
