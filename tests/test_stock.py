"""Under gevent-websocket's own handler: the 101 has gone out before the middleware is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
import pytest
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler as StockWebSocketHandler
from websockets.exceptions import ConnectionClosed
from werkzeug.exceptions import Unauthorized
from werkzeug.wrappers import Response

from support import Server, wait_until, websocket_request
from support.apps import App, wrap
from support.handshakes import ask, handshake
from wsmiddleware import WebSocketListener

Stock = Callable[[Any], Server]


@pytest.fixture
def stock() -> Iterator[Stock]:
    servers = []

    def start(app: Any) -> Server:
        server = pywsgi.WSGIServer(
            ("127.0.0.1", 0), app, handler_class=StockWebSocketHandler, log=None
        )
        server.start()
        servers.append(server)
        return Server(server.server_port)

    yield start
    for server in servers:
        server.stop(timeout=1)


def end_of(server: Server, path: str, **options: Any) -> tuple[int, str]:
    """The code and reason with which a connection is closed at once."""
    with server.connect(path, **options) as ws:
        with pytest.raises(ConnectionClosed):
            ws.recv(5)
        assert ws.close_code is not None and ws.close_reason is not None
        return ws.close_code, ws.close_reason


def asking(answer: Any) -> type[WebSocketListener]:
    class Asking(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def on_open(self, wsclient: Any) -> Any:
            return self.session.user_principal

    return Asking


def test_connection_lives_until_it_is_closed(stock: Stock) -> None:
    middleware = wrap()
    server = stock(middleware)
    with server.connect("/ws/echo") as ws:
        assert ws.recv(5) == "echo []"
        ws.send("hi")
        assert ws.recv(5) == "hi"
        assert middleware.registry.size == 1
    assert ws.close_code == 1000
    wait_until(lambda: middleware.registry.unfinished == 0)


def test_user_of_the_hook_is_the_principal(stock: Stock) -> None:
    with stock(wrap(listener=asking("ann"))).connect("/ws/echo") as ws:
        assert ws.recv(5) == "ann"


def test_no_channel_closes_with_4404(stock: Stock) -> None:
    assert end_of(stock(wrap()), "/ws/none") == (4404, "No such channel.")


def test_foreign_origin_closes_with_4403(stock: Stock) -> None:
    middleware = wrap()
    end = end_of(stock(middleware), "/ws/echo", origin="https://evil.example")
    assert end == (4403, "This origin may not connect.")
    assert middleware.metrics.refused == {403: 1}
    assert middleware.registry.unfinished == 0


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (False, (4403, "Not allowed.")),
        (None, (4403, "Not allowed.")),
        (Unauthorized(), (4401, "Unauthorized")),
        (Response("no", 402), (4402, "Payment Required")),
        (flask.Response("no", 499), (4499, "Refused")),
        (ValueError("s3cr3t"), (4500, "Internal error.")),
    ],
    ids=repr,
)
def test_refusal_of_the_hook_closes_with_4000_and_its_status(
    answer: Any, end: tuple[int, str], stock: Stock
) -> None:
    assert end_of(stock(wrap(listener=asking(answer))), "/ws/echo") == end


def test_no_room_closes_with_4503(stock: Stock) -> None:
    server = stock(wrap(max_connections=1))
    with server.connect("/ws/echo") as ws:
        ws.recv(5)
        assert end_of(server, "/ws/echo") == (4503, "Too many connections.")


def test_going_down_closes_with_4503(stock: Stock) -> None:
    middleware = wrap()
    server = stock(middleware)
    middleware.shutdown()
    assert end_of(server, "/ws/echo") == (4503, "Going down.")


def test_plain_request_is_refused_in_plain_http(stock: Stock) -> None:
    server = stock(wrap())
    get = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = ask(server, get % b"/ws/echo")
    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
    assert ask(server, get % b"/ws/none").status == 404
    assert ask(server, get.replace(b"GET", b"POST") % b"/ws/echo").status == 405


def test_handshake_that_the_handler_does_not_take_is_refused_in_plain_http(stock: Stock) -> None:
    """It looks for one token where there may be a list."""
    assert handshake(stock(wrap()), "/ws/echo", upgrade="h2c, websocket").status == 400


def test_handshake_that_only_the_handler_takes_is_refused(stock: Stock) -> None:
    """It speaks the drafts 7 and 8 too. The server's close frame has code 4426."""
    request = websocket_request("/ws/echo", sec_websocket_version="8")
    with stock(wrap()).socket() as sock:
        sock.sendall(request)
        received = b""
        while b"\r\n\r\n\x88" not in received:
            received += sock.recv(4096)
    assert received.partition(b"\x88")[2][1:3] == (4426).to_bytes(2, "big")


def test_nothing_is_agreed_to(stock: Stock) -> None:
    middleware = wrap(subprotocols=["chat"])
    with stock(middleware).connect("/ws/echo", subprotocols=["chat"]) as ws:
        assert ws.recv(5) == "echo []"
        assert ws.subprotocol is None
        (member,) = middleware.registry.members()
        session = member.wsclient.session
        assert (session.negotiated_subprotocol, session.extensions) == ("", "")
        ws.send("x" * 1000)
        assert ws.recv(5) == "x" * 1000


def test_upgrades_outside_the_prefix_are_the_applications(stock: Stock) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        websocket.send("own " + websocket.receive())
        return []

    with stock(wrap(app)).connect("/own") as ws:
        ws.send("protocol")
        assert ws.recv(5) == "own protocol"
    plain = App()
    assert stock(wrap(plain)).get("/page").text == "app /page"


def test_stock_gunicorn_worker_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrap()
    assert "cannot drain" not in caplog.text
    monkeypatch.setitem(sys.modules, "geventwebsocket.gunicorn.workers", sys)
    wrap()
    assert "cannot drain" in caplog.text
    assert "-k wsmiddleware.gunicorn.GeventWebSocketWorker" in caplog.text


def test_several_workers_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    app = wrap(listener=asking(True))
    server = pywsgi.WSGIServer(
        ("127.0.0.1", 0),
        app,
        handler_class=StockWebSocketHandler,
        log=None,
        environ={"wsgi.multiprocess": True},
    )
    server.start()
    try:
        for _ in range(2):
            with Server(server.server_port).connect("/ws/echo"):
                pass
    finally:
        server.stop(timeout=1)
    assert caplog.text.count("several workers") == 1
