"""What is found in the environ, and how gevent-websocket's own handler is made the best of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import pywsgi
from gevent.event import AsyncResult
from gevent.pool import Pool
from geventwebsocket.handler import WebSocketHandler as StockWebSocketHandler

from support import Server
from support.accepting import Accepting, read_head, read_now
from support.servers import UPGRADE, Tls
from wsmiddleware.upgrade import StockUpgrade, find_upgrade, is_stock_server

Serve = Callable[..., Server]


@pytest.fixture
def stock(request: pytest.FixtureRequest) -> Iterable[Callable[..., Server]]:
    """A server with gevent-websocket's own handler, in a pool as gunicorn has it."""
    servers = []

    def start(app: Any, client_ssl: Any = None, **options: Any) -> Server:
        server = pywsgi.WSGIServer(
            ("127.0.0.1", 0),
            app,
            handler_class=StockWebSocketHandler,
            log=None,
            spawn=Pool(10),
            **options,
        )
        server.start()
        servers.append(server)
        start.pool = server.pool  # type: ignore[attr-defined]
        return Server(server.server_port, client_ssl)

    yield start
    for server in servers:
        server.stop(timeout=1)


@pytest.mark.parametrize("is_secure", [False, True])
def test_the_stock_handler_parks_until_closed(
    stock: Serve, tmp_path: Path, is_secure: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    tls, app = Tls(tmp_path), Accepting()
    options = {"ssl_context": tls.server, "client_ssl": tls.client} if is_secure else {}
    with stock(app, **options).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE + b"first frames")
        assert read_head(client).startswith(b"HTTP/1.1 101 ")
        transport, pending = app.got.get(timeout=5)
        assert pending == b"first frames"
        assert not app.returned.is_set()
        transport.send(b"to the client")
        assert client.recv(100) == b"to the client"
        client.sendall(b"to the server")
        assert read_now(transport) == b"to the server"
        transport.close()
        app.closed.set()
        # No close frame of the stock object behind ours.
        assert client.recv(100) == b""
        assert app.returned.wait(5)
    gevent.idle()
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_stock_handler_breaks_its_connection_off(stock: Serve) -> None:
    app = Accepting()
    with stock(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        read_head(client)
        transport, _ = app.got.get(timeout=5)
        pool: Pool = stock.pool  # type: ignore[attr-defined]
        pool.kill(block=False)
        # The connection sees the end of its stream while the handler still waits for it.
        assert read_now(transport) == b""
        transport.close()
        app.closed.set()
        assert app.returned.wait(5)
        assert client.recv(100) == b""


def test_a_stock_upgrade_is_taken_once(stock: Serve) -> None:
    raised: AsyncResult[BaseException] = AsyncResult()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        upgrade = find_upgrade(environ)
        assert isinstance(upgrade, StockUpgrade)
        assert not upgrade.speaks_first
        transport, _ = upgrade.accept([])
        try:
            upgrade.accept([])
        except RuntimeError as exc:
            raised.set(exc)
        transport.close()
        return []

    with stock(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        assert "upgraded already" in str(raised.get(timeout=5))


def stock_or_not(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """An application that tells what it runs under."""
    start_response("200 OK", [])
    return [f"{find_upgrade(environ) is not None} {is_stock_server(environ)}".encode()]


def test_a_plain_request_knows_its_server(stock: Serve, serve: Serve) -> None:
    assert stock(stock_or_not).get("/").text == "False True"
    assert serve(stock_or_not).get("/").text == "True False"
    server = pywsgi.WSGIServer(("127.0.0.1", 0), stock_or_not, log=None)
    server.start()
    try:
        assert Server(server.server_port).get("/").text == "False False"
    finally:
        server.stop()


def test_no_upgrade_is_found_where_there_is_none() -> None:
    assert find_upgrade({}) is None
    assert find_upgrade({"wsgi.websocket": None}) is None
    assert not is_stock_server({})
