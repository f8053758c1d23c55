"""The checks of an opening handshake, on environs: no server, no socket."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from websockets.utils import accept_key

from wsmiddleware import WebSocketListener
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.contract import Contract
from wsmiddleware.metrics import Metrics
from wsmiddleware.policy import Acceptance, agree, check_request, decode_path, refuse
from wsmiddleware.settings import Settings

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def environ(**changes: str | None) -> dict[str, Any]:
    """A valid handshake; `None` leaves a variable out."""
    valid: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.com",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    return {name: value for name, value in {**valid, **changes}.items() if value is not None}


def status_of(request: dict[str, Any]) -> int:
    """What `check_request` answers; 101 when it finds no fault."""
    refusal = check_request(request)
    return refusal.response.status_code if refusal else 101


def agreed(
    subprotocols: tuple[str, ...] | None = None, settings: Settings | None = None, **changes: str
) -> Acceptance:
    """What a channel whose listener supports `subprotocols` agrees to."""
    settings = settings or Settings()
    listener = type("Chat", (WebSocketListener,), {"subprotocols": subprotocols})
    channel = Channel("chat", Contract(listener, settings), Metrics(), lambda: iter(()))
    return agree(environ(**changes), channel, is_answered=False)


# -- the request -----------------------------------------------------------------------------------


def test_valid_handshake_is_not_refused() -> None:
    assert status_of(environ()) == 101


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS", "get"])
def test_other_method_gets_405(method: str) -> None:
    refusal = check_request(environ(REQUEST_METHOD=method))
    assert refusal is not None
    assert refusal.response.status_code == 405
    assert refusal.response.headers["Allow"] == "GET"


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket", " websocket ,x"])
@pytest.mark.parametrize("connection", ["upgrade", "Upgrade", "keep-alive, Upgrade", ",UPGRADE,"])
def test_tokens_are_found_in_lists_and_in_any_case(upgrade: str, connection: str) -> None:
    assert status_of(environ(HTTP_UPGRADE=upgrade, HTTP_CONNECTION=connection)) == 101


@pytest.mark.parametrize(
    "changes",
    [
        {"HTTP_UPGRADE": None},
        {"HTTP_UPGRADE": ""},
        {"HTTP_UPGRADE": "websockets"},
        {"HTTP_UPGRADE": "notwebsocket"},
        {"HTTP_UPGRADE": "web socket"},
        {"HTTP_UPGRADE": "websocket/13"},
        {"HTTP_CONNECTION": None},
        {"HTTP_CONNECTION": "keep-alive"},
        {"HTTP_CONNECTION": "upgrade-insecure"},
        {"HTTP_CONNECTION": "keep-alive Upgrade"},
    ],
)
def test_request_without_both_tokens_gets_426(changes: dict[str, str | None]) -> None:
    refusal = check_request(environ(**changes))
    assert refusal is not None
    assert refusal.response.status_code == 426
    assert refusal.response.headers["Upgrade"] == "websocket"


@pytest.mark.parametrize(
    "changes",
    [
        {"SERVER_PROTOCOL": "HTTP/1.0"},
        {"SERVER_PROTOCOL": "HTTP/0.9"},
        {"SERVER_PROTOCOL": ""},
        {"SERVER_PROTOCOL": None},
        {"CONTENT_LENGTH": "1"},
        {"CONTENT_LENGTH": "-1"},
        {"CONTENT_LENGTH": "x"},
        {"HTTP_TRANSFER_ENCODING": "chunked"},
        {"HTTP_TRANSFER_ENCODING": "identity"},
        {"HTTP_HOST": None},
        {"HTTP_HOST": ""},
        {"HTTP_HOST": "example.com,evil.example"},
        {"HTTP_SEC_WEBSOCKET_KEY": None},
        {"HTTP_SEC_WEBSOCKET_KEY": ""},
        {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25j"},  # 15 bytes
        {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZSE="},  # 17 bytes
        {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ"},  # no padding
        {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZ-=="},  # another alphabet
        {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhb XBsZSBub25jZQ="},
        {"HTTP_SEC_WEBSOCKET_KEY": "\x0b" + KEY},
        {"HTTP_SEC_WEBSOCKET_KEY": f"{KEY},{KEY}"},  # there twice
        {"HTTP_SEC_WEBSOCKET_KEY": "\xe9" * 24},
    ],
)
def test_bad_request_gets_400(changes: dict[str, str | None]) -> None:
    assert status_of(environ(**changes)) == 400


@pytest.mark.parametrize("length", ["0", "", None])
def test_empty_body_is_no_body(length: str | None) -> None:
    assert status_of(environ(CONTENT_LENGTH=length)) == 101


def test_blanks_around_key_and_version_are_none_of_theirs() -> None:
    request = environ(HTTP_SEC_WEBSOCKET_KEY=f" {KEY}\t", HTTP_SEC_WEBSOCKET_VERSION=" 13\t")
    assert status_of(request) == 101


LINES = {
    "HTTP_UPGRADE": "proxy_set_header Upgrade $http_upgrade;",
    "HTTP_CONNECTION": 'proxy_set_header Connection "upgrade";',
    "SERVER_PROTOCOL": "proxy_http_version 1.1;",
}


@pytest.mark.parametrize("lost", [lost for size in (1, 2, 3) for lost in combinations(LINES, size)])
def test_handshake_that_a_proxy_cut_names_the_missing_lines(lost: tuple[str, ...]) -> None:
    passed = {"HTTP_UPGRADE": None, "HTTP_CONNECTION": "close", "SERVER_PROTOCOL": "HTTP/1.0"}
    refusal = check_request(environ(**{name: passed[name] for name in lost}))
    assert refusal is not None and refusal.is_advice
    assert {name for name in LINES if LINES[name] in refusal.reason} == set(lost)
    is_426 = lost != ("SERVER_PROTOCOL",)
    assert refusal.response.status_code == (426 if is_426 else 400)
    if is_426:  # who asks is told as well
        assert refusal.reason in refusal.response.get_data(as_text=True)


def test_plain_request_to_a_channel_is_no_news() -> None:
    plain = environ(HTTP_UPGRADE=None, HTTP_CONNECTION=None, HTTP_SEC_WEBSOCKET_KEY=None)
    refusal = check_request(plain)
    assert refusal is not None and not refusal.is_advice


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "013", "13.0", "13,13", "13, 8"])
def test_other_version_gets_426_with_ours(version: str | None) -> None:
    refusal = check_request(environ(HTTP_SEC_WEBSOCKET_VERSION=version))
    assert refusal is not None
    assert refusal.response.status_code == 426
    assert refusal.response.headers["Sec-WebSocket-Version"] == "13"
    assert refusal.response.headers["Upgrade"] == "websocket"


def test_checks_come_in_their_order() -> None:
    wrong: dict[str, str | None] = {
        "REQUEST_METHOD": "POST",
        "HTTP_CONNECTION": "close",
        "HTTP_SEC_WEBSOCKET_KEY": "short",
        "HTTP_SEC_WEBSOCKET_VERSION": "8",
    }
    found = []
    for right in [*wrong, ""]:
        found.append(status_of(environ(**wrong)))
        wrong.pop(right, None)
    assert found == [405, 426, 400, 426, 101]


def test_refusal_closes_and_says_why_in_plain_text() -> None:
    refusal = refuse(418, "No tea.", {"Retry-After": "5"}, reason="for the operator")
    assert refusal.response.get_data() == b"No tea.\n"
    assert refusal.response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert refusal.response.headers["Connection"] == "close"
    assert refusal.response.headers["Retry-After"] == "5"
    assert (refusal.text, refusal.reason) == ("No tea.", "for the operator")


def test_refusal_where_the_server_decides_leaves_the_connection_alone() -> None:
    assert "Connection" not in refuse(501, "x", closes=False).response.headers


@pytest.mark.parametrize(
    ("path", "text"),
    [("/ws/a", "/ws/a"), ("/ws/\xc3\xa9", "/ws/é"), ("/\xff", "/�"), ("/é€", "/�?")],
)
def test_path_is_decoded(path: str, text: str) -> None:
    assert decode_path({"PATH_INFO": path}) == text


# -- what is agreed to -----------------------------------------------------------------------------


def test_accepted_handshake_is_answered_with_the_key() -> None:
    assert agreed(HTTP_SEC_WEBSOCKET_KEY=f" {KEY} ") == Acceptance(
        [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(KEY)),
        ]
    )


def test_nothing_is_agreed_to_behind_a_101_of_somebody_elses() -> None:
    settings = Settings(subprotocols=("chat",))
    channel = Channel("chat", Contract(WebSocketListener, settings), Metrics(), lambda: iter(()))
    request = environ(
        HTTP_SEC_WEBSOCKET_PROTOCOL="chat", HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate"
    )
    assert agree(request, channel, is_answered=True) == Acceptance([])


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("chat.v1, chat.v2", "chat.v2"),
        ("chat.v1", "chat.v1"),
        ("other,chat.v1", "chat.v1"),
        ("other", ""),
        ("Chat.v1", ""),
        ("chat", ""),
        ("", ""),
    ],
)
def test_subprotocol_is_the_servers_preference(offered: str, chosen: str) -> None:
    settings = Settings(subprotocols=("chat.v2", "chat.v1"))
    acceptance = agreed(settings=settings, HTTP_SEC_WEBSOCKET_PROTOCOL=offered)
    assert acceptance.subprotocol == chosen
    headers = dict(acceptance.headers)
    assert headers.get("Sec-WebSocket-Protocol") == (chosen or None)


def test_listeners_own_subprotocols_win() -> None:
    settings, offer = Settings(subprotocols=("general",)), "general, own"
    assert agreed(("own",), settings, HTTP_SEC_WEBSOCKET_PROTOCOL=offer).subprotocol == "own"
    assert agreed((), settings, HTTP_SEC_WEBSOCKET_PROTOCOL=offer).subprotocol == ""
    assert agreed(None, settings, HTTP_SEC_WEBSOCKET_PROTOCOL=offer).subprotocol == "general"


def test_compression_is_agreed_without_context() -> None:
    acceptance = agreed(HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate; client_max_window_bits")
    assert acceptance.extensions == DEFLATE
    assert ("Sec-WebSocket-Extensions", DEFLATE) in acceptance.headers
    assert acceptance.deflate is not None


@pytest.mark.parametrize(
    "offer", ["", "x-webkit-deflate-frame", "permessage-deflate; nonsense", "="]
)
def test_compression_is_declined_without_a_word(offer: str) -> None:
    acceptance = agreed(HTTP_SEC_WEBSOCKET_EXTENSIONS=offer)
    assert (acceptance.extensions, acceptance.deflate) == ("", None)
    assert "Sec-WebSocket-Extensions" not in dict(acceptance.headers)


def test_compression_is_declined_where_it_is_off() -> None:
    off = Settings(compression=False)
    acceptance = agreed(settings=off, HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate")
    assert (acceptance.extensions, acceptance.deflate) == ("", None)
