"""The gunicorn worker, and its short name.

::

    gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker app:app
    gunicorn -c python:wsmiddleware.gunicorn -k geventwebsocket app:app

The short name ``geventwebsocket`` works as soon as gunicorn's configuration has imported this
module: by ``-c`` as above, or by ``import wsmiddleware.gunicorn`` in a ``gunicorn.conf.py``.

The worker is gunicorn's pywsgi worker with our server. Before it ends it tells its clients: 1001
at SIGTERM, SIGINT and SIGQUIT, 1012 where a new worker takes its place (SIGHUP, ``max_requests``,
``--reload``).
"""

# gunicorn reads a configuration module's names as settings where they are called like one
# (`workers`, `timeout`, `reload` …). No name here may be.

from __future__ import annotations

import mmap
import struct
from typing import Any

import gevent
from gevent.event import Event

from wsmiddleware import info
from wsmiddleware import server as servers
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.server import WSGIServer

try:
    import gunicorn.workers
    from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler
except (ImportError, RuntimeError) as exc:  # RuntimeError is what gunicorn makes of some of them
    message = 'the gunicorn worker needs what comes with: pip install "gunicorn[gevent]"'
    raise ImportError(f"{message} ({exc})") from exc

__all__ = ["GeventWebSocketWorker", "Handler"]

gunicorn.workers.SUPPORTED_WORKERS["geventwebsocket"] = (
    "wsmiddleware.gunicorn.GeventWebSocketWorker"
)

# Seconds that SIGQUIT and SIGINT leave for the close frames.
_QUICK = 1.0

_NO_BACKPLANE = (
    "%d workers and no backplane: broadcasts and websocket_info() reach the clients of one worker "
    "only. Run one worker (--workers 1): it serves many connections."
)


class Handler(WebSocketHandler, PyWSGIHandler):  # type: ignore[misc]
    """Our handler, with gunicorn's access log."""

    def log_request(self) -> None:
        """Log every request that could be parsed."""
        # gunicorn's log takes the line from the environ; what timed out or was no HTTP has none.
        if self.environ is not None:
            super().log_request()


class _Generation:
    """A number in memory that the master shares with all of its workers."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)
        self._config: Any = None

    def read(self) -> int:
        """The master's latest."""
        return int(struct.unpack("Q", self._memory[:8])[0])

    def current(self, config: Any) -> int:
        """In the master: the number that belongs to a worker made with `config`."""
        if config is not self._config:
            # A reload makes a new configuration; every other cause of a new worker does not.
            self._config = config
            self._memory[:8] = struct.pack("Q", self.read() + 1)
        return self.read()


class GeventWebSocketWorker(GeventPyWSGIWorker):  # type: ignore[misc]
    """gunicorn's gevent worker that serves WebSockets and closes them before it ends."""

    wsgi_handler = Handler

    alive: bool

    # At SIGHUP a worker sees the same SIGTERM as at the end; that its generation is not the latest
    # any more tells them apart.
    _generation = _Generation()

    def __init__(self, *args: Any, **options: Any) -> None:
        # Runs in the master, before the fork.
        super().__init__(*args, **options)
        self._own_generation = self._generation.current(self.cfg)
        self._servers: list[WSGIServer] = []
        self._drain: gevent.Greenlet | None = None
        self._drained = Event()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Say at the start what several workers cannot do."""
        if cfg.workers > 1:
            log.warning(_NO_BACKPLANE, cfg.workers)

    def server_class(self, listener: Any, **options: Any) -> WSGIServer:
        """Make the server for one listening socket."""
        server = WSGIServer(listener, **options)
        server.handshake_timeout = servers.handshake_timeout()
        server.head_limits = servers.head_limits()
        server.on_request = self._count_request
        self._servers.append(server)
        return server

    def run(self) -> None:
        """Serve until told to end, and return when the clients have been told."""
        code = CloseCode.SERVICE_RESTART  # gunicorn's own reloader sends no signal
        servers.freeze_heap()
        try:
            super().run()
        except SystemExit:
            code = CloseCode.GOING_AWAY  # the master has gone
            raise
        finally:
            self._start_draining(code, self._grace_period())
            while not self._drained.wait(1.0):
                self.notify()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: the end of the server, or a reload."""
        is_old = self._own_generation < self._generation.read()
        code = CloseCode.SERVICE_RESTART if is_old else CloseCode.GOING_AWAY
        self._start_draining(code, self._grace_period())
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT, SIGINT: a quick end."""
        # Not the base class's: it would end before the clients are told.
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        self._start_draining(CloseCode.GOING_AWAY, _QUICK)
        self._drained.wait(_QUICK)
        super().handle_quit(sig, frame)

    def _count_request(self) -> None:
        # gunicorn's other workers count in their own HTTP loop, which pywsgi replaces.
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self._start_draining(CloseCode.SERVICE_RESTART, self._grace_period())
            self.alive = False

    def _grace_period(self) -> float:
        return min(servers.grace_period(), float(self.cfg.graceful_timeout))

    def _start_draining(self, code: CloseCode, timeout: float) -> None:
        """Once; the rest of gunicorn's own way down goes on beside it."""
        if self._drain is None:
            self._drain = gevent.spawn(self._drain_all, code, timeout)

    def _drain_all(self, code: CloseCode, timeout: float) -> None:
        try:
            for server in self._servers:
                server.start_draining()
            info.shutdown(code, timeout)
            for server in self._servers:
                server.release_websockets()
        finally:
            self._drained.set()
