"""`create_websocket_client`: the other side of a connection, on the same engine and loop.

A client's callbacks run in greenlets of the thread that made it, whenever that thread waits in
gevent (`WebSocketClient.wait`, ``gevent.sleep()``, or anything that blocks in a patched process).
Its methods may be called from any greenlet and any native thread.
"""

from __future__ import annotations

import itertools
from typing import Any

from wsmiddleware.exceptions import ConnectionClosed, WebSocketError
from wsmiddleware.listeners.notify import Notifier
from wsmiddleware.log import redact, set_up_logging
from wsmiddleware.net.orders import Orders
from wsmiddleware.net.reactor import step_for
from wsmiddleware.net.underway import OVERHEAD
from wsmiddleware.options import ClientOptions, read_options
from wsmiddleware.protocol.frames import (
    MAX_CONTROL_SIZE,
    CloseCode,
    Opcode,
    close_arguments,
    encode_frame,
    to_payload,
)
from wsmiddleware.protocol.opening import Response
from wsmiddleware.protocol.uri import Target, parse_url
from wsmiddleware.upkeep import Upkeep, loop_of_this_thread

__all__ = ["WebSocketClient", "create_websocket_client"]

_numbers = itertools.count(1)


def create_websocket_client(url: str, listener: object, **options: Any) -> WebSocketClient:
    """Connect to `url` and give the open client; blocks for at most ``connect_timeout``.

    `listener` is an object with some of the callbacks ``on_open()``, ``on_message(message)``,
    ``on_binary_message(binary)`` (without it binary messages go to ``on_message``), ``on_close()``,
    ``on_error(type, cause, data=None)``, ``on_ping()``, ``on_pong()``, or a class of such, made
    without arguments. They run one at a time and may block; none runs before this has returned and
    the calling greenlet waits. `options` are those of `ClientOptions`.

    Raises `HandshakeError` when the connection does not come about: its message names the cause,
    its ``response`` is the server's answer, if one came. `ValueError` for a URL, header or cookie
    that is none, `ConfigError` for an option. `TypeError` for a `listener` that is none (`None`, a
    `str`, a `dict`; a bare ``object()`` hears nothing, for those who only send), `ListenerError`
    for one whose callback is misspelt, or does not take what it is given: both before it connects.
    """
    set_up_logging()
    client = WebSocketClient(parse_url(url), listener, read_options(options))
    client._upkeep.open()
    return client


