"""One application, served in every way: the same tests for each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from support import Process, wait_until
from support.servers import UPGRADE, serve_by, write_app

APP = """
    from flask import Flask
    from flask_socketio import SocketIO
    from wsmiddleware import WebSocketMiddleware, websocket_info

    flask_app = Flask(__name__)
    sockets = SocketIO(flask_app, async_mode="gevent")
    sockets.on("shout")(lambda text: text.upper())

    @flask_app.get("/")
    def page():
        return "page"

    @flask_app.post("/push/<text>")
    def push(text):
        for instance in websocket_info().instances:
            instance.component.wsclient.send(text)
        return "", 204

    @flask_app.get("/closed")
    def closed():
        from sys import modules
        [log] = [m.LOG for name, m in modules.items() if name.endswith(".talk")]
        return log

    def raw(environ, start_response):  # what flask-sockets does
        if environ["PATH_INFO"] != "/raw":
            return middleware(environ, start_response)
        websocket = environ["wsgi.websocket"]
        while (message := websocket.receive()) is not None:
            websocket.send(message[::-1])
        return []

    middleware = WebSocketMiddleware(flask_app)
    app = raw
"""

TALK = """
    LOG = []

    class Talk(WebSocketListener):
        def on_open(self, wsclient):
            return "welcome"

        def on_message(self, wsclient, message):
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                wsclient.close(int(code), reason)
            else:
                return message

        def on_close(self, wsclient, reason_phrase):
            LOG.append([wsclient.close_code, reason_phrase])
"""


@pytest.fixture(scope="module", params=["run", "alias", "worker", "stock"])
def way(request: pytest.FixtureRequest) -> str:
    """How the application is served."""
    return str(request.param)


@pytest.fixture(scope="module")
def process(way: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The application served so."""
    with serve_by(way, write_app(tmp_path_factory.mktemp(way), APP, talk=TALK)) as process:
        yield process


@pytest.fixture(scope="module")
def is_late(way: str) -> bool:
    """True where the 101 goes out before the middleware sees a request (section 9)."""
    return way == "stock"


def closed(client: ClientConnection) -> tuple[int, str] | None:
    """Code and reason of the close frame that comes next, None when there was none."""
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(timeout=10)
    frame = caught.value.rcvd
    return None if frame is None else (frame.code, frame.reason)


def close_log(process: Process) -> list[list[object]]:
    """What `on_close` was told so far."""
    log: list[list[object]] = json.loads(process.server.get("/closed").text)
    return log


def refused(process: Process, path: str, is_late: bool, **headers: str) -> int:
    """The HTTP status of a refused handshake."""
    options = {"additional_headers": headers} if headers else {}
    if is_late:
        with process.server.connect(path, **options) as client:
            answer = closed(client)
            assert answer is not None
            assert answer[1]
            return answer[0] - 4000
    with pytest.raises(InvalidStatus) as caught, process.server.connect(path, **options):
        pass
    return caught.value.response.status_code


def test_messages_come_back(process: Process) -> None:
    with process.server.connect("/ws/talk") as client:
        assert client.recv(timeout=10) == "welcome"
        for message in ("hello", "", "ü€😀", b"\x00\xff", "x" * 100_000, b"y" * 300_000):
            client.send(message)
            assert client.recv(timeout=10) == message


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1011, "broken"), (4001, "bye, 🖐")])
def test_the_server_closes_with_code_and_reason(process: Process, code: int, reason: str) -> None:
    with process.server.connect("/ws/talk") as client:
        assert client.recv(timeout=10) == "welcome"
        client.send(f"close {code} {reason}")
        assert closed(client) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (3333, ""), (4999, "ü" * 61)])
def test_the_client_closes_with_code_and_reason(process: Process, code: int, reason: str) -> None:
    with process.server.connect("/ws/talk") as client:
        assert client.recv(timeout=10) == "welcome"
        client.close(code, reason)
        assert client.close_code == code
    wait_until(lambda: [code, reason] in close_log(process))


def test_a_client_that_vanishes_is_1006(process: Process) -> None:
    before = close_log(process).count([1006, ""])
    with process.server.socket() as client:
        client.sendall(b"GET /ws/talk HTTP/1.1\r\n" + UPGRADE)
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
    wait_until(lambda: close_log(process).count([1006, ""]) == before + 1)


def test_frames_may_come_with_the_handshake(process: Process) -> None:
    frame = b"\x81\x82\x00\x00\x00\x00hi"
    with process.server.socket() as client:
        client.sendall(b"GET /ws/talk HTTP/1.1\r\n" + UPGRADE + frame)
        received = b""
        while not received.endswith(b"\x81\x02hi"):
            piece = client.recv(1000)
            assert piece, received
            received += piece
    assert b"\x81\x07welcome" in received


def test_refusals_say_why(process: Process, is_late: bool) -> None:
    assert refused(process, "/ws/nowhere", is_late) == 404
    assert refused(process, "/ws/talk", is_late, Origin="http://evil.example") == 403


def test_a_plain_request_on_a_channel_gets_426(process: Process) -> None:
    answer = process.server.get("/ws/talk")
    assert answer.status == 426
    assert answer.headers["Upgrade"] == "websocket"


def test_requests_outside_the_prefix_reach_the_application(process: Process) -> None:
    assert process.server.get("/").text == "page"


def test_a_view_pushes(process: Process) -> None:
    with process.server.connect("/ws/talk") as client:
        assert client.recv(timeout=10) == "welcome"
        assert process.server.request("POST", "/push/now").status == 204
        assert client.recv(timeout=10) == "now"


def test_wsgi_websocket_works_outside_the_prefix(process: Process) -> None:
    with process.server.connect("/raw") as client:
        client.send("abc")
        assert client.recv(timeout=10) == "cba"


def test_flask_socketio_works_beside_us(process: Process) -> None:
    with process.server.connect("/socket.io/?EIO=4&transport=websocket") as client:
        assert str(client.recv(timeout=10)).startswith('0{"sid":')  # Engine.IO: open
        client.send("40")  # Socket.IO: connect
        assert str(client.recv(timeout=10)).startswith('40{"sid":')
        client.send('421["shout","hello"]')  # an event that asks for an acknowledgement
        assert client.recv(timeout=10) == '431["HELLO"]'


def test_the_stock_worker_is_warned_of(process: Process, is_late: bool) -> None:
    assert ("GeventWebSocketWorker instead" in process.output) == is_late
