"""The stream in C and its twin in Python, both in this process, and a connection over either.

`Connection` and `Reactor` derive from what `wsmiddleware.speedups` offers when they are imported.
So the modules between are imported once more with the extension turned off, as PEP 399 has it for
the modules of the standard library; what has no part in the C extension is the same for both.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextvars import Context
from types import SimpleNamespace
from typing import Any

from support import PATIENCE
from wsmiddleware import speedups
from wsmiddleware.net.transport import wrap_socket
from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Engine, Event
from wsmiddleware.protocol.frames import encode_frame
from wsmiddleware.settings import Settings

__all__ = [
    "IMPLEMENTATIONS",
    "Link",
    "RecordedMember",
    "deflated",
    "frames",
    "make_engine",
    "masked",
    "receive_all",
    "twin_of",
]

#: Those that are here: the extension may not be built, or turned off.
IMPLEMENTATIONS = ("c", "python") if speedups.Stream is not None else ("python",)
MAX_SIZE = 200_000

#: From the extension's door up to `Connection`.
_MODULES = [
    f"wsmiddleware.{name}"
    for name in (
        "speedups",
        "metrics",
        "net.stream",
        "net.sender",
        "net.reader",
        "net.reactor",
        "net.connection",
    )
]


def _import_fresh() -> dict[str, Any]:
    """Those modules without the extension; who imports them otherwise gets what was there."""
    before = {name: importlib.import_module(name) for name in _MODULES}
    variable = os.environ.get(speedups.VARIABLE)
    os.environ[speedups.VARIABLE] = "off"
    try:
        for name in _MODULES:
            _place(name, None)
        return {name: importlib.import_module(name) for name in _MODULES}
    finally:
        for name, module in before.items():
            _place(name, module)
        del os.environ[speedups.VARIABLE]
        if variable is not None:
            os.environ[speedups.VARIABLE] = variable


def _place(name: str, module: Any) -> None:
    """In `sys.modules` and in the package above it; `None` takes it out of both."""
    package, _, last = name.rpartition(".")
    if module is None:
        del sys.modules[name]
        delattr(sys.modules[package], last)
    else:
        sys.modules[name] = module
        setattr(sys.modules[package], last, module)


def _make_twin(implementation: str) -> SimpleNamespace:
    is_here = implementation == speedups.IMPLEMENTATION
    modules = (
        {name: importlib.import_module(name) for name in _MODULES} if is_here else _import_fresh()
    )
    stream, connection = modules["wsmiddleware.net.stream"], modules["wsmiddleware.net.connection"]
    return SimpleNamespace(
        name=implementation,
        Stream=stream.Stream,
        Ready=stream.Ready,
        deliver=stream.deliver,
        Metrics=modules["wsmiddleware.metrics"].Metrics,
        Reactor=modules["wsmiddleware.net.reactor"].Reactor,
        Connection=_recorded(
            connection.Connection, "take", "broken", "lost", "flush_soon", "reply_lost"
        ),
        Outbox=_recorded(connection.Outbox, "write"),
        module=connection,
    )


def _recorded(base: type, *names: str) -> Any:
    """`base`, which notes in `calls` when one of these methods is called, and with what.

    What stands in `hooks` under the method's name is called once before it, without arguments.
    """

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        self.calls, self.hooks = [], {}
        base.__init__(self, *args, **options)  # type: ignore[misc]

    def record(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        def call(self: Any, *args: Any) -> Any:
            self.calls.append((name, *args))
            hook = self.hooks.pop(name, None)
            if hook is not None:
                hook()
            return method(self, *args)

        return call

    members = {"__slots__": ("__weakref__", "calls", "hooks"), "__init__": __init__}
    return type(f"Recorded{base.__name__}", (base,), {**members, **{n: record(n) for n in names}})


_twins: dict[str, SimpleNamespace] = {}


def twin_of(implementation: str) -> SimpleNamespace:
    """The classes over that implementation: "c" or "python"."""
    if implementation not in _twins:
        _twins[implementation] = _make_twin(implementation)
    return _twins[implementation]


class RecordedMember:
    """Who gets what a connection receives: runs a listener's callbacks, or keeps the messages.

    As the package's `Member` it has what is no plain reply sent, here as its `repr`.
    """

    # A slot where the extension looks for one.
    __slots__ = ("calls", "connection", "is_serving", "messages")

    is_told_of_pings = True

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_serving = False
        self.messages: list[Any] = []
        self.calls: list[tuple[object, ...]] = []

    def serve(
        self, listener: object, context: Context | None = None, timeout: float = 30.0
    ) -> None:
        """From now on run those callbacks."""
        self.is_serving = True
        context = Context() if context is None else context
        arguments = (self, listener, "client", context, "on_text", "on_data", timeout)
        self.connection.serve_for(*arguments)

    # Of a receiver

    def opened(self, worker: Any) -> None: ...

    def received(self, due: list[Any], worker: Any) -> None:
        if self.is_serving:
            self.connection.serve(worker)
        else:
            self.messages += reversed(due)
            due.clear()

    def is_busy(self) -> bool:
        return False

    def unlist(self) -> None: ...
    def closed(self, worker: Any) -> None:
        self.calls.append(("closed",))

    def gone(self) -> None:
        self.calls.append(("gone",))

    # Of a member

    def answer(self, reply: object, worker: Any, name: str) -> None:
        if not isinstance(reply, (str, bytes)):
            self.calls.append(("answer", reply, name))
            reply = repr(reply)
        wire = self.connection.encode(reply, True)
        worker.rest()
        self.connection.reply(wire)

    def failed(self, exc: BaseException, worker: Any, name: str) -> None:
        worker.rest()
        if isinstance(exc, KeyboardInterrupt):
            raise exc
        self.calls.append(("failed", type(exc), name))


class Link:
    """A started connection over one end of a pair of sockets; `far` is the other end.

    Nothing is read before the test blocks or calls `read`.
    """

    def __init__(
        self,
        twin: SimpleNamespace,
        *,
        reactor: Any = None,
        max_size: int = MAX_SIZE,
        window_bits: int = 0,
        **settings: Any,
    ) -> None:
        self.near, self.far = _socket_pair()
        self.far.settimeout(PATIENCE)
        self.reactor = twin.Reactor() if reactor is None else reactor
        self.metrics = twin.Metrics()
        self.engine = make_engine(max_size, window_bits)
        # `Connection` makes its outbox itself.
        outbox_class, twin.module.Outbox = twin.module.Outbox, twin.Outbox
        try:
            self.connection = twin.Connection(
                self.reactor,
                wrap_socket(self.near, detach=True),
                self.engine,
                Settings(**settings),
                self.metrics,
                name="link",
                idle_timeout=0,
                window_bits=window_bits,
            )
        finally:
            twin.module.Outbox = outbox_class
        self.outbox = self.connection.outbox
        self.member = RecordedMember(self.connection)
        self.connection.start(self.member, b"")
        self._sent = 0
        self._has_given_end = False
        while not self.is_settled():
            self.reactor.wait_for_turn()

    def send(self, *frames: bytes) -> None:
        """Have these bytes come, in one piece if they are few."""
        data = b"".join(frames)
        self._sent += len(data)
        self.far.sendall(data)

    def read(self) -> None:
        """What the loop does when the socket is readable."""
        self.connection.receive()

    def receive(self, data: bytes) -> list[Event]:
        """What comes of `data`: messages, pings and pongs, and what ended the connection."""
        self.send(data)
        self.settle()
        events, self.member.messages = self.member.messages, []
        closing = self.connection.closing
        if closing is not None and closing.ending is not None and not self._has_given_end:
            self._has_given_end = True
            events.append(closing.ending)
        return events

    def settle(self) -> None:
        """Returns once all that was sent has been read, and all callbacks have run."""
        while not self.is_settled():
            self.reactor.wait_for_turn()

    def is_settled(self) -> bool:
        """True when nothing is left to be read or to be run."""
        it = self.connection
        if it.is_closed or it.is_ending:
            return self.reactor.pool.is_idle
        is_read = it.bytes_received == self._sent and not it.is_paused
        return is_read and not it.inbox and not it.due and self.reactor.pool.is_idle

    def serve(self, listener: object, *messages: str | bytes) -> None:
        """Have `messages` read at once, and all callbacks run."""
        self.member.serve(listener)
        self.come(*messages)
        self.settle()

    def come(self, *messages: str | bytes) -> None:
        """Have `messages` read at once: they wait for a worker."""
        self.send(*map(Engine(is_client=True).encode, messages))
        self.read()

    def get(self, size: int) -> bytes:
        """The next bytes that the peer gets."""
        data = b""
        while len(data) < size:
            piece = self.far.recv(size - len(data))
            assert piece, f"the end, {len(data)} bytes of {size}"
            data += piece
        return data

    def get_all(self) -> bytes:
        """All that lies there for the peer."""
        data = b""
        self.far.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while piece := self.far.recv(1 << 20):
                data += piece
        self.far.settimeout(PATIENCE)
        return data

    def fill(self) -> bytes:
        """Leave no room in the socket; what has been put there."""
        sent = 0
        with socket.fromfd(self.connection._transport.fileno(), socket.AF_UNIX, 1) as near:
            near.setblocking(False)
            for size in (1000, 1):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sent += near.send(bytes(size))
        return bytes(sent)

    def told(self, name: str) -> list[tuple[Any, ...]]:
        """What that method of the connection was called with."""
        return [args for called, *args in self.connection.calls if called == name]  # type: ignore[misc]

    def close(self) -> None:
        """End it; returns when the last callback has run."""
        self.connection.abort()
        while not (self.reactor.pool.is_idle and self.connection.due_step == 0):
            self.reactor.wait_for_turn()
        self.far.close()


def _socket_pair() -> Iterator[socket.socket]:
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return iter((near, far))


def make_engine(max_size: int = MAX_SIZE, window_bits: int = 0) -> Engine:
    """The engine of a connection on which that was agreed."""
    return Engine(max_message_size=max_size, deflate=Deflate(window_bits) if window_bits else None)


def receive_all(engine: Engine, data: bytes) -> list[Event]:
    """What comes of `data`, in however many turns."""
    events = engine.receive(data, 1 << 20)
    while engine.more:
        events += engine.receive(b"", 1 << 20)
    return events


def frames(*messages: str | bytes) -> bytes:
    """What a peer without compression gets."""
    return b"".join(map(Engine().encode, messages))


def masked(opcode: int, payload: bytes, **options: Any) -> bytes:
    """A client's frame."""
    return encode_frame(opcode, payload, masked=True, **options)


def deflated(opcode: int, payload: bytes, **options: Any) -> bytes:
    """A client's frame of a message that compression makes shorter."""
    return masked(opcode, compress(payload, 15) or b"", rsv1=True, **options)
