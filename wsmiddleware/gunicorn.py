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

import dataclasses
import mmap
import signal
import struct
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import gevent

# Here, before the application: what is imported first is torn down last. With --preload a logging
# handler of the application would find the lock of a module that has gone: "Exception ignored".
import gevent.thread
from gevent.event import Event

from wsmiddleware import info
from wsmiddleware import server as servers
from wsmiddleware.forwarding import Forwarded, Forwarding, Trust, mount
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.log import escape
from wsmiddleware.protocol import proxy
from wsmiddleware.protocol.frames import CloseCode
from wsmiddleware.protocol.head import HeadError, HeadLimits
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

# What ends a worker.
_ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

# Seconds that SIGQUIT and SIGINT leave for the close frames.
_QUICK = 1.0

_NO_BACKPLANE = (
    "%d workers and no backplane: broadcasts and websocket_info() reach the clients of one worker "
    "only. Run one worker (--workers 1): it serves many connections."
)


# Settings that gunicorn's own gevent worker heeds and this one does not, with what to do instead.
_NOT_HEEDED = {
    "pre_request": "it is not called",
    "post_request": "it is not called",
    "protocol": "HTTP alone is spoken",
    "uwsgi_allow_ips": "HTTP alone is spoken",
    "http_protocols": "HTTP/1.1 alone is spoken: a proxy in front may speak HTTP/2",
    "http2_cleartext": "HTTP/1.1 alone is spoken: a proxy in front may speak HTTP/2",
    "http2_max_concurrent_streams": "HTTP/1.1 alone is spoken",
    "http2_initial_window_size": "HTTP/1.1 alone is spoken",
    "http2_max_frame_size": "HTTP/1.1 alone is spoken",
    "http2_max_header_list_size": "HTTP/1.1 alone is spoken",
    "http_parser": "heads are read by a parser of our own",
    "permit_unconventional_http_version": "versions are HTTP/0.9 to HTTP/1.9",
    "strip_header_spaces": "a blank before the colon of a header is a 400",
    "sendfile": "files are read and sent in pieces",
    "websocket_max_message_size": "set max_message_size, in websocket.json or beside it",
}

_PROXY_VERSIONS = {
    "off": (),
    "v1": (proxy.V1,),
    "v2": (proxy.V2,),
    "auto": (proxy.V1, proxy.V2),
}


def _find_ignored(config: Any) -> Iterator[str]:
    """A line for each setting that was given and that this worker passes over."""
    for name, remedy in _NOT_HEEDED.items():
        setting = config.settings.get(name)
        if setting is None:  # of another version of gunicorn
            continue
        default = type(setting)()  # with its default, as the setting has it
        if setting.get() != default.get():
            yield f"{name} is not heeded by this worker: {remedy}"


def _head_limits(config: Any) -> HeadLimits:
    """gunicorn's limits where they were given; what is left at its default is ours."""
    limits = servers.head_limits() or HeadLimits()
    for field, name in (
        ("line", "limit_request_line"),
        ("fields", "limit_request_fields"),
        ("field_size", "limit_request_field_size"),
    ):
        setting = config.settings[name]
        if setting.get() != setting.default:
            limits = dataclasses.replace(limits, **{field: setting.get()})
    return limits


def _escaping(atoms: type[dict[str, Any]]) -> type[dict[str, Any]]:
    """What gunicorn's access log is filled with, so that nothing in it forges a line."""

    class Escaped(atoms):  # type: ignore[valid-type, misc]
        def __getitem__(self, key: str) -> Any:
            value = super().__getitem__(key)
            return escape(value) if isinstance(value, str) else value

    return Escaped


class Server(WSGIServer):
    """Our server, with what gunicorn's settings say of proxies."""

    def __init__(self, listener: Any, config: Any, **options: Any) -> None:
        self.forwarding = Forwarding(config)
        mode = config.proxy_protocol  # a bool before gunicorn 24.1, for version 1
        mode = {True: "v1", False: "off"}.get(mode, mode)
        #: Versions of the PROXY protocol that a connection may begin with, and who may.
        self.proxy_versions = _PROXY_VERSIONS[mode]
        self.proxy_trust = Trust(config.proxy_allow_ips)
        self.is_casefolding = bool(config.casefold_http_method)
        super().__init__(listener, **options)
        self.head_limits = _head_limits(config)
        self.take_settings(float(config.keepalive))


