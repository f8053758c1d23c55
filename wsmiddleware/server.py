"""The gevent server behind ``python -m wsmiddleware run``, and the draining that gunicorn shares.

::

    serve(WSGIServer(("127.0.0.1", 8000), app))

serves until SIGTERM or SIGINT, tells the clients and returns. `WSGIServer` alone is gevent's,
with our handler.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import gevent
import gevent.socket
from gevent import monkey, pywsgi
from gevent.event import AsyncResult, Event
from greenlet import GreenletExit

from wsmiddleware import console, info
from wsmiddleware.bounds import Limits, limits_of, report
from wsmiddleware.handler import WebSocketHandler, stop_reading
from wsmiddleware.log import log as _logger
from wsmiddleware.net.fork import forget_in_children
from wsmiddleware.net.limit import Late
from wsmiddleware.net.pool import Worker, WorkerPool
from wsmiddleware.net.transport import abandon_socket
from wsmiddleware.net.turnstile import Turnstile
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.protocol.head import HeadLimits

try:
    import resource

    _HAS_LIMITS = True
except ImportError:  # Windows
    _HAS_LIMITS = False

__all__ = [
    "Handlers",
    "WSGIServer",
    "drain",
    "freeze_heap",
    "grace_period",
    "head_limits",
    "serve",
]

# Defaults where the process has no middleware.
_GRACE_PERIOD = 5.0

# Requests that begin in one turn of the loop, and seconds of it that they may take. One request
# takes about a millisecond.
_REQUESTS_PER_TURN = 8
_REQUESTS_TIME = 0.008

# What accept() says when there is no room for another connection.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Seconds until accept() is tried again; seconds without the error after which it is logged again.
_ACCEPT_PAUSE = 0.1
_ACCEPT_NEWS = 60.0

# Descriptors that connections without a request leave free for other connections, files and
# databases: a twentieth of the limit, but so many at least.
_MIN_SPARE = 8

# How an IPv6 socket tells an IPv4 address.
_MAPPED = "::ffff:"

# Exit status after a second Ctrl-C: the one that a shell reports for SIGINT.
_INTERRUPTED = 128 + signal.SIGINT

# Seconds that the log gets for its last lines then.
_LAST_LINES = 0.1


class Handlers:
    """Runs a server's handlers in reused greenlets, each in a context of its own.

    One greenlet for each accepted connection, as gevent has it, is a seventh of a connect.
    """

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._pool = WorkerPool(self._hub)
        self._running = 0
        self._ended = Event()
        self._ended.set()
        self._is_closed = False

    def spawn(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` soon. From any greenlet of the hub's thread; never blocks."""
        self._running += 1
        self._ended.clear()
        self._pool.submit(functools.partial(self._run, function, args))

    def join(self, timeout: float | None = None) -> None:
        """Block until no handler runs, `timeout` seconds at most."""
        self._ended.wait(timeout)

    def close(self) -> None:
        """Keep no greenlets: idle ones end soon, the others after their handlers.

        From any greenlet of the hub's thread; never blocks.
        """
        self._is_closed = True
        self._hub.loop.run_callback(self._pool.dismiss)

    def forked(self) -> None:
        """In a forked child: what has been accepted is the parent's."""
        self._pool.tasks.clear()

    def _run(
        self, function: Callable[..., object], args: tuple[object, ...], worker: Worker
    ) -> None:
        try:
            Context().run(function, *args)
        except GreenletExit:
            pass  # killed, as any greenlet may be
        except BaseException as exc:
            report(function, type(exc), exc, exc.__traceback__)
        finally:
            self._running -= 1
            if not self._running:
                self._ended.set()
            if self._is_closed:
                self._hub.loop.run_callback(self._pool.dismiss)


