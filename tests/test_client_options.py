"""What a client is made with: headers, subprotocols, options, and the listener."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from support import PATIENCE, Server
from support.clients import Recorder, accept, raw_server, serve_echo, websockets_server
from wsmiddleware import ConfigError, ListenerError, create_websocket_client

CLOSE_1000 = b"\x88\x02\x03\xe8"


@pytest.fixture
def ours(serve: Callable[..., Server]) -> str:
    return serve_echo(serve)


def test_headers_cookies_and_subprotocols_arrive() -> None:
    requests: list[Any] = []

    def keep(ws: ServerConnection) -> None:
        requests.append(ws.request)

    with websockets_server(keep, subprotocols=["v2", "v1"]) as url:
        ws = create_websocket_client(
            url + "?a=b",
            object(),
            headers={"Origin": "http://here", "X-Token": "t"},
            cookies={"id": "1", "b": "2"},
            subprotocols=["v1", "v2"],
        )
        assert ws.wait(PATIENCE)
    headers = requests[0].headers
    assert (headers["Origin"], headers["X-Token"], headers["Cookie"]) == (
        "http://here",
        "t",
        "id=1; b=2",
    )
    assert requests[0].path == "/?a=b"
    assert ws.subprotocol == "v2"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"headers": {"X": "a\r\nY: b"}}, ValueError),
        ({"cookies": {"a": "b\n"}}, ValueError),
        ({"cookies": {"a": 5}}, ValueError),
        ({"cookies": {5: "a"}}, ValueError),
        ({"subprotocols": ["a b"]}, ConfigError),
        ({"connect_timeout": 0}, ConfigError),
        ({"max_message_size": "big"}, ConfigError),
        ({"ping_intervall": 5}, ConfigError),
        ({"reconnect": 1}, ConfigError),
        ({"reconnect_attempts": 0}, ConfigError),
        ({"offline_queue_size": -1}, ConfigError),
        ({"ssl_context": False}, ConfigError),
        ({"ssl_context": ssl.create_default_context()}, ValueError),
    ],
)
def test_wrong_option_is_refused_before_anything_is_sent(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))[:6]):
        create_websocket_client("ws://127.0.0.1:1/", object(), **options)


def test_unknown_option_is_told_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean ping_interval"):
        create_websocket_client("ws://127.0.0.1:1/", object(), ping_intervall=5)


def test_listener_may_be_a_class_and_have_nothing(ours: str) -> None:
    with create_websocket_client(ours, Recorder) as ws:
        ws.send_text("x")
        assert isinstance(ws.listener, Recorder)
        ws.listener.wait_for("text", "x")
    with create_websocket_client(ours, object()) as ws:
        ws.send_text("x")


def test_callback_that_is_no_method_is_refused() -> None:
    class Wrong:
        on_message = "not a method"

    with pytest.raises(ListenerError, match=r"Wrong: on_message is no method"):
        create_websocket_client("ws://127.0.0.1:1/", Wrong())


def test_binary_goes_to_on_message_where_it_has_no_callback() -> None:
    class Some:
        messages: list[str | bytes] = []  # noqa: RUF012

        def on_message(self, message: str | bytes) -> None:
            self.messages.append(message)

    with raw_server(lambda sock: accept(sock, b"\x82\x01\xff\x81\x01x" + CLOSE_1000)) as url:
        assert create_websocket_client(url, Some).wait(PATIENCE)
    assert Some.messages == [b"\xff", "x"]
