"""A channel at a URL of its own, outside of the prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsmiddleware
from support import Server
from support.apps import App, Echo, first_message, status_of, wrap
from support.handshakes import handshake
from wsmiddleware import ListenerError, WebSocketListener, WebSocketMiddleware, websocket_info

Serve = Callable[..., Server]


def at(url: Any, **body: Any) -> type[WebSocketListener]:
    return type("At", (Echo,), {"url": url, **body})


def serve_at(serve: Serve, url: str, app: Any = None, **body: Any) -> Server:
    middleware = wrap(app or App())
    middleware.register("mine", at(url, **body))
    return serve(middleware)


@pytest.mark.parametrize(
    ("url", "path", "said"),
    [
        ("/mqtt", "/mqtt", []),
        ("/mqtt", "/mqtt/", []),
        ("/mqtt/", "/mqtt", []),
        ("/live-feed/v1.1", "/live-feed/v1.1?a=b", []),
        ("/ocpp/<id>", "/ocpp/CP-7", [("id", "CP-7")]),
        ("/ocpp/<int:id>/x", "/ocpp/7/x", [("id", 7)]),
        ("/files/<path:name>", "/files/a/b", [("name", "a/b")]),
        ("/", "/", []),
        ("/größe", "/gr%C3%B6%C3%9Fe", []),
        ("/ws/other", "/ws/other", []),
    ],
)
def test_channel_is_where_its_class_says(serve: Serve, url: str, path: str, said: Any) -> None:
    server = serve_at(serve, url)
    assert first_message(server, path) == f"mine {said}"
    assert first_message(server, "/ws/echo") == "echo []"


@pytest.mark.parametrize("url", ["/mqtt", "/ocpp/<id>"])
def test_channel_is_nowhere_else(serve: Serve, url: str) -> None:
    app = App()
    server = serve_at(serve, url, app)
    assert status_of(server, "/ws/mine") == 404
    for path in ("/ocpp/<id>/x", "/mqtt/x", "/MQTT", "/ocpp", "/ocpp/", "/mine"):
        assert handshake(server, path).status == 200  # the application's
    assert len(app.environs) == 6


def test_path_follows_the_url(serve: Serve) -> None:
    server = serve_at(serve, "/mqtt", path="/room/<int:id>")
    assert first_message(server, "/mqtt") == "mine []"
    assert first_message(server, "/mqtt/room/7") == "mine [('id', 7)]"


def test_file_names_the_channel(serve: Serve, listener_dir: Callable[..., Path]) -> None:
    directory = listener_dir(
        boxes="class Boxes(WebSocketListener):\n    url = '/ocpp/<id>'\n"
        "    def on_open(self, wsclient): return self.channel\n"
    )
    server = serve(WebSocketMiddleware(App(), config=False, listeners=directory))
    with server.connect("/ocpp/token-7") as ws:
        assert ws.recv(5) == "boxes"
        assert wsmiddleware.channel("boxes").wsclients.size() == 1
        [shown] = websocket_info().to_dict()["instances"]
        assert shown["session"]["request_uri"] == "/ocpp/<id>"


# -- whose request it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/", "/page"])
def test_plain_request_there_is_the_applications(serve: Serve, method: str, path: str) -> None:
    app = App()
    server = serve_at(serve, path, app)
    assert first_message(server, path) == "mine []"
    assert server.request(method, path).status == 200
    assert [environ["REQUEST_METHOD"] for environ in app.environs] == [method]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": None, "Connection": None}, 426),  # cut by a proxy
        ({"Sec_WebSocket_Key": "x"}, 400),
        ({"Sec_WebSocket_Version": "12"}, 426),
        ({"Origin": "http://evil.example"}, 403),
        ({"Upgrade": "h2c", "Sec_WebSocket_Key": None}, 200),
    ],
)
def test_handshake_there_is_refused_as_below_the_prefix(
    serve: Serve, changes: dict[str, Any], status: int
) -> None:
    app = App()
    server = serve_at(serve, "/mqtt", app)
    assert handshake(server, "/mqtt", **changes).status == status
    assert len(app.environs) == (status == 200)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["mqtt", "//mqtt", "/a//b", "/a?b", "/a#b", "/a b", "/a%20b", "/a\\b", "/<id", "/id>", "/<>",
     "http://host/mqtt", 7, ["/mqtt"], "/<no_such:id>", "/<int(bogus=1):id>"],
)  # fmt: skip
def test_url_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(ListenerError, match="class At: url is "):
        wrap().register("mine", at(url))


@pytest.mark.parametrize(
    ("taken", "url"),
    [
        ({"url": "/mqtt"}, "/mqtt"),
        ({"url": "/mqtt"}, "/mqtt/"),
        ({"url": "/ocpp/<id>"}, "/ocpp/<int:number>"),
        ({"url": "/a", "path": "/<x>"}, "/a/<y>"),
        ({}, "/ws/first"),
        ({"path": "/<x>"}, "/ws/first/<y>"),
    ],
)
def test_url_that_is_taken_is_refused(taken: dict[str, str], url: str) -> None:
    middleware = wrap()
    middleware.register("first", type("First", (Echo,), taken))
    with pytest.raises(ListenerError, match=r"class At: .* is taken, by the channel first"):
        middleware.register("second", at(url))
    assert "second" not in middleware.registry.channels


def test_misspelt_url_is_refused() -> None:
    with pytest.raises(ListenerError, match=r"uri is no attribute .*did you mean url\?"):
        wrap().register("mine", type("At", (Echo,), {"uri": "/mqtt"}))
