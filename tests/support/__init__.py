"""What tests share: servers in this process and beside it, an independent client, bounded waits."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websockets_connect

__all__ = [
    "ROOT",
    "Process",
    "Response",
    "Server",
    "connect",
    "let_pass",
    "running",
    "serving",
    "unmeasured",
    "wait_until",
    "websocket_request",
]

#: The checkout: README, example and documentation lie there.
ROOT = Path(__file__).resolve().parents[2]

#: Seconds after which something that should have happened has not.
PATIENCE = 10.0


def unmeasured(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`env` for a process whose coverage is not measured."""
    return {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}


def wait_until(
    condition: Callable[[], object],
    message: str | Callable[[], str] = "",
    timeout: float = PATIENCE,
) -> None:
    """Returns once `condition()` is true, for where no event tells; fails after `timeout`."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(text or f"not within {timeout} seconds: {condition}")
        gevent.sleep(0.005)


def let_pass(reactor: Any, seconds: float) -> None:
    """Returns once so much has passed by the clock that time-outs are judged by."""
    until = reactor.now + seconds
    wait_until(lambda: reactor.now >= until, timeout=seconds + PATIENCE)


def connect(url: str, **options: Any) -> AbstractContextManager[ClientConnection]:
    """A connection of the independent client, open within `with`.

    `options` are those of `websockets`. Its threads are greenlets here.
    """
    options.setdefault("open_timeout", PATIENCE)
    options.setdefault("close_timeout", PATIENCE)
    client: AbstractContextManager[ClientConnection]
    client = websockets_connect(url, proxy=None, **options)
    return client


def websocket_request(path: str, *, version: str = "1.1", **headers: str | None) -> bytes:
    """A valid opening handshake (RFC 6455 section 4.1), as bytes for `Server.socket`.

    A keyword changes a header, its `_` standing for `-`, or with `None` leaves it out.
    """
    valid: dict[str, str | None] = {
        "host": "127.0.0.1",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    changed = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    fields = {name: value for name, value in {**valid, **changed}.items() if value is not None}
    lines = [f"GET {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True)
class Server:
    """Where a server listens, and ways to talk to it."""

    port: int
    ssl: ssl.SSLContext | None = None
    host: str = "127.0.0.1"

    def url(self, path: str = "/") -> str:
        """The page's URL."""
        return f"http{'s' if self.ssl else ''}://{self.host}:{self.port}{path}"

    def ws_url(self, path: str) -> str:
        """The channel's URL."""
        return f"ws{'s' if self.ssl else ''}://{self.host}:{self.port}{path}"

    def connect(self, path: str, **options: Any) -> AbstractContextManager[ClientConnection]:
        """A connection of the independent client, open within `with`."""
        if self.ssl:
            options.setdefault("ssl", self.ssl)
        return connect(self.ws_url(path), **options)

    def request(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One plain HTTP request."""
        if self.ssl:
            http_connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, self.port, timeout=PATIENCE, context=self.ssl
            )
        else:
            http_connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        with contextlib.closing(http_connection):
            http_connection.request(method, path, body, dict(headers or {}))
            answer = http_connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, path: str, **headers: str) -> Response:
        """One GET; a header's `_` stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", path, headers=named)

    @contextlib.contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """A bare connection, for bytes that no client would send."""
        with socket.create_connection((self.host, self.port), timeout=PATIENCE) as plain:
            if not self.ssl:
                yield plain
                return
            with self.ssl.wrap_socket(plain, server_hostname=self.host) as secured:
                yield secured


@dataclass(frozen=True)
class Response:
    """A plain HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body, as text."""
        return self.body.decode()


@contextlib.contextmanager
def serving(
    app: Any, *, client_ssl: ssl.SSLContext | None = None, **options: Any
) -> Iterator[Server]:
    """`app` under our gevent server in this process; at the end its connections are closed."""
    from wsmiddleware import CloseCode
    from wsmiddleware.info import shutdown
    from wsmiddleware.server import WSGIServer

    options.setdefault("log", None)
    server = WSGIServer(("127.0.0.1", 0), app, **options)
    server.start()
    try:
        yield Server(server.server_port, client_ssl)
    finally:
        shutdown(CloseCode.GOING_AWAY, PATIENCE)
        server.stop(timeout=1)


@dataclass
class Process:
    """A server in a process of its own, and what it has printed."""

    popen: subprocess.Popen[str]
    server: Server = Server(0)
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """All that came on standard output and standard error."""
        return "".join(self.lines)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output}") from None


@contextlib.contextmanager
def running(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    ready: str = r"https?://127\.0\.0\.1:(?P<port>[1-9]\d*)",
) -> Iterator[Process]:
    """`python -m …` beside this process, once it has printed what `ready` matches.

    Give it port 0: the URL that it prints names the port it got. It is terminated at the end.
    """
    popen = subprocess.Popen(
        [sys.executable, "-u", "-m", *arguments],
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process = Process(popen)
    reader = gevent.spawn(_collect, process)

    def is_ready() -> re.Match[str] | None:
        if reader.dead:
            raise AssertionError(f"ended before it was ready:\n{process.output}")
        return re.search(ready, process.output)

    try:
        wait_until(is_ready, lambda: f"{ready!r} is not in:\n{process.output}", 3 * PATIENCE)
        found = is_ready()
        assert found
        if "port" in found.groupdict():
            process.server = Server(int(found["port"]))
        yield process
    finally:
        popen.terminate()
        try:
            popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        # A forked worker that is left over would hold the pipe open.
        reader.join(PATIENCE)
        reader.kill()
        assert popen.stdout
        popen.stdout.close()


def _collect(process: Process) -> None:
    assert process.popen.stdout
    process.lines.extend(iter(process.popen.stdout.readline, ""))
