"""The handler and the capability that it puts into the environ, on real sockets."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import pywsgi
from geventwebsocket.resource import Resource, WebSocketApplication

from support import Server, wait_until
from support.accepting import (
    ACCEPTED,
    HEADERS,
    Accepting,
    echo,
    read_head,
    read_now,
    refusing,
)
from support.servers import UPGRADE, Tls, read_all
from wsmiddleware.handler import WebSocketHandler
from wsmiddleware.upgrade import find_upgrade

Serve = Callable[..., Server]


def test_accept_sends_the_headers_and_gives_the_transport(serve: Serve) -> None:
    app = Accepting()
    with serve(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        assert read_head(client) == ACCEPTED + b"Sec-WebSocket-Accept: x\r\n\r\n"
        transport, pending = app.got.get(timeout=5)
        assert pending == b""
        transport.send(b"to the client")
        assert client.recv(100) == b"to the client"
        client.sendall(b"to the server")
        assert read_now(transport) == b"to the server"
        transport.close()
        assert client.recv(100) == b""


def test_accept_gives_what_came_behind_the_handshake_without_blocking(serve: Serve) -> None:
    app = Accepting()
    with serve(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE + b"first frames")
        transport, pending = app.got.get(timeout=5)
        assert pending == b"first frames"
        transport.close()


@pytest.mark.parametrize("is_given", [False, True])
def test_accept_gives_what_an_application_has_left(serve: Serve, is_given: bool) -> None:
    class Handler(WebSocketHandler):
        """With a stream of its own, as pywsgi allows."""

        def __init__(self, sock: Any, *args: Any) -> None:
            super().__init__(sock, *args, sock.makefile("rb") if is_given else None)

    app = Accepting()

    def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.input"].read(1) == b"f"
        return app(environ, start_response)

    with serve(reading, handler_class=Handler).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        gevent.sleep(0.05)
        client.sendall(b"first frames")
        transport, pending = app.got.get(timeout=5)
        assert pending == b"irst frames"
        client.sendall(b"second")
        assert read_now(transport) == b"second"
        transport.close()
        assert read_head(client).startswith(ACCEPTED)
        assert client.recv(100) == b""


def test_accept_leaves_nothing_in_the_tls_layer(serve: Serve, tmp_path: Path) -> None:
    tls, app = Tls(tmp_path), Accepting()
    frames = bytes(range(256)) * 60  # more than the handler's buffer, less than a TLS record
    with serve(app, ssl_context=tls.server, client_ssl=tls.client).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE + frames)
        transport, pending = app.got.get(timeout=5)
        assert pending == frames
        transport.close()


def test_a_tls_connection_outlives_its_handler(serve: Serve, tmp_path: Path) -> None:
    tls, app = Tls(tmp_path), Accepting()
    with serve(app, ssl_context=tls.server, client_ssl=tls.client).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        assert read_head(client).startswith(ACCEPTED)
        assert app.returned.wait(5)
        transport, _ = app.got.get(timeout=5)
        transport.send(b"still here")
        assert client.recv(100) == b"still here"
        transport.close()
        assert client.recv(100) == b""


def test_a_kept_environ_keeps_no_socket_open(serve: Serve, tmp_path: Path) -> None:
    tls, app = Tls(tmp_path), Accepting()
    kept: list[Any] = []

    def keeping(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        kept.append(environ["wsgi.input"])
        return app(environ, start_response)

    with serve(keeping, ssl_context=tls.server, client_ssl=tls.client).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        transport, _ = app.got.get(timeout=5)
        assert app.environ["wsgi.input"].read() == b""
        transport.close()
        assert transport.fileno() == -1
        read_head(client)
        assert client.recv(1) == b""


def test_a_foreign_server_keeps_a_tls_handler_until_closed(tmp_path: Path) -> None:
    tls, app = Tls(tmp_path), Accepting()
    server = pywsgi.WSGIServer(
        ("127.0.0.1", 0), app, handler_class=WebSocketHandler, log=None, ssl_context=tls.server
    )
    server.start()
    try:
        with Server(server.server_port, tls.client).socket() as client:
            client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
            read_head(client)
            transport, _ = app.got.get(timeout=5)
            gevent.idle()
            assert not app.returned.is_set()
            transport.send(b"still here")
            assert client.recv(100) == b"still here"
            transport.close()
            app.closed.set()
            assert app.returned.wait(5)
    finally:
        server.stop()


def test_nagle_is_off(serve: Serve) -> None:
    app = Accepting()
    with serve(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        transport, _ = app.got.get(timeout=5)
        with socket.socket(fileno=socket.dup(transport.fileno())) as same:
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()


def test_a_refused_upgrade_ends_the_connection(serve: Serve) -> None:
    paths = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        paths.append(environ["PATH_INFO"])
        return refusing(environ, start_response)

    with serve(app).socket() as client:
        client.sendall(b"GET /one HTTP/1.1\r\n" + UPGRADE + b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nno")
    assert paths == ["/one"]


def test_a_refused_upgrade_waits_for_no_body(serve: Serve) -> None:
    with serve(refusing).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nContent-Length: 1000000\r\n" + UPGRADE)
        assert read_all(client).startswith(b"HTTP/1.1 403")


def test_close_joins_what_stands_in_connection(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("426 Upgrade Required", [("Connection", "Upgrade")])
        return []

    with serve(app).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE)
        assert b"\r\nConnection: Upgrade, close\r\n" in read_all(client)


def test_plain_requests_share_a_connection(serve: Serve) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(refusing).socket() as client:
        for _ in range(2):
            client.sendall(request)
            assert b"Content-Length: 2\r\n" in read_head(client)
            assert client.recv(2) == b"no"


def test_a_response_behind_the_101_is_dropped(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    app = Accepting()
    with serve(app).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        read_head(client)
        transport, _ = app.got.get(timeout=5)
        assert app.returned.wait(5)
        gevent.idle()
        transport.close()
        assert read_all(client) == b""
    assert "Traceback" not in capfd.readouterr().err


def test_accept_after_an_answer_is_an_error(serve: Serve) -> None:
    kept: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        kept.append(find_upgrade(environ))
        return refusing(environ, start_response)

    assert serve(app).get("/").status == 403
    with pytest.raises(RuntimeError, match="answered already"):
        kept[0].accept(HEADERS)


def test_the_log_shows_the_101(serve: Serve) -> None:
    class Log(list[str]):
        write = list.append

    app, log = Accepting(), Log()
    with serve(app, log=log).socket() as client:
        client.sendall(b"GET /chat HTTP/1.1\r\n" + UPGRADE)
        transport, _ = app.got.get(timeout=5)
        wait_until(lambda: log)
        assert re.fullmatch(
            r"127\.0\.0\.1 - - \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
            r'"GET /chat HTTP/1\.1" 101 \d+ \d+\.\d{6}\n',
            log[0],
        )
        transport.close()


def test_wsgi_websocket_upgrades_at_its_first_use(serve: Serve) -> None:
    with serve(echo).connect("/echo") as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
        client.send(b"\x00\x01")
        assert client.recv(timeout=5) == b"\x00\x01"


def test_wsgi_websocket_works_under_tls(serve: Serve, tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with serve(echo, ssl_context=tls.server, client_ssl=tls.client).connect("/echo") as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"


def test_wsgi_websocket_unused_leaves_the_answer_to_the_application(serve: Serve) -> None:
    with serve(echo).socket() as client:
        client.sendall(b"GET /other HTTP/1.1\r\n" + UPGRADE)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nContent-Length: 2\r\n" in answer


def test_wsgi_websocket_tells_about_the_request_without_upgrading(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        text = f"{websocket.path} {websocket.version} {bool(websocket)}"
        start_response("400 Bad Request", [])
        return [text.encode()]

    with serve(app).socket() as client:
        client.sendall(b"GET /path HTTP/1.1\r\n" + UPGRADE)
        assert read_all(client).endswith(b"\r\n\r\n/path 13 True")


def test_wsgi_websocket_is_there_for_valid_upgrades_only(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [str("wsgi.websocket" in environ).encode()]

    server = serve(app)
    assert server.get("/").text == "False"
    with server.socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE.replace(b"dGhl", b"dGh"))
        assert read_all(client).endswith(b"False")


def test_wsgi_websocket_is_closed_behind_the_application(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.websocket"].send("bye")
        return [b"dropped"]

    with serve(app).socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + UPGRADE)
        read_head(client)
        assert read_all(client) == b"\x81\x03bye\x88\x00"


def test_applications_of_gevent_websocket_itself_work(serve: Serve) -> None:
    class Shout(WebSocketApplication):  # type: ignore[misc]
        @staticmethod
        def protocol_name() -> str:
            return "shout"

        def on_message(self, message: str | None) -> None:
            if message is not None:
                self.ws.send(message.upper())

    server = serve(Resource([("^/shout$", Shout)]))
    with server.connect("/shout", subprotocols=["whisper", "shout"]) as client:
        assert client.subprotocol == "shout"
        client.send("hello")
        assert client.recv(timeout=5) == "HELLO"


def test_flask_socketio_works_beside_us(serve: Serve) -> None:
    flask = pytest.importorskip("flask")
    flask_socketio = pytest.importorskip("flask_socketio")
    app = flask.Flask(__name__)
    sockets = flask_socketio.SocketIO(app, async_mode="gevent")
    sockets.on("shout")(lambda text: text.upper())

    with serve(app).connect("/socket.io/?EIO=4&transport=websocket") as client:
        assert str(client.recv(timeout=5)).startswith('0{"sid":')  # Engine.IO: open
        client.send("40")  # Socket.IO: connect
        assert str(client.recv(timeout=5)).startswith('40{"sid":')
        client.send('421["shout","hello"]')  # an event that asks for an acknowledgement
        assert client.recv(timeout=5) == '431["HELLO"]'


# -- what a request may look like -------------------------------------------------------------


@pytest.mark.parametrize("head", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_body_that_nobody_reads_is_waited_for_as_long_as_a_request(serve: Serve, head: str) -> None:
    class Handler(WebSocketHandler):
        handshake_timeout = 0.1

    with serve(refusing, handler_class=Handler).socket() as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        # One answer, and the end: nothing of what has come late is a request.
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 403 ") and answer.count(b"HTTP/1.1") == 1


def test_body_that_nobody_reads_and_that_comes_keeps_the_connection(serve: Serve) -> None:
    with serve(refusing).socket() as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
            assert b"HTTP/1.1 403 " in read_head(client)  # behind the body of the one before
            gevent.sleep(0.01)
            client.sendall(b"hello")


HIDING = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: 34\r\n",
    "two lengths, folded": b"Content-Length: 0\r\nX: a\r\n b\r\ncontent-length: 34\r\n",
    "a blank behind the name": b"Content-Length : 34\r\n",
    "a line that is no header": b"garbage\r\nContent-Length: 34\r\n",
    "an empty name": b": x\r\nContent-Length: 34\r\n",
}


@pytest.mark.parametrize("case", HIDING)
def test_head_that_would_hide_a_body_is_refused(serve: Serve, case: str) -> None:
    app = Accepting()
    with serve(app).socket() as client:
        hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + HIDING[case] + b"\r\n" + hidden)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://example.com/chat?x=1", "example.com /chat x=1"),
        ("HTTP://example.com:8000", "example.com:8000 / "),
        ("https://example.com?x", "example.com / x"),
        ("/http://example.com/", "x /http://example.com/ "),
    ],
)
def test_target_may_be_a_whole_url_and_its_host_counts(
    serve: Serve, target: str, expected: str
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [" ".join(environ[name] for name in names).encode()]

    names = ("HTTP_HOST", "PATH_INFO", "QUERY_STRING")
    with serve(app).socket() as client:
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())
        assert read_all(client).split(b"\r\n\r\n", 1)[1].strip(b"\r\n0").decode().endswith(expected)
