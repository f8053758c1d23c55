"""`publish()` from any code of the process, and how far a broadcast goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support import Server
from support.apps import Echo, wrap
from support.threads import in_thread
from wsmiddleware import WebSocketListener, info, publish

Serve = Callable[..., Server]


def test_publish_reaches_a_channel_from_anywhere(serve: Serve) -> None:
    middleware = wrap()
    middleware.register("other", Echo)
    server = serve(middleware)
    with server.connect("/ws/echo") as one, server.connect("/ws/other") as two:
        assert one.recv(5) == "echo []" and two.recv(5) == "other []"
        assert publish("echo", {"n": 1}) is True
        assert json.loads(one.recv(5)) == {"n": 1}
        assert in_thread(lambda: publish("echo", b"bytes")) is True
        assert one.recv(5) == b"bytes"
        assert publish("echo", None) is False
        with pytest.raises(TimeoutError):
            two.recv(0.05)


def test_publish_reaches_a_group(serve: Serve) -> None:
    class Rooms(WebSocketListener):
        path = "/<room>"

        def on_open(self, wsclient: Any) -> str:
            wsclient.join(self.session.path_parameters["room"])
            return "in"

    server = serve(wrap(listener=Rooms))
    with server.connect("/ws/echo/red") as red, server.connect("/ws/echo/blue") as blue:
        assert red.recv(5) == blue.recv(5) == "in"
        assert publish("echo", "to red", group="red")
        assert publish("echo", "to all")
        assert [red.recv(5), red.recv(5)] == ["to red", "to all"]
        assert blue.recv(5) == "to all"


def test_publish_to_nobody_is_no_error() -> None:
    middleware = wrap()
    assert publish("echo", "x") is True
    assert middleware.registry.size == 0


def test_publish_to_no_channel_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_middlewares", [])
    with pytest.raises(LookupError, match=r"no channel 'echo'; there are: none"):
        publish("echo", "x")
    middleware = wrap()
    middleware.register("chat", Echo)
    for message in ("x", None):
        with pytest.raises(LookupError, match=r"no channel 'chta'; there are: chat, echo"):
            publish("chta", message)


def test_publish_of_what_json_cannot_hold_is_a_type_error() -> None:
    middleware = wrap()
    with pytest.raises(TypeError, match="cannot send object"):
        publish("echo", object())
    assert middleware.registry.size == 0


def test_publish_reaches_the_channel_in_every_middleware(serve: Serve) -> None:
    server = serve(wrap(wrap(), prefix="/live"))
    with server.connect("/ws/echo") as one, server.connect("/live/echo") as two:
        one.recv(5), two.recv(5)
        publish("echo", "both")
        assert one.recv(5) == two.recv(5) == "both"


@pytest.mark.parametrize("scope", ["channel", "server"])
def test_broadcast_scope_says_whom_a_client_reaches(scope: str, serve: Serve) -> None:
    class Shouting(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            wsclient.broadcast(message)

    middleware = wrap(listener=Shouting, broadcast_scope=scope)
    middleware.register("other", Echo)
    server = serve(middleware)
    with server.connect("/ws/echo") as one, server.connect("/ws/other") as two:
        assert two.recv(5) == "other []"
        one.send("to all")
        assert one.recv(5) == "to all"
        if scope == "server":
            assert two.recv(5) == "to all"
        else:
            with pytest.raises(TimeoutError):
                two.recv(0.05)
        # From outside it is the channel that was named, whatever the scope.
        publish("echo", "to one")
        assert one.recv(5) == "to one"
        with pytest.raises(TimeoutError):
            two.recv(0.05)