class WebSocketClient:
    """A client, made by `create_websocket_client`: one connection, or one after the other.

    Any greenlet and any native thread may call everything here. Two sends never interleave on the
    wire, and what one caller sends keeps its order.
    """

    __slots__ = ("__weakref__", "_options", "_orders", "_reactor", "_upkeep")

    def __init__(self, target: Target, listener: object, options: ClientOptions) -> None:
        if options.ssl_context is not None and not target.is_secure:
            raise ValueError(f"ssl_context goes with a wss: URL, not with {redact(str(target))}")
        notifier = Notifier(listener, f"client {next(_numbers)}")
        loop = loop_of_this_thread(step_for(*options.timeouts))
        self._options = options
        self._reactor = loop.reactor
        self._upkeep = Upkeep(loop, target, options, notifier)
        self._orders = Orders(loop.reactor, options.send_queue_size, self._order_failed)

    @property
    def url(self) -> str:
        """Where to, without what may be secret."""
        return redact(str(self._upkeep.target))

    @property
    def listener(self) -> object:
        """The listener; the instance, where a class was given."""
        return self._upkeep.notifier.listener

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose, if any."""
        return self._upkeep.subprotocol

    @property
    def response(self) -> Response | None:
        """The server's answer to the last opening handshake that succeeded."""
        return self._upkeep.response

    @property
    def close_code(self) -> int:
        """The code of the peer's close frame; 1005 when it had none, 1006 when none came (yet)."""
        connection = self._upkeep.connection
        return connection.close_code if connection else int(CloseCode.ABNORMAL_CLOSURE)

    @property
    def close_reason(self) -> str:
        """The reason of the peer's close frame, ``""`` without one."""
        connection = self._upkeep.connection
        return connection.close_reason if connection else ""

    def is_open(self) -> bool:
        """True from the opening handshake until a closing handshake starts."""
        connection = self._upkeep.connection
        return connection is not None and connection.is_open and not self._upkeep.is_stopping

    def send_text(self, message: str, *, compress: bool = True) -> None:
        """Send a text message; `TypeError` for anything but `str`. The rest is `send_binary`'s."""
        if not isinstance(message, str):
            raise TypeError(f"send_text() takes str, not {type(message).__name__}")
        to_payload(message)  # a lone surrogate is the caller's mistake, whatever the thread
        self._send(message, compress)

    def send_binary(self, data: bytes | bytearray | memoryview, *, compress: bool = True) -> None:
        """Send a binary message.

        Returns at once while less than ``send_queue_size`` waits; past that it blocks for at most
        ``send_timeout``, then closes the connection and raises `SlowConsumerError`. Raises
        `ConnectionClosed` when the client is not open, unless it reconnects: then the message waits
        for the next connection, while ``offline_queue_size`` holds. ``compress=False`` is for what
        must not be compressed: a secret beside what somebody else chose.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"send_binary() takes bytes, not {type(data).__name__}")
        self._send(to_payload(data), compress)

    def send_ping(self, data: bytes | str = b"") -> None:
        """Send a ping of at most 125 bytes, else it is a `ValueError`.

        Raises as `send_binary` does, but never waits for another connection.
        """
        self._control(Opcode.PING, data)

    def send_pong(self, data: bytes | str = b"") -> None:
        """Send a pong that no ping asked for: a sign of life (RFC 6455 section 5.5.3)."""
        self._control(Opcode.PONG, data)

    def disconnect(
        self,
        code: CloseCode | int | str = CloseCode.NORMAL_CLOSURE,
        reason: str = "",
        *,
        wait: bool = True,
    ) -> None:
        """Send what is queued, then close for good. A second call does nothing.

        Blocks until the server has answered and `on_close` has run, ``close_timeout`` for each at
        most. With ``wait=False``, in a callback of this client and in another thread it only
        starts to. `code` and `reason` are those of ``wsclient.close``, else it is a `ValueError`.
        """
        number, reason = close_arguments(code, reason)
        upkeep = self._upkeep
        if not self._reactor.is_here():
            self._order(upkeep.stop, number, reason)
            return
        upkeep.stop(number, reason)
        if not wait or upkeep.notifier.is_current() or self._reactor.is_in_hub():
            return
        seconds = self._options.close_timeout
        connection = upkeep.connection
        while not upkeep.done.is_set() and connection and not connection.is_closed:
            # It ends by its own time-out, which does not run while the server reads what waits.
            upkeep.done.wait(seconds)
        upkeep.done.wait(seconds)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the client has ended for good, its last callback included.

        `False` after `timeout` seconds. While it waits, callbacks run.
        """
        return bool(self._upkeep.done.wait(timeout))

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"<WebSocketClient {self.url}, {'open' if self.is_open() else 'not open'}>"

    def _send(self, data: str | bytes, compress: bool) -> None:
        if self._reactor.is_here():
            self._upkeep.send(data, compress)
        else:
            self._refuse_if_closed(is_queued=self._upkeep.offline is not None)
            self._order(self._upkeep.send, data, compress, size=len(data) + OVERHEAD)

    def _control(self, opcode: Opcode, data: bytes | str) -> None:
        payload = to_payload(data)
        if len(payload) > MAX_CONTROL_SIZE:
            raise ValueError(f"{opcode.name.lower()} of {len(payload)} bytes: at most 125 fit")
        wire = encode_frame(opcode, payload, masked=True)
        if self._reactor.is_here():
            self._send_control(wire)
        else:
            self._refuse_if_closed(is_queued=False)
            self._order(self._send_control, wire, size=len(wire) + OVERHEAD)

    def _send_control(self, wire: bytes) -> None:
        connection = self._upkeep.connection
        if connection is None:
            raise ConnectionClosed(self.close_code)
        connection.send(wire)

    def _refuse_if_closed(self, *, is_queued: bool) -> None:
        """Raise what a native thread can be told at once; other errors go to `on_error`."""
        is_over = self._upkeep.is_stopping or self._upkeep.done.is_set()
        if is_over or not (is_queued or self.is_open()):
            raise ConnectionClosed(self.close_code, self.close_reason)

    def _order(self, function: Any, *args: Any, size: int = 0) -> None:
        self._orders.put(function, args, size, self._options.send_timeout)

    def _order_failed(self, exc: WebSocketError) -> None:
        self._upkeep.notifier.error("general", exc)
