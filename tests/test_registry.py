"""Channels by name and by path, the room there is, and going down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from websockets.exceptions import ConnectionClosed

from support import Server, wait_until, websocket_request
from support.apps import BROKEN_LISTENERS, App, Echo, first_message, open_or_status, status_of, wrap
from support.handshakes import handshake
from support.servers import read_all
from wsmiddleware import CloseCode, ListenerError, WebSocketListener, WebSocketMiddleware

Serve = Callable[..., Server]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App, serve: Serve) -> Server:
    return serve(wrap(app))


# -- where a channel is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/ws/",
        "/ws/none",
        "/ws/Echo",
        "/ws/echo/more",
        "/ws/echo.py",
        "/ws//echo",
        "/ws/./echo",
        "/ws/x/../echo",
        "/ws/..%2fecho",
        "/ws/%2e%2e/echo",
        "/ws/..%5cecho",
        "/ws/echo%2fmore",
        "/ws/echo%00",
        "/ws/echo%20",
        "/ws/ech%c3%b6",
        "/ws/%ff",
        "/ws/__init__",
        "/ws/..",
        "/ws/../../etc/passwd",
    ],
)
def test_what_is_no_channel_gets_404(path: str, server: Server, app: App) -> None:
    answer = handshake(server, path)
    assert (answer.status, answer.text) == (404, "No such channel.\n")
    assert not app.environs


@pytest.mark.parametrize(
    "path", ["/ws/echo", "/ws/echo/", "/ws/ech%6f", "/ws/echo?a=b", "/ws%2fecho"]
)
def test_channel_is_reached_by_its_name(path: str, server: Server) -> None:
    assert first_message(server, path) == "echo []"


@pytest.mark.parametrize("form", ["%{:02X}", "raw"])
def test_no_byte_behind_a_name_leads_to_its_channel_but_a_slash(form: str, server: Server) -> None:
    # What a proxy took for another path would pass by its rules.
    for byte in range(256):
        behind = chr(byte) if form == "raw" else form.format(byte)
        if chr(byte) in ("/?" if form == "raw" else "/"):
            continue
        assert handshake(server, f"/ws/echo{behind}").status in (400, 404), behind


def test_channel_name_may_be_any_identifier(serve: Serve, listener_dir: Any) -> None:
    source = """
        class L(WebSocketListener):
            def on_open(self, wsclient): return self.channel
    """
    directory = listener_dir(straße=source, chat_2=source)
    server = serve(WebSocketMiddleware(App(), config=False, listeners=directory))
    assert first_message(server, "/ws/stra%C3%9Fe") == "straße"
    assert first_message(server, "/ws/chat_2") == "chat_2"


@pytest.fixture
def rooms(serve: Serve) -> Server:
    class Rooms(Echo):
        path = "/room/<int:id>/<name>"

    return serve(wrap(listener=Rooms))


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/ws/echo/room/7/blue", [("id", 7), ("name", "blue")]),
        ("/ws/echo/room/7/blue/", [("id", 7), ("name", "blue")]),
        ("/ws/echo/room/7/%e2%82%ac%20x", [("id", 7), ("name", "€ x")]),
        ("/ws/echo/room/7/..", [("id", 7), ("name", "..")]),
        ("/ws/echo", []),
    ],
)
def test_path_below_the_channel_gives_its_values(
    path: str, parameters: list[object], rooms: Server
) -> None:
    assert first_message(rooms, path) == f"echo {parameters}"


@pytest.mark.parametrize(
    "path",
    [
        "/ws/echo/room",
        "/ws/echo/room/seven/blue",
        "/ws/echo/room/-7/blue",
        "/ws/echo/room/7",
        "/ws/echo/room/7/blue/more",
        "/ws/echo/room/7/a%2fb",
        "/ws/echo/hall/7/blue",
        "/ws/echoroom/7/blue",
    ],
)
def test_path_that_does_not_match_gets_404(path: str, rooms: Server) -> None:
    assert handshake(rooms, path).status == 404


# -- from code -------------------------------------------------------------------------------------


def test_decorator_registers_and_gives_the_class_back(serve: Serve) -> None:
    middleware = WebSocketMiddleware(App(), config=False)

    @middleware.listener("chat")
    class Chat(Echo):
        pass

    assert Chat.__name__ == "Chat"
    assert first_message(serve(middleware), "/ws/chat") == "chat []"


def test_channel_may_be_registered_while_it_serves(serve: Serve) -> None:
    middleware = wrap()
    server = serve(middleware)
    assert status_of(server, "/ws/later") == 404
    middleware.register("later", Echo)
    assert first_message(server, "/ws/later") == "later []"


def test_channel_from_code_stands_beside_those_of_the_directory(
    serve: Serve, listener_dir: Any
) -> None:
    directory = listener_dir(filed="class L(WebSocketListener): pass")
    middleware = wrap(listeners=directory)
    assert sorted(middleware.registry.channels) == ["echo", "filed"]
    assert middleware.directory == directory
    with pytest.raises(ListenerError, match=r"channel filed is taken, by /.*/filed\.py, class L"):
        middleware.register("filed", Echo)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", ", line 2: ZeroDivisionError: division by zero"),
        (
            "class L(WebSocketListener): idle_timeout = -1",
            ", line 2, class L: idle_timeout is -1; valid",
        ),
        (
            "class L(WebSocketListener): path = '/<'",
            ", line 2, class L: path is '/<', which werkzeug's",
        ),
    ],
)
def test_broken_listener_stops_the_start(source: str, complaint: str, listener_dir: Any) -> None:
    directory = listener_dir(bad=source, good="class L(WebSocketListener): pass")
    with pytest.raises(ListenerError) as caught:
        WebSocketMiddleware(App(), config=False, listeners=directory)
    assert str(caught.value).startswith(f"{directory / 'bad.py'}{complaint}")


def test_all_broken_listeners_are_raised_at_once(listener_dir: Any) -> None:
    directory = listener_dir(**BROKEN_LISTENERS, good="class L(WebSocketListener): pass")
    with pytest.raises(ListenerError) as caught:
        WebSocketMiddleware(App(), config=False, listeners=directory)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{len(BROKEN_LISTENERS)} listeners cannot be loaded:"
    for name, line in zip(sorted(BROKEN_LISTENERS), lines, strict=True):
        assert line.startswith(f"  {directory / name}.py")


class NoListener:
    pass


@pytest.mark.parametrize(
    "name", ["", "_x", "a-b", "a.b", "a/b", "..", "1a", " a", "<int:x>", "a\n", None, 7, b"x"]
)
def test_name_that_is_none_is_a_listener_error(name: Any) -> None:
    with pytest.raises(ListenerError, match="a name is an identifier without a leading _"):
        wrap().register(name, Echo)


@pytest.mark.parametrize("cls", [NoListener, object, Echo(), "Echo", None, lambda: Echo()])
def test_class_that_is_no_listener_is_a_listener_error(cls: Any) -> None:
    with pytest.raises(ListenerError, match="is no subclass of WebSocketListener"):
        wrap().listener("x")(cls)


@pytest.mark.parametrize(
    "path",
    [
        *("/<nosuch:x>", "/<int:x>/<int:x>", "/<int:", "/<int(bogus=1):x>", "/<1x>"),
        "/<int:x>/<string(minlength=5,maxlength=2):y>",
        f"/<string(length={2**32}):x>",
    ],
)
def test_path_that_routing_does_not_take_is_a_listener_error(path: str) -> None:
    middleware = wrap()
    broken = type("Broken", (Echo,), {"path": path})
    with pytest.raises(ListenerError, match=r"class Broken: path is '/<"):
        middleware.register("rooms", broken)
    # Nothing of it is left: the name is free, and its path is nowhere.
    assert sorted(middleware.registry.channels) == ["echo"]
    assert middleware.registry.find("/ws/rooms") is None
    middleware.register("rooms", Echo)


@pytest.mark.parametrize("path", ["room", 7, None, b"/room"])
def test_path_that_is_no_path_is_a_listener_error(path: Any) -> None:
    with pytest.raises(ListenerError, match=r"class Broken: path is .*; valid is"):
        wrap().register("x", type("Broken", (Echo,), {"path": path}))


def test_name_is_taken_once() -> None:
    with pytest.raises(ListenerError, match=r"channel echo is taken, by .*apps\.py, class Echo"):
        wrap().register("echo", Echo)


# -- going down ------------------------------------------------------------------------------------


def test_nobody_is_let_in_while_going_down(serve: Serve) -> None:
    middleware = wrap()
    server = serve(middleware)
    middleware.shutdown()
    answer = handshake(server, "/ws/echo")
    assert (answer.status, answer.text) == (503, "Going down.\n")
    assert answer.headers["Retry-After"]
    assert handshake(server, "/ws/none").status == 404
    assert server.get("/").status == 200


@pytest.mark.parametrize(
    ("code", "reason"),
    [(CloseCode.GOING_AWAY, "going away"), (CloseCode.SERVICE_RESTART, "service restart")],
)
def test_clients_are_told_and_their_callbacks_end_first(
    code: CloseCode, reason: str, serve: Serve
) -> None:
    ended: list[str] = []

    class Chat(WebSocketListener):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            gevent.sleep(0)
            ended.append("on_close")

        @classmethod
        def on_last_close(cls) -> None:
            gevent.sleep(0)
            ended.append("on_last_close")

    middleware = wrap(listener=Chat)
    server = serve(middleware)
    with server.connect("/ws/echo") as one, server.connect("/ws/echo") as two:
        wait_until(lambda: middleware.registry.size == 2)
        middleware.shutdown(code)
        assert ended == ["on_close", "on_close", "on_last_close"]
        for ws in (one, two):
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
            assert (ws.close_code, ws.close_reason) == (code, reason)


class LateUpgrade:
    """An upgrade whose 101 waits for the peer, around the real one."""

    speaks_first = True

    def __init__(self, upgrade: Any) -> None:
        self.upgrade = upgrade
        self.asked, self.goes = Event(), Event()
        self.park = upgrade.park

    @property
    def parks(self) -> bool:
        return bool(self.upgrade.parks)

    def accept(self, headers: Any) -> Any:
        self.asked.set()
        assert self.goes.wait(5)
        return self.upgrade.accept(headers)


def test_connection_that_arrives_while_going_down_is_told(serve: Serve) -> None:
    middleware = wrap()
    upgrades: list[LateUpgrade] = []

    def around(environ: dict[str, Any], start_response: Any) -> Any:
        upgrades.append(LateUpgrade(environ["wsmiddleware.upgrade"]))
        environ["wsmiddleware.upgrade"] = upgrades[0]
        return middleware(environ, start_response)

    server = serve(around)
    client = gevent.spawn(open_or_status, server)
    wait_until(lambda: upgrades and upgrades[0].asked.is_set())
    # It has its place already, and going down waits for it.
    assert (middleware.registry.unfinished, middleware.registry.size) == (1, 0)
    shutdown = gevent.spawn(middleware.shutdown, CloseCode.GOING_AWAY, 5.0)
    wait_until(lambda: middleware.registry.is_draining)
    upgrades[0].goes.set()
    ws = client.get(timeout=5)
    with pytest.raises(ConnectionClosed):
        while True:
            ws.recv(5)
    assert ws.close_code == 1001
    shutdown.get(timeout=5)
    assert middleware.registry.unfinished == 0


def test_upgrade_that_fails_gives_its_place_back(serve: Serve) -> None:
    class Gone(LateUpgrade):
        def accept(self, headers: Any) -> Any:
            raise ConnectionResetError

    middleware = wrap(max_connections=1)

    def around(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsmiddleware.upgrade"] = Gone(environ["wsmiddleware.upgrade"])
        return middleware(environ, start_response)

    server = serve(around)
    for _ in range(2):
        with server.socket() as sock:
            sock.sendall(websocket_request("/ws/echo"))
            assert read_all(sock) == b""
    assert middleware.registry.unfinished == 0
    assert not middleware.metrics.refused


def test_going_down_is_over_after_its_time(serve: Serve) -> None:
    stuck = Event()

    class Stuck(WebSocketListener):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            stuck.wait(5)

    middleware = wrap(listener=Stuck)
    server = serve(middleware)
    with server.connect("/ws/echo"):
        wait_until(lambda: middleware.registry.size == 1)
        with gevent.Timeout(3):
            middleware.shutdown(timeout=0.05)
        assert middleware.registry.unfinished == 1
        stuck.set()


def test_going_down_lets_the_loop_turn_between_many_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Member:
        def __init__(self) -> None:
            self.connection = self

        def close(self, code: int, reason: str) -> None:
            closed.append(turns)

    closed: list[int] = []
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    registry = wrap().registry
    monkeypatch.setattr(registry, "members", lambda: [Member() for _ in range(250)] * (not closed))
    gevent.get_hub().loop.run_callback(turn)
    registry.drain(CloseCode.GOING_AWAY, "", 5)
    assert closed == [0] * 100 + [1] * 150


def test_an_idle_middleware_goes_down_at_once() -> None:
    with gevent.Timeout(1):
        wrap().shutdown(timeout=60)


def test_room_is_known_as_soon_with_many_channels_as_with_one() -> None:
    """Each handshake asks for it, twice."""

    def least(count: int) -> float:
        middleware = WebSocketMiddleware(lambda environ, start_response: [], config=False)
        for number in range(count):
            middleware.register(f"c{number}", Echo)
        registry = middleware.registry

        def once() -> float:
            start = time.perf_counter()
            for _ in range(100):
                assert registry.unfinished == 0
            return time.perf_counter() - start

        return min(once() for _ in range(5))

    assert least(1000) < 20 * least(1)  # it was 500 times as long