class WSGIServer(pywsgi.WSGIServer):  # type: ignore[misc]
    """gevent's server with our handler: connections outlive their handler, under TLS as well.

    Unless `spawn` says otherwise, requests run in greenlets that are reused for other connections:
    ``gevent.getcurrent()`` is a plain greenlet there, no ``gevent.Greenlet``.
    """

    handler_class = WebSocketHandler

    #: Connections accepted in one turn of the loop. gevent's default of 100 would hold the loop up.
    max_accept = 16

    #: Tells the handler that a TLS socket stays open once it was detached.
    keeps_detached_tls = True

    #: True once no connection may send a further request.
    is_draining = False

    #: As the settings; the handler's own when None. Not to be changed once somebody has connected.
    handshake_timeout: float | None = None
    keep_alive: float | None = None
    send_timeout: float | None = None

    #: Made of these at the first connection.
    limits: Limits | None = None

    #: What a request's head may be; the handler's own when None.
    head_limits: HeadLimits | None = None

    #: Called at each request, when given.
    on_request: Callable[[], None] | None = None

    #: What runs the handlers, unless `spawn` was given.
    handlers: Handlers | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self.clients: dict[Any, Any] = {}
        self.idle_handlers: set[WebSocketHandler] = set()
        self.turnstile = Turnstile(_REQUESTS_TIME, _REQUESTS_PER_TURN)
        self._last_without_room = self._last_crowd = -_ACCEPT_NEWS
        self._serving: set[WebSocketHandler] = set()
        super().__init__(*args, **options)
        forget_in_children(self)

    def forked(self) -> None:
        """In a forked child: the connections are the parent's, and so is who accepts more."""
        if not self.started:
            return  # made to be started in children
        self.stop_accepting()
        sockets = [handler.socket for handler in self._serving]
        for sock in (self.__dict__.pop("socket", None), *sockets):
            if sock is not None:
                abandon_socket(sock)
        self._serving.clear()
        self.idle_handlers.clear()
        limits = limits_of(self)
        for limit in (limits.heads, limits.idle, limits.sends):
            limit.forked()
        if self.handlers is not None:
            self.handlers.forked()

    def set_spawn(self, spawn: Any) -> None:
        """Choose what runs the handlers, as gevent's; called by the constructor."""
        if spawn == "default":
            self.handlers = Handlers()
            spawn = self.handlers.spawn
        super().set_spawn(spawn)

    def close(self) -> None:
        """Accept nothing more."""
        super().close()
        if self.handlers is not None:
            self.handlers.close()

    def take_settings(self, keep_alive: float | None = None) -> None:
        """Take the settings of this process's middlewares, the least of each. Once, at the start.

        What has been set before stays. `keep_alive` is what gunicorn says in place of theirs.
        """
        settings = [each.settings for each in info.middlewares()]
        if self.keep_alive is None:
            self.keep_alive = keep_alive
        for name in ("handshake_timeout", "keep_alive", "send_timeout"):
            if getattr(self, name) is None:
                setattr(self, name, min((getattr(row, name) for row in settings), default=None))
        if self.head_limits is None:
            self.head_limits = head_limits()

    def start(self) -> None:
        """Accept connections; not after `start_draining`, which a signal may bring before."""
        super().start()
        info.start_serving()
        if not monkey.is_module_patched("socket"):
            _logger.warning(
                "the process is not monkey-patched: a callback that waits holds everybody up. "
                "Begin the program with: from gevent import monkey; monkey.patch_all()"
            )
        if self.is_draining:
            self.close()

    def start_accepting(self) -> None:
        """Accept, unless it drains already: there is no socket any more. gevent's own calls it."""
        if not self.is_draining:
            super().start_accepting()

    def _do_read(self) -> None:
        """Accept connections. Raises nothing: gevent would stop accepting."""
        try:
            super()._do_read()
        except Exception as exc:
            _logger.error("cannot accept a connection: %r", exc, exc_info=exc)

    def do_read(self) -> Any:
        """Accept one connection; None when there is none, or no room for it. Hub only."""
        try:
            accepted = super().do_read()
        except OSError as exc:
            if exc.errno not in _NO_ROOM:
                raise
            self._wait_for_room(exc)
            return None
        # The system gives out the lowest free descriptor: a high number means few are left.
        if accepted is not None and accepted[0].fileno() >= _room():
            return self._make_room(*accepted)
        return accepted

    def _make_room(self, sock: Any, address: Any) -> Any:
        """End the connection that has been without a request for longest, to free a descriptor."""
        limits = limits_of(self)
        if not (limits.idle.drop_oldest() or limits.heads.drop_oldest()):
            return sock, address
        lower = gevent.socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
        sock.close()
        self._tell_of_crowd()
        return lower, address

    def _tell_of_crowd(self) -> None:
        now = time.monotonic()
        if now - self._last_crowd >= _ACCEPT_NEWS:
            _logger.warning(
                "descriptors run out: connections that wait for a request are closed, the oldest "
                "first, to keep some for who is connected. Raise ulimit -n if they are no attack"
            )
        self._last_crowd = now

    def _wait_for_room(self, exc: OSError) -> None:
        """Stop accepting for a moment: the socket stays readable, and the loop would spin."""
        now = time.monotonic()
        if now - self._last_without_room >= _ACCEPT_NEWS:
            _logger.error(
                "cannot accept connections: %s. Those that are open are served on; raise "
                "ulimit -n, or lower max_connections so that clients get 503 before",
                exc.strerror,
            )
        self._last_without_room = now
        self.stop_accepting()
        self._timer = self.loop.timer(_ACCEPT_PAUSE)
        self._timer.start(self._start_accepting_if_started)

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one plain connection; blocks until it is closed or detached."""
        # The clock of the first request starts at the accept.
        limits_of(self).heads.begin()
        self._serve(self._make_handler(sock, address))

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Serve one TLS connection; the socket is closed unless it was detached."""
        limits_of(self).heads.begin()
        ssl_socket = self._wrap(client_socket, address)
        if ssl_socket is None:
            return
        handler = self._make_handler(ssl_socket, address)
        try:
            self._serve(handler)
        finally:
            if not handler.is_detached:
                ssl_socket.close()

    def _serve(self, handler: WebSocketHandler) -> None:
        self._serving.add(handler)
        try:
            handler.handle()
        except BaseException as exc:
            # An error past the handler, of a log's handler for one: only this connection ends.
            report(handler.client_address, type(exc), exc, exc.__traceback__)
        finally:
            self._serving.discard(handler)

    def _wrap(self, client_socket: Any, address: Any) -> Any:
        """The TLS socket after its handshake, or None when there was none in time."""
        heads, ssl_socket, is_secure = limits_of(self).heads, None, False
        try:
            # In two steps, so that there is a socket to close if the second one is ended.
            options = {**self.ssl_args, "do_handshake_on_connect": False}
            ssl_socket = self.wrap_socket(client_socket, **options)
            ssl_socket.do_handshake()
            is_secure = True
        except Late:
            _logger.debug("no TLS handshake with %s in %g s", address, heads.seconds)
        except OSError as exc:
            # No warning: port scans and plain http:// requests are everyday.
            _logger.debug("TLS handshake with %s failed: %s", address, exc)
        finally:
            if not is_secure:
                heads.end()
                if ssl_socket is not None:
                    ssl_socket.close()
        return ssl_socket if is_secure else None

    def start_draining(self) -> None:
        """Accept nothing more; connections that wait for a request end, others after theirs."""
        self.is_draining = True
        self.close()
        for handler in list(self.idle_handlers):
            stop_reading(handler)

    def release_websockets(self) -> None:
        """End the WebSockets that applications have by ``wsgi.websocket``: they read the end."""
        for client in list(self.clients.values()):
            if client.ws.handler is not None:
                stop_reading(client.ws.handler)

    def _make_handler(self, sock: Any, address: Any) -> WebSocketHandler:
        if isinstance(address, tuple) and address[0].startswith(_MAPPED) and "." in address[0]:
            # RFC 4291, section 2.5.5.2: it is of IPv4, and known as such to everybody else.
            address = (address[0].removeprefix(_MAPPED), address[1])
        handler: WebSocketHandler = self.handler_class(sock, address, self)
        if self.head_limits is not None:
            handler.head_limits = self.head_limits
        return handler


