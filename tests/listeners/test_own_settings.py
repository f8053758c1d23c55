"""Settings that a listener class has of its own: they hold for its channel, and for no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from support import Server, wait_until
from support.apps import status_of
from support.room import MakeRoom, open_by_hand
from wsmiddleware import ConfigError, ListenerError, WebSocketListener, WebSocketMiddleware
from wsmiddleware.listeners.contract import Contract
from wsmiddleware.settings import Settings

Serve = Callable[..., Server]

#: Each with a value of a class, another one of the middleware, and how it then stands there.
OWN: list[tuple[str, Any, Any, Any]] = [
    ("allowed_origins", "https://a.example", "*", ("https://a.example",)),
    ("compression", False, True, False),
    ("idle_timeout", 7, 8, 7.0),
    ("max_message_rate", 5, 6, 5.0),
    ("max_message_size", 10, 20, 10),
    ("send_queue_size", 30, 40, 30),
    ("subprotocols", ["b"], ["a"], ("b",)),
]


class Echo(WebSocketListener):
    def on_message(self, wsclient: Any, message: Any) -> Any:
        return message


def serve_two(serve: Serve, own: dict[str, Any], **settings: Any) -> Server:
    """A server with the channels `own` and `plain`."""
    middleware = WebSocketMiddleware(lambda *_: [], config=False, **settings)
    middleware.register("own", type("Own", (Echo,), own))
    middleware.register("plain", Echo)
    return serve(middleware)


@pytest.mark.parametrize(("name", "own", "general", "stands"), OWN)
def test_own_value_wins_and_none_leaves_it_to_the_middleware(
    name: str, own: Any, general: Any, stands: Any
) -> None:
    middleware = WebSocketMiddleware(lambda *_: [], config=False, **{name: general})
    for channel, body in (("own", {name: own}), ("none", {name: None}), ("plain", {})):
        middleware.register(channel, type("Made", (WebSocketListener,), body))
    channels = middleware.registry.channels
    assert getattr(channels["own"].settings, name) == stands
    assert channels["none"].settings is channels["plain"].settings is middleware.settings
    inherits = type("Inherits", (channels["own"].listener_class,), {})
    assert getattr(Contract(inherits, Settings()).settings, name) == stands


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_origins", "https://a.example/path"),
        ("allowed_origins", []),
        ("allowed_origins", 1),
        ("compression", 1),
        ("compression", "off"),
        ("max_message_rate", 0),
        ("max_message_rate", "5"),
        ("max_message_size", 0),
        ("max_message_size", 1.5),
        ("max_message_size", True),
        ("send_queue_size", -1),
        ("send_queue_size", "1"),
    ],
)
def test_wrong_value_names_the_class_and_what_is_valid(name: str, value: Any) -> None:
    middleware = WebSocketMiddleware(lambda *_: [], config=False)
    with pytest.raises(ConfigError, match=rf"class Made: {name} is .*; valid is "):
        middleware.register("made", type("Made", (WebSocketListener,), {name: value}))


@pytest.mark.parametrize(
    ("slip", "value", "meant"),
    [
        ("allowed_origin", ["https://a.example"], "allowed_origins"),
        ("allowedOrigins", "*", "allowed_origins"),
        ("compresion", False, "compression"),
        ("max_mesage_size", 5, "max_message_size"),
        ("maxMessageRate", 5, "max_message_rate"),
        ("send_queue_sise", 5, "send_queue_size"),
    ],
)
def test_misspelt_one_is_refused(slip: str, value: Any, meant: str) -> None:
    middleware = WebSocketMiddleware(lambda *_: [], config=False)
    with pytest.raises(ListenerError, match=rf"{slip} is no attribute .*did you mean {meant}\?"):
        middleware.register("made", type("Made", (WebSocketListener,), {slip: value}))


# -- each of them in effect ------------------------------------------------------------------------


def test_origins_of_one_channel(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve_two(serve, {"allowed_origins": ["https://shop.example"]})
    shop = {"origin": "https://shop.example"}
    with server.connect("/ws/own", **shop) as ws:
        ws.send("hi")
        assert ws.recv(5) == "hi"
    with caplog.at_level(logging.WARNING, "websocket"):
        assert status_of(server, "/ws/plain", **shop) == 403
        assert "(WSMIDDLEWARE_ALLOWED_ORIGINS)" in caplog.messages[-1]
        assert status_of(server, "/ws/own", origin="https://other.example") == 403
        assert "add it to allowed_origins (those of the class Own)" in caplog.messages[-1]
    # A list replaces the own site.
    assert status_of(server, "/ws/own", origin=server.url("")) == 403
    assert status_of(server, "/ws/own", origin="null") == 403


@pytest.mark.parametrize("is_on", [True, False])
def test_compression_of_one_channel(serve: Serve, is_on: bool) -> None:
    server = serve_two(serve, {"compression": is_on}, compression=not is_on)
    for channel, expected in (("own", is_on), ("plain", not is_on)):
        with server.connect(f"/ws/{channel}") as ws:
            assert ws.response is not None
            assert ("Sec-WebSocket-Extensions" in ws.response.headers) is expected
            ws.send("x" * 5000)
            assert ws.recv(5) == "x" * 5000


@pytest.mark.parametrize("compression", ["deflate", None])
def test_message_size_of_one_channel(serve: Serve, compression: Any) -> None:
    server = serve_two(serve, {"max_message_size": 10}, max_message_size=20)
    for channel, limit in (("own", 10), ("plain", 20)):
        with server.connect(f"/ws/{channel}", compression=compression) as ws:
            ws.send("x" * limit)
            assert ws.recv(5) == "x" * limit
            ws.send("x" * (limit + 1))
            with pytest.raises(Exception, match="1009"):
                ws.recv(5)


def test_message_rate_of_one_channel(serve: Serve) -> None:
    server = serve_two(serve, {"max_message_rate": 10})
    took = {}
    for channel in ("plain", "own"):
        with server.connect(f"/ws/{channel}") as ws:
            started = time.monotonic()
            for number in range(16):
                ws.send(str(number))
            assert [ws.recv(5) for _ in range(16)] == [str(number) for number in range(16)]
            took[channel] = time.monotonic() - started
    assert took["own"] > 0.4  # ten at once, six more at ten a second


def test_queue_of_one_channel(room: MakeRoom) -> None:
    class Narrow(WebSocketListener):
        send_queue_size = 2000

    served = room(Narrow, send_queue_size=2**24)
    with served.server.socket() as sock:
        open_by_hand(sock)
        wait_until(lambda: served.wsclients.size() == 1)
        [client] = served.wsclients
        for _ in range(1000):  # what the kernel takes, then the mark
            served.wsclients.broadcast("x" * 100_000)
            if not client.is_open():
                break
        assert not client.is_open()
