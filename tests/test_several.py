"""Several applications in one process: whose `publish`, `channel` and `websocket_info` it is."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import flask
import gevent
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import wsmiddleware
from support import Server, wait_until
from support.threads import in_thread
from wsmiddleware import WebSocketListener, WebSocketMiddleware, publish, websocket_info
from wsmiddleware.info import is_alone

Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def no_older_middleware() -> None:
    """Middlewares are known weakly: those of earlier tests go with their last reference."""
    gc.collect()


def seen() -> list[str]:
    """What the functions of the package mean where this runs: the names of the applications."""
    everybody = [instance.component for instance in websocket_info().instances]
    by_channel = list(wsmiddleware.channel("news").wsclients)
    names = sorted({component.app for component in everybody})
    assert len(by_channel) == sum(component.channel == "news" for component in everybody)
    return names


class News(WebSocketListener):
    app = ""
    edges: list[list[str]]
    hooks: list[list[str]]

    @classmethod
    def on_handshake(cls, request: Any) -> bool:
        cls.hooks.append(seen())
        return True

    @classmethod
    def on_first_open(cls, wsclients: Any) -> None:
        cls.edges.append(seen())

    @classmethod
    def on_last_close(cls) -> None:
        websocket_info()
        publish("news", "to nobody")
        cls.edges.append([cls.app])

    def on_open_async(self, wsclient: Any) -> list[str]:
        return ["async", *seen()]

    def on_message(self, wsclient: Any, message: str) -> Any:
        if message == "publish":
            publish("news", f"from {self.app}")
            return None
        return seen()


def application(name: str, **options: Any) -> tuple[WebSocketMiddleware, type[News]]:
    """A Flask application with a channel of the same name as the other's."""
    app = flask.Flask(name)

    @app.get("/seen")
    def view() -> Any:
        return seen()

    @app.get("/stream")
    def stream() -> Any:
        def body() -> Iterator[str]:
            yield ",".join(seen())
            yield ";"
            yield ",".join(seen())

        return app.response_class(body())

    @app.get("/publish")
    def push() -> str:
        return str(publish("news", f"from a view of {name}"))

    @app.get("/only")
    def only() -> str:
        with pytest.raises(LookupError, match="another application's of this process"):
            publish("only-two".replace("-", "_"), "x")
        return "none"

    middleware = WebSocketMiddleware(app.wsgi_app, config=False, **options)
    listener = type("News", (News,), {"app": name, "edges": [], "hooks": []})
    middleware.register("news", listener)
    return middleware, listener


