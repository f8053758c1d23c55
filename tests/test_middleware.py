"""What is served where, and every plain refusal, on a real server and bare sockets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from support import Server, wait_until, websocket_request
from support.apps import App, Echo, first_message, status_of, wrap
from support.handshakes import ask, handshake
from wsmiddleware import ConfigError, WebSocketListener, WebSocketMiddleware

Serve = Callable[..., Server]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3
PLAIN = b"GET /behind HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App, serve: Serve) -> Server:
    return serve(wrap(app))


# -- the 101 ---------------------------------------------------------------------------------------


def test_answer_is_that_of_the_rfc(server: Server) -> None:
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert {
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
    } <= set(lines)
    assert "Content-Length" not in head.decode() and "Transfer" not in head.decode()


def test_accept_belongs_to_the_key(server: Server) -> None:
    key = base64.b64encode(bytes(range(16)))
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo", sec_websocket_key=key.decode()))
        assert base64.b64encode(digest) in sock.recv(4096)


def test_header_names_tokens_and_blanks_are_taken_as_http_does(server: Server) -> None:
    request = (
        b"GET /ws/echo HTTP/1.1\r\nhOST:x\r\nUPGRADE: h2c\r\nUpgrade: , WebSocket\r\n"
        b"connection: keep-alive,   UPGRADE\r\nSec-WebSocket-Key:   " + KEY.encode() + b" \t\r\n"
        b"SEC-WEBSOCKET-VERSION:13\r\nContent-Length: 0\r\n\r\n"
    )
    with server.socket() as sock:
        sock.sendall(request)
        assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")


def test_middlewares_around_see_the_101(serve: Serve, app: App) -> None:
    statuses: list[str] = []
    inner = wrap(app)

    def around(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def started(status: str, headers: Any, exc_info: Any = None) -> Any:
            statuses.append(status)
            return start_response(status, headers, exc_info)

        return inner(environ, started)

    server = serve(around)
    with server.connect("/ws/echo") as ws:
        assert ws.recv(5) == "echo []"
        ws.send("still works")
        assert ws.recv(5) == "still works"
    server.get("/ws/echo")
    assert statuses == ["101 Switching Protocols", "426 UPGRADE REQUIRED"]


# -- refusals, by status ---------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], int]] = {
    "no upgrade": ({"upgrade": None}, 426),
    "other upgrade": ({"upgrade": "h2c"}, 426),
    "no connection": ({"connection": None}, 426),
    "keep-alive": ({"connection": "keep-alive"}, 426),
    "HTTP/1.0": ({"version": "1.0"}, 400),
    "no host": ({"host": None}, 400),
    "empty host": ({"host": ""}, 400),
    "no key": ({"sec_websocket_key": None}, 400),
    "short key": ({"sec_websocket_key": "c2hvcnQ="}, 400),
    "no base64": ({"sec_websocket_key": "!" * 24}, 400),
    "body": ({"content_length": "5", "behind": b"hello"}, 400),
    "body that never comes": ({"content_length": "5"}, 400),
    "chunked": ({"transfer_encoding": "chunked", "behind": b"5\r\nhello\r\n0\r\n\r\n"}, 400),
    "no version": ({"sec_websocket_version": None}, 426),
    "version 8": ({"sec_websocket_version": "8"}, 426),
    "foreign origin": ({"origin": "https://evil.example"}, 403),
    "null origin": ({"origin": "null"}, 403),
    "empty origin": ({"origin": ""}, 403),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_handshake_is_refused_in_plain_http(case: str, server: Server, app: App) -> None:
    changes, status = REFUSALS[case]
    answer = handshake(server, "/ws/echo", **changes)  # reads to the end: the server closes
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Connection"] == "close"
    assert answer.text.endswith(".\n") and answer.text.count("\n") == 1
    assert answer.rest == b""
    assert "Sec-WebSocket-Accept" not in answer.headers
    if status == 426:
        assert answer.headers["Upgrade"] == "websocket"
    version = answer.headers["Sec-WebSocket-Version"]
    assert version == ("13" if "version" in case else None)
    assert not app.environs


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_method_gets_405(method: str, server: Server) -> None:
    request = websocket_request("/ws/echo").replace(b"GET", method.encode(), 1)
    answer = ask(server, request)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET"
    assert answer.headers["Connection"] == "close"


def test_post_with_a_body_gets_405_and_the_body_is_no_request(server: Server, app: App) -> None:
    head = b"POST /ws/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PLAIN)
    answer = ask(server, head + PLAIN)
    assert (answer.status, answer.rest) == (405, b"")
    assert not app.environs


@pytest.mark.parametrize(
    ("twice", "status"),
    [
        ("Sec-WebSocket-Key: " + KEY, 400),
        ("Host: evil.example", 400),
        ("Sec-WebSocket-Version: 13", 426),
        ("Sec-WebSocket-Version: 8", 426),
    ],
)
def test_header_that_may_stand_once_is_refused_twice(
    twice: str, status: int, server: Server
) -> None:
    request = websocket_request("/ws/echo").removesuffix(b"\r\n") + f"{twice}\r\n\r\n".encode()
    assert ask(server, request).status == status


@pytest.mark.parametrize("host", ["u@localhost", "a/b", "a b", "[::1", "x:port", "a,b", ""])
def test_host_that_is_none_is_refused(host: str, server: Server) -> None:
    assert ask(server, websocket_request("/ws/echo", host=host)).status == 400


@pytest.mark.parametrize(
    "host", ["localhost", "a_b.example:8000", "[::1]:80", "[2001:db8::1]", "x:"]
)
def test_host_that_is_one_is_not(host: str, server: Server) -> None:
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo", host=host))
        assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")


def test_two_origins_are_none(server: Server) -> None:
    origin = f"Origin: http://127.0.0.1:{server.port}\r\n".encode()
    host = f"127.0.0.1:{server.port}"
    request = websocket_request("/ws/echo", host=host).removesuffix(b"\r\n")
    assert ask(server, request + origin + origin + b"\r\n").status == 403


def test_checks_come_in_the_order_of_the_specification(serve: Serve) -> None:
    class Last(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> bool:
            return False

    middleware = wrap(listener=Last, max_connections=1)
    server = serve(middleware)
    middleware.register("place", Echo)

    wrong: dict[str, Any] = {
        "connection": "close",
        "sec_websocket_key": "short",
        "sec_websocket_version": "8",
        "origin": "https://evil.example",
    }
    post = websocket_request("/ws/echo", **wrong).replace(b"GET", b"POST", 1)
    found = [ask(server, post.replace(b"echo", b"none")).status, ask(server, post).status]
    with server.connect("/ws/place") as ws:
        ws.recv(5)
        for name in [*wrong, ""]:
            found.append(handshake(server, "/ws/echo", **wrong).status)
            wrong.pop(name, None)
    wait_until(lambda: middleware.registry.unfinished == 0)
    found.append(handshake(server, "/ws/echo").status)
    assert found == [404, 405, 426, 400, 426, 403, 503, 403]


@pytest.mark.parametrize("path", ["/ws/echo", "/ws/none"])
def test_nothing_behind_a_refused_handshake_is_parsed(path: str, server: Server, app: App) -> None:
    answer = handshake(server, path, behind=PLAIN, origin="https://evil.example")
    assert answer.status in (403, 404)
    assert answer.rest == b""
    assert not app.environs


def test_nothing_behind_a_plain_request_to_a_channel_is_parsed(server: Server, app: App) -> None:
    get = b"GET /ws/echo HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    answer = ask(server, get + PLAIN)
    assert (answer.status, answer.rest) == (426, b"")
    assert not app.environs


def test_frames_behind_a_refused_handshake_do_not_cost_the_answer(server: Server) -> None:
    frames = b"\x81\x85\x00\x00\x00\x00hello" * 2000
    assert handshake(server, "/ws/none", behind=frames).status == 404


def test_refusals_are_counted_and_logged_without_a_line_of_the_peers(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "websocket")
    middleware = wrap()
    server = serve(ProxyFix(middleware))
    path = "/ws/a%0d%0aERROR%20forged%1b[2J" + "x" * 3000
    assert handshake(server, path, x_forwarded_for="1.2.3.4\x1b[2J").status == 404
    assert handshake(server, "/ws/echo", origin="http://\x1b[2Jevil").status == 403
    assert dict(middleware.metrics.refused) == {404: 1, 403: 1}
    lines = [record for record in caplog.records if record.getMessage().startswith("refused")]
    assert [line.levelname for line in lines] == ["INFO", "WARNING"]
    for line in lines:
        assert line.getMessage().isprintable()
        assert len(line.getMessage()) < 500
    assert "allowed_origins" in lines[1].getMessage()


# -- what is not ours ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/ws", "/wsx", "/wsx/echo", "/x/ws/echo", "/WS/echo", "//ws/echo"]
)
def test_what_is_outside_the_prefix_reaches_the_application(
    path: str, server: Server, app: App
) -> None:
    answer = server.request("POST", path, b"body")
    assert (answer.status, answer.text) == (200, f"app {path}")
    assert app.environs[0]["REQUEST_METHOD"] == "POST"


def test_application_gets_environ_and_start_response_untouched() -> None:
    seen: list[object] = []

    def app(*arguments: object) -> Iterator[bytes]:
        seen.extend(arguments)
        return iter([b"x"])

    environ: dict[str, Any] = {"PATH_INFO": "/ws", "REQUEST_METHOD": "GET"}
    before = dict(environ)
    middleware = wrap(app)
    assert list(middleware(environ, start := object())) == [b"x"]
    assert seen[0] is environ and seen[1] is start
    assert environ == before
    del environ["PATH_INFO"]  # PEP 3333 allows that
    assert list(middleware(environ, start)) == [b"x"]


def test_upgrades_outside_the_prefix_are_the_applications(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        websocket.send("own " + websocket.receive())
        return []

    server = serve(wrap(app))
    with server.connect("/own") as ws:
        ws.send("protocol")
        assert ws.recv(5) == "own protocol"


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("/ws/", "/ws/echo"),
        ("/api/v1/live", "/api/v1/live/echo"),
        ("/a.b-c", "/a.b-c/echo"),
        ("/é", "/%c3%a9/echo"),
    ],
)
def test_prefix_is_where_the_channels_are(prefix: str, path: str, serve: Serve, app: App) -> None:
    middleware = wrap(app, prefix=prefix)
    server = serve(middleware)
    assert first_message(server, path) == "echo []"
    assert middleware.prefix == prefix.rstrip("/")
    assert server.get(path.removesuffix("/echo")).status == 200


@pytest.mark.parametrize(
    "prefix",
    ["", "/", "//", "ws", "/ws//x", "//ws", "/<int:x>", "/a b", "/a?b", "/a#b", "/%41", None, 1],
)
def test_prefix_that_is_none_is_a_config_error(prefix: Any) -> None:
    with pytest.raises(ConfigError, match="prefix is"):
        WebSocketMiddleware(App(), config=False, prefix=prefix)


def test_application_that_is_none_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="app is None; valid is a WSGI callable"):
        WebSocketMiddleware(None, config=False)  # type: ignore[arg-type]


def test_mounted_middleware_knows_its_mount_point(serve: Serve) -> None:
    class Where(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            return self.session.request_uri

    outer, inner = App("outer"), App("inner")
    server = serve(DispatcherMiddleware(outer, {"/site": wrap(inner, listener=Where)}))
    assert first_message(server, "/site/ws/echo?q=1") == "/site/ws/echo"
    assert server.get("/ws/echo").text == "outer /ws/echo"
    assert server.get("/site/x").text == "inner /x"
    assert status_of(server, "/site/ws/none") == 404


# -- several ---------------------------------------------------------------------------------------


def test_two_middlewares_around_one_application(serve: Serve, app: App) -> None:
    class Other(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            return "other"

    inner = wrap(app, listener=Other, prefix="/live")
    server = serve(wrap(inner))
    assert first_message(server, "/ws/echo") == "echo []"
    assert first_message(server, "/live/echo") == "other"
    assert server.get("/elsewhere").text == "app /elsewhere"
    assert status_of(server, "/live/none") == status_of(server, "/ws/none") == 404


def test_two_middlewares_around_two_applications(serve: Serve) -> None:
    one, two = wrap(App("one")), wrap(App("two"), prefix="/live")
    server = serve(DispatcherMiddleware(one, {"/two": two}))
    with server.connect("/ws/echo"), server.connect("/two/live/echo"):
        wait_until(lambda: one.registry.size == two.registry.size == 1)
    assert server.get("/two/x").text == "two /x"


def test_repr_names_prefix_and_channels() -> None:
    assert repr(wrap()) == "<WebSocketMiddleware /ws ['echo']>"


def test_largest_sizes_serve_messages_of_every_kind(serve: Serve) -> None:
    middleware = wrap(max_message_size=2**62, send_queue_size=2**62)
    server = serve(middleware)
    for compression in ("deflate", None):
        with server.connect("/ws/echo", compression=compression, max_size=None) as ws:
            assert ws.recv(5) == "echo []"
            for message in ("small", "large " * 2**17, ["frag", "ments"], b"\0" * 2**20):
                ws.send(message)
                assert ws.recv(5) == ("fragments" if isinstance(message, list) else message)