def drain(server: WSGIServer, code: CloseCode, timeout: float) -> None:
    """Close every connection with `code` and wait for requests that run, `timeout` seconds at most.

    Nobody is accepted from the first moment on. Blocks the calling greenlet.
    """
    deadline = time.monotonic() + timeout
    server.start_draining()
    info.shutdown(code, timeout)
    server.release_websockets()
    handlers = server.handlers if server.pool is None else server.pool
    if handlers is not None:
        handlers.join(max(0.1, deadline - time.monotonic()))


def grace_period() -> float:
    """Seconds that going down may take: the longest of this process's middlewares."""
    return max((each.settings.grace_period for each in info.middlewares()), default=_GRACE_PERIOD)


def _room() -> int:
    """The lowest descriptor that connections without a request leave to others."""
    if not _HAS_LIMITS:
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - max(_MIN_SPARE, limit // 20)


def head_limits() -> HeadLimits | None:
    """The limits of a request's head: the least of this process's middlewares; None without any."""
    sizes = [each.settings.max_head_size for each in info.middlewares()]
    return HeadLimits(size=min(sizes)) if sizes else None


def freeze_heap() -> None:
    """Have the garbage collector pass over all that is loaded now; for a process of our own.

    It would look at all of it again and again: 13 ms each time for Flask alone, in which nobody is
    served, and a tenth of what connects cost.
    """
    gc.collect()
    gc.freeze()


def serve(
    server: WSGIServer,
    stopping: AsyncResult | None = None,
    on_ready: Callable[[], None] | None = None,
) -> CloseCode:
    """Serve until SIGTERM, SIGINT or a close code set in `stopping`; then drain and return it.

    `on_ready` is called once the server accepts and signals are taken. A second SIGINT ends the
    process at once. Call it in the main thread; blocks. Raises `OSError` when the address cannot
    be listened on.
    """
    stopping = AsyncResult() if stopping is None else stopping
    server.take_settings()
    server.start()
    signals = _Signals(stopping)
    try:
        if on_ready is not None:
            on_ready()
        code = CloseCode(stopping.get())
        drain(server, code, grace_period())
    finally:
        signals.give_back()
    return code


class _Signals:
    """Takes SIGTERM and SIGINT until the end; a forked child has them as they were before."""

    def __init__(self, stopping: AsyncResult) -> None:
        self._stopping = stopping
        # Not gevent's signal watchers: a callback that never yields would hold them up.
        self._previous = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        forget_in_children(self)

    def give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def forked(self) -> None:
        """Else whoever forks a process could not end it: it would tell clients that it has not."""
        self.give_back()

    def _stop(self, number: int, frame: object) -> None:
        if not self._stopping.ready():
            self._stopping.set(CloseCode.GOING_AWAY)
        elif number == signal.SIGINT:
            console.flush(_LAST_LINES)
            os._exit(_INTERRUPTED)