class Handler(WebSocketHandler, PyWSGIHandler):  # type: ignore[misc]
    """Our handler, with gunicorn's access log and what it takes from proxies."""

    server: Server

    _is_first = True
    _is_trusted = False
    _proxied_for: proxy.ProxiedFor | None = None
    _forwarded: Forwarded
    #: `PATH_INFO` where the application is mounted below the root.
    _path_info: str | None = None

    def read_preamble(self) -> None:
        """The PROXY protocol's header, before the first request alone."""
        if self._is_first:
            self._is_first = False
            self._is_trusted = self.server.forwarding.trusts(self.client_address)
            if self.server.proxy_versions:
                self._read_proxy_header(self.server.proxy_versions)
        super().read_preamble()

    def _read_proxy_header(self, versions: tuple[bytes, ...]) -> None:
        size = max(map(len, versions))
        if not proxy.is_beginning(self.rfile.peek()[:size], versions):
            return
        data = self.rfile.read1(size)
        while len(data) < size and proxy.is_beginning(data, versions):
            if not (piece := self.rfile.read1(size - len(data))):
                break
            data += piece
        if not data.startswith(versions):
            self.unread(data)  # a request that begins alike, in pieces
            return
        if self.client_address not in self.server.proxy_trust:
            raise HeadError(HTTPStatus.FORBIDDEN, "proxy_allow_ips does not hold this peer")
        while count := proxy.missing(data):
            if not (piece := self.rfile.read1(count)):
                break
            data += piece
        self._proxied_for = proxy.parse_proxy_header(data)

    def read_request(self, raw_requestline: str) -> bool:
        """Read the head, and what a proxy says in it."""
        is_read = super().read_request(raw_requestline)
        self._forwarded = forwarded = self.server.forwarding.read(
            self.headers.items(), is_trusted=self._is_trusted
        )
        if self.server.is_casefolding:
            self.command = self.command.upper()
        mounted = forwarded.script_name
        self._path_info = mount(self.path, mounted) if mounted else None
        return is_read

    def get_environ(self) -> dict[str, Any]:
        """As gunicorn's other workers make it."""
        environ: dict[str, Any] = super().get_environ()
        scheme, script_name, headers = self._forwarded
        if scheme is not None:
            environ["wsgi.url_scheme"] = scheme
        if self._path_info is not None:
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = script_name, self._path_info
        for name, value in headers.items():
            environ[name] = f"{environ[name]},{value}" if name in environ else value
        if self._proxied_for is not None:
            _, environ["REMOTE_ADDR"], client_port, _, proxy_port = found = self._proxied_for
            environ["REMOTE_PORT"], environ["PROXY_PORT"] = str(client_port), str(proxy_port)
            environ["PROXY_PROTOCOL"], environ["PROXY_ADDR"] = found.protocol, found.proxy
        return environ

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


def _queued(master: Any) -> Iterator[object]:
    """The signals that a master has not seen to; it is the worker's own copy that is emptied."""
    queue = getattr(master, "SIG_QUEUE", ())
    if isinstance(queue, (list, tuple)):  # a list before gunicorn 24
        yield from queue
        return
    while not queue.empty():
        yield queue.get_nowait()


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
        self._has_begun = False
        self._drain: gevent.Greenlet | None = None
        self._drained = Event()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Say at the start what several workers cannot do, and which settings nobody heeds."""
        for line in _find_ignored(cfg):
            log.warning(line)
        if cfg.workers > 1:
            log.warning(_NO_BACKPLANE, cfg.workers)

    def init_process(self) -> None:
        """Serve, in the worker. What ends it may come at any moment."""
        # Since the fork the signals of this process went to its copy of the master, which does
        # nothing: that one's queue tells of them.
        master = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        for number in _ENDS:
            signal.signal(number, self.handle_exit)
        if _ENDS.intersection(_queued(master)):
            self.alive = False
        super().init_process()

    def init_signals(self) -> None:
        """Take the signals over; gunicorn has them at their defaults for a moment."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        try:
            super().init_signals()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)

    def server_class(self, listener: Any, **options: Any) -> WSGIServer:
        """Make the server for one listening socket."""
        address = listener.getsockname()
        if isinstance(address, tuple):
            options["environ"]["SERVER_NAME"] = address[0]  # or gevent asks the DNS
        if "ssl_context" in options:
            # It offers HTTP/2 where http_protocols has that.
            options["ssl_context"].set_alpn_protocols(["http/1.1"])
        if (atoms := getattr(self.log, "atoms_wrapper_class", None)) is not None:
            self.log.atoms_wrapper_class = _escaping(atoms)
        server = Server(listener, self.cfg, **options)
        server.is_draining = self._drain is not None
        server.on_request = self._count_request
        self._servers.append(server)
        return server

    def run(self) -> None:
        """Serve until told to end, and return when the clients have been told."""
        code = CloseCode.SERVICE_RESTART  # gunicorn's own reloader sends no signal
        servers.freeze_heap()
        self._has_begun = True
        try:
            if self.alive:  # else the end has come before
                super().run()
        except SystemExit:
            code = CloseCode.GOING_AWAY  # the master has gone
            raise
        finally:
            self._start_draining(code, self._grace_period())
            while not self._drained.wait(1.0):
                # Not our own notify(), which ends the worker at once where the master has gone.
                self.tmp.notify()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: the end of the server, or a reload."""
        if self._has_begun:
            is_old = self._own_generation < self._generation.read()
            code = CloseCode.SERVICE_RESTART if is_old else CloseCode.GOING_AWAY
            self._start_draining(code, self._grace_period())
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT, SIGINT: a quick end."""
        # Not the base class's: it would end before the clients are told.
        if self._has_begun:
            gevent.spawn(self._quit, sig, frame)
        else:
            super().handle_exit(sig, frame)

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
        deadline = time.monotonic() + timeout
        try:
            for server in self._servers:
                server.start_draining()
            info.shutdown(code, timeout)
            for server in self._servers:
                server.release_websockets()
            for server in self._servers:
                # gunicorn waits for requests as well, but not where the master has gone.
                server.pool.join(max(0.1, deadline - time.monotonic()))
        finally:
            self._drained.set()
