"""Origins, subprotocols and compression, as an independent client finds them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from support import Server, websocket_request
from support.apps import Echo, first_message, status_of, wrap

Serve = Callable[..., Server]


# -- origins, on the wire --------------------------------------------------------------------------


def test_own_page_is_let_in_and_a_foreign_one_is_not(serve: Serve) -> None:
    server = serve(wrap())
    own = f"http://127.0.0.1:{server.port}"
    assert first_message(server, "/ws/echo", origin=own) == "echo []"
    assert status_of(server, "/ws/echo", origin="http://127.0.0.1:1") == 403
    assert status_of(server, "/ws/echo", origin=f"{own}.attacker.org") == 403


def test_origin_is_compared_with_what_proxy_fix_leaves(serve: Serve) -> None:
    forwarded = {
        "X-Forwarded-Host": "shop.example",
        "X-Forwarded-Port": "8443",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.9",
    }
    middleware = wrap()
    options = {"additional_headers": forwarded, "origin": "https://shop.example:8443"}
    fixed = serve(ProxyFix(middleware, x_host=1, x_port=1))
    assert first_message(fixed, "/ws/echo", **options) == "echo []"
    # Without it, what a client may forge counts for nothing.
    assert status_of(serve(middleware), "/ws/echo", **options) == 403
    options["origin"] = "https://shop.example"
    assert status_of(fixed, "/ws/echo", **options) == 403


def test_setting_lets_listed_origins_in(serve: Serve) -> None:
    server = serve(wrap(allowed_origins=["https://*.example.com", "null"]))
    assert first_message(server, "/ws/echo", origin="https://a.example.com") == "echo []"
    assert first_message(server, "/ws/echo", origin="null") == "echo []"
    look_alike = "https://evil.example.com.attacker.org"
    assert status_of(server, "/ws/echo", origin=look_alike) == 403


@pytest.mark.parametrize(
    "origin", ["file://", "app://.", "app://\xfc", "App://a b", "null", "x://'"]
)
def test_setting_takes_what_the_log_shows(
    origin: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def status(server: Server, origin: str) -> int:
        with server.socket() as sock:
            sock.sendall(websocket_request("/ws/echo", origin=origin))
            return int(sock.recv(4096).split()[1])

    assert status(serve(wrap()), origin) == 403
    (shown,) = re.findall(r"foreign origin '(.*)' for host '127.0.0.1'; to let it in", caplog.text)
    monkeypatch.setenv("WSMIDDLEWARE_ALLOWED_ORIGINS", f"same-origin, {shown}")
    server = serve(wrap())
    assert [status(server, text) for text in (origin, "http://127.0.0.1")] == [101, 101]
    assert [status(server, text) for text in (f"{origin}x", "http://localhost")] == [403, 403]


# -- what is agreed to, on the wire ----------------------------------------------------------------


def test_subprotocol_is_agreed(serve: Serve) -> None:
    class Own(Echo):
        subprotocols = ("own.v2", "own.v1")

        def on_open(self, wsclient: Any) -> str:
            return self.session.negotiated_subprotocol

    middleware = wrap(subprotocols=["general"])
    middleware.register("own", Own)
    server = serve(middleware)
    offer = ["own.v1", "general", "own.v2"]
    with server.connect("/ws/own", subprotocols=offer) as ws:
        assert ws.recv(5) == ws.subprotocol == "own.v2"
    with server.connect("/ws/echo", subprotocols=offer) as ws:
        assert ws.subprotocol == "general"
    with server.connect("/ws/own", subprotocols=["other"]) as ws:
        assert ws.subprotocol is None


@pytest.mark.parametrize("is_on", [True, False])
def test_compression_is_agreed_or_off(is_on: bool, serve: Serve) -> None:
    text = "compressible " * 1000
    with serve(wrap(compression=is_on)).connect("/ws/echo") as ws:
        assert ws.response is not None
        agreed = ws.response.headers.get("Sec-WebSocket-Extensions", "")
        ws.recv(5)
        ws.send(text)
        assert ws.recv(5) == text
    wanted = ["permessage-deflate", "server_no_context_takeover", "client_no_context_takeover"]
    assert agreed.split("; ") == (wanted if is_on else [""])


def test_compression_is_declined_by_a_client_that_does_not_offer_it(serve: Serve) -> None:
    with serve(wrap()).connect("/ws/echo", compression=None) as ws:
        assert ws.response is not None
        assert "Sec-WebSocket-Extensions" not in ws.response.headers
        assert ws.recv(5) == "echo []"
