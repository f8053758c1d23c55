"""`trusted_hosts`: which names the server answers to, against DNS rebinding."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import flask
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from support import Server, websocket_request
from support.apps import Echo
from support.handshakes import handshake
from wsmiddleware import WebSocketMiddleware

Serve = Callable[..., Server]


def page_of(**config: Any) -> flask.Flask:
    app = flask.Flask(__name__)
    app.config.update(config)
    app.add_url_rule("/", "index", lambda: flask.request.host)
    return app


def wrapped(app: flask.Flask, **options: Any) -> WebSocketMiddleware:
    middleware = WebSocketMiddleware(app.wsgi_app, config=False, **options)
    middleware.register("echo", Echo)
    return middleware


def status(server: Server, host: str, **headers: str | None) -> int:
    """What a handshake from the host's own page gets."""
    fields = {"origin": f"http://{host}", **headers}
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo", host=host, **fields))
        return int(sock.recv(4096).split()[1])


TRUSTED = [".example.com", "127.0.0.1", "localhost"]

HOSTS = [
    "example.com", "example.com:80", "a.example.com", "a.b.example.com:8000", "localhost:1",
    "127.0.0.1", "127.0.0.1:8000", "evil.example", "example.com.evil.example", "evilexample.com",
    "example.com.", "localhost.evil.example", "10.0.0.1", "[::1]", "[::1]:8000", "a_b.example.com",
    "EXAMPLE.com", "example.com:99999", "localhost:0", "localhost:080", "\xe9.example.com",
    "127.0.0.1.", "." * 100, "\xfc." * 100 + "example.com",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_flasks_trusted_hosts_decide_as_in_a_view(host: str, serve: Serve) -> None:
    app = page_of(TRUSTED_HOSTS=TRUSTED)
    server = serve(wrapped(app, request_context=app.request_context))
    view = server.get("/", Host=host).status
    assert view in (200, 400)
    assert status(server, host) == {200: 101, 400: 400}[view]


@pytest.mark.parametrize(
    "host", ["example.com", "example", "com", ".com", "a.example.com", "[", ""]
)
def test_flasks_may_be_one_name_in_a_string(host: str, serve: Serve) -> None:
    app = page_of(TRUSTED_HOSTS="example.com")
    server = serve(wrapped(app, request_context=app.request_context))
    assert status(server, host) == (101 if host == "example.com" else 400)


@pytest.mark.parametrize("host", HOSTS)
def test_the_setting_decides_as_flasks_does(host: str, serve: Serve) -> None:
    app = page_of(TRUSTED_HOSTS=TRUSTED)
    server = serve(wrapped(app, trusted_hosts=TRUSTED))
    assert status(server, host) == {200: 101, 400: 400}[server.get("/", Host=host).status]


def test_the_setting_wins_over_flasks(serve: Serve) -> None:
    app = page_of(TRUSTED_HOSTS=["a.example"])
    server = serve(wrapped(app, request_context=app.request_context, trusted_hosts=["b.example"]))
    assert [status(server, host) for host in ("a.example", "b.example")] == [400, 101]


def test_an_application_may_be_configured_after_it_was_wrapped(serve: Serve) -> None:
    app = page_of()
    server = serve(wrapped(app, request_context=app.request_context))
    assert status(server, "evil.example") == 101
    app.config["TRUSTED_HOSTS"] = ["example.com"]
    assert [status(server, host) for host in ("evil.example", "example.com")] == [400, 101]
    app.config["TRUSTED_HOSTS"] = None
    assert status(server, "evil.example") == 101


def test_a_class_of_requests_may_name_them(serve: Serve) -> None:
    class Request(flask.Request):
        trusted_hosts = ["example.com"]  # noqa: RUF012

    app = page_of()
    app.request_class = Request
    server = serve(wrapped(app, request_context=app.request_context))
    for host in ("evil.example", "example.com"):
        assert status(server, host) == {200: 101, 400: 400}[server.get("/", Host=host).status]


def test_what_werkzeug_takes_for_no_host_can_be_listed(serve: Serve) -> None:
    server = serve(wrapped(page_of(), trusted_hosts=["[::1]", "my_host"]))
    for host in ("[::1]", "[::1]:8000", "my_host", "my_host:80"):
        assert status(server, host) == 101
    for host in ("[::2]", "your_host", "a.my_host"):
        assert status(server, host) == 400


@pytest.mark.parametrize("make", ["none", "flask", "other"])
def test_without_any_every_host_is_served(make: str, serve: Serve) -> None:
    app = page_of(TRUSTED_HOSTS=None if make == "flask" else ["example.com"])
    context = {"none": None, "flask": app.request_context}.get(
        make, lambda environ: page_of().request_context(environ)
    )
    assert status(serve(wrapped(app, request_context=context)), "evil.example") == 101


def test_the_host_is_the_one_that_proxy_fix_leaves(serve: Serve) -> None:
    middleware = wrapped(page_of(), trusted_hosts=["shop.example"])
    server = serve(ProxyFix(middleware, x_host=1))
    ask = partial(status, server, origin="https://shop.example")
    assert ask("10.0.0.7", **{"X-Forwarded-Host": "shop.example"}) == 101
    assert ask("10.0.0.7", **{"X-Forwarded-Host": "evil.example"}) == 400
    assert ask("10.0.0.7") == 400


def test_nobody_is_exempt_for_having_no_origin(serve: Serve) -> None:
    server = serve(wrapped(page_of(), trusted_hosts=["example.com"], allowed_origins="*"))
    assert status(server, "evil.example", origin=None) == 400
    assert status(server, "example.com", origin=None) == 101


def test_the_log_says_what_to_set_and_the_peer_learns_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(wrapped(page_of(), trusted_hosts=["example.com"]))
    with caplog.at_level(logging.WARNING, "websocket"):
        answer = handshake(server, "/ws/echo", host="evil.example")
    assert (answer.status, answer.body) == (400, b"This host is not served here.\n")
    (line,) = [text for text in caplog.messages if text.startswith("refused")]
    assert "untrusted host 'evil.example'" in line
    assert "add it to trusted_hosts (WSMIDDLEWARE_TRUSTED_HOSTS" in line
    assert "TRUSTED_HOSTS" in line and "ProxyFix" in line