@pytest.fixture(params=[False, True], ids=["plain", "scoped"])
def apps(serve: Serve, request: pytest.FixtureRequest) -> Iterator[Any]:
    scope = {"request_context": flask.Flask("scope").request_context} if request.param else {}
    (one, first), (two, second) = application("one", **scope), application("two", **scope)
    two.register("only_two", type("Only", (WebSocketListener,), {"app": "two"}))

    def nowhere(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [",".join(seen()).encode()]

    server = serve(DispatcherMiddleware(nowhere, {"/one": one, "/two": two}))
    yield server, (one, two), (first, second)


def messages(ws: Any, count: int) -> list[str]:
    return sorted(ws.recv(5) for _ in range(count))


def test_it_is_that_ones_within_its_callbacks_and_requests_and_all_elsewhere(apps: Any) -> None:
    server, (one, two), listeners = apps
    with server.connect("/one/ws/news") as first, server.connect("/two/ws/news") as second:
        assert (first.recv(5), second.recv(5)) == ('["async", "one"]', '["async", "two"]')
        for ws, name in ((first, "one"), (second, "two")):
            ws.send("seen")
            assert ws.recv(5) == f'["{name}"]'
            assert json.loads(server.get(f"/{name}/seen").body) == [name]
            assert server.get(f"/{name}/stream").text == f"{name};{name}"
            ws.send("publish")
            assert ws.recv(5) == f"from {name}"
            assert server.get(f"/{name}/publish").text == "True"
            assert ws.recv(5) == f"from a view of {name}"
        # Outside of any: this test, another application, a thread, a greenlet.
        assert seen() == in_thread(seen) == gevent.spawn(seen).get() == ["one", "two"]
        assert server.get("/other").text == "one,two"
        publish("news", "to all")
        assert (first.recv(5), second.recv(5)) == ("to all", "to all")
        assert [len(each.info().instances) for each in (one, two)] == [1, 1]
        for ws in (first, second):
            with pytest.raises(TimeoutError):
                ws.recv(0.05)
    wait_until(lambda: all(len(listener.edges) == 2 for listener in listeners))
    assert [listener.edges for listener in listeners] == [[["one"]] * 2, [["two"]] * 2]
    assert [listener.hooks for listener in listeners] == [[[]], [[]]]


def test_middleware_says_which_from_anywhere(apps: Any) -> None:
    server, (one, two), listeners = apps
    with server.connect("/one/ws/news") as first, server.connect("/two/ws/news") as second:
        for ws in (first, second):
            ws.recv(5)
        assert two.publish("news", "to two") is True
        assert second.recv(5) == "to two"
        assert one.channel("news").listener is listeners[0]
        assert one.channel("news").wsclients.size() == 1
        assert [each.component.app for each in two.info().instances] == ["two"]
        assert two.info(add_raw=True).instances[0].session["raw"] is not None
        one.channel("news").wsclients.broadcast("to one")
        assert first.recv(5) == "to one"
        with pytest.raises(LookupError, match=r"no channel 'only_two'; there are: news; it is "):
            one.publish("only_two", "x")
        assert two.publish("only_two", "x") is True
        with pytest.raises(LookupError, match=r"there are: news$"):
            one.channel("none")


def test_channel_of_the_other_one_is_a_lookup_error_within_a_request(apps: Any) -> None:
    server, _, _ = apps
    assert server.get("/one/only").text == "none"


def test_middleware_around_a_middleware_is_of_one_application(serve: Serve) -> None:
    app = flask.Flask(__name__)

    @app.get("/count")
    def count() -> list[int]:
        return [
            len(websocket_info().instances),
            *(wsmiddleware.channel(name).wsclients.size() for name in ("inner", "outer")),
        ]

    class Inner(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            publish("outer", "inner is there")

        def on_message(self, wsclient: Any, message: str) -> None:
            publish("outer", message)

    class Outer(WebSocketListener): ...

    inner = WebSocketMiddleware(app.wsgi_app, config=False)
    inner.register("inner", Inner)
    outer = WebSocketMiddleware(inner, config=False, prefix="/live")
    outer.register("outer", Outer)
    other = WebSocketMiddleware(app, config=False)
    assert not is_alone() and other is not None
    server = serve(outer)
    with server.connect("/live/outer") as one:
        wait_until(lambda: outer.channel("outer").wsclients.size() == 1)
        with server.connect("/ws/inner") as two:
            assert one.recv(5) == "inner is there"
            two.send("hi")
            assert one.recv(5) == "hi"
            assert json.loads(server.get("/count").body) == [2, 1, 1]


def test_response_is_passed_on_as_it_is_where_it_need_not_be_watched(serve: Serve) -> None:
    class File:
        def __init__(self, blocks: list[bytes]) -> None: ...

    closed: list[tuple[Any, ...]] = []

    class Closing:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a"])

        def close(self) -> None:
            closed.append(tuple(instance for instance in websocket_info().instances))

    bodies = {"/list": [b"x"], "/file": File([]), "/closing": Closing()}
    middleware = WebSocketMiddleware(lambda environ, _: bodies[environ["PATH_INFO"]], config=False)
    other = WebSocketMiddleware(middleware.app, config=False)
    assert not is_alone() and other is not None
    for path in ("/list", "/file"):
        environ = {"PATH_INFO": path, "wsgi.file_wrapper": File}
        assert middleware(environ, lambda *_: None) is bodies[path]  # type: ignore[arg-type]
    body: Any = middleware({"PATH_INFO": "/closing"}, lambda *_: None)  # type: ignore[arg-type]
    assert list(body) == [b"a"]
    body.close()
    assert closed == [()]
