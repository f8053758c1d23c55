"""`Accept`: what `on_handshake` decides beside the user, and when that is over."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Any

import flask
import gevent
import pytest
from websockets.exceptions import ConnectionClosed
from werkzeug.datastructures import Headers
from werkzeug.exceptions import Unauthorized
from werkzeug.http import dump_cookie
from werkzeug.local import LocalProxy

from support import Server, wait_until
from support.apps import first_message, status_of, wrap
from support.room import MakeRoom, hold_up_thread
from support.threads import in_thread
from wsmiddleware import Accept, WebSocketListener
from wsmiddleware.middleware import WebSocketMiddleware

Serve = Callable[..., Server]
UTC = dt.timezone.utc


def accepting(answer: Callable[[], Any], **options: Any) -> WebSocketMiddleware:
    """A middleware whose channel `echo` answers so, and says who was let in."""

    class Accepting(WebSocketListener):
        subprotocols = ("chat.v2", "chat.v1")

        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            return answer()

        def on_open(self, wsclient: Any) -> str:
            return f"{self.session.user_principal} {self.session.negotiated_subprotocol}"

    return wrap(listener=Accepting, **options)


# -- the user --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "said"), [("ann", "ann "), (True, "None "), (0, "0 "), (LocalProxy(lambda: 7), "7 ")]
)
def test_user_is_let_in_as_one_alone_would_be(serve: Serve, user: Any, said: str) -> None:
    server = serve(accepting(lambda: Accept(user)))
    assert first_message(server, "/ws/echo") == said


class Anonymous:
    is_authenticated = False


@pytest.mark.parametrize(
    ("user", "status"),
    [
        (None, 403),
        (False, 403),
        (Anonymous(), 403),
        (LocalProxy(lambda: None), 403),
        (LocalProxy(Anonymous), 403),
        (Unauthorized(), 401),
        (Unauthorized, 401),
    ],
)
def test_nobody_is_let_in_by_it(serve: Serve, user: Any, status: int) -> None:
    assert status_of(serve(accepting(lambda: Accept(user))), "/ws/echo") == status


def test_one_that_is_kept_for_all_names_each_user(serve: Serve) -> None:
    kept, users = Accept(LocalProxy(lambda: users.pop())), ["ann", "bob"]
    server = serve(accepting(lambda: kept))
    assert [first_message(server, "/ws/echo") for _ in range(2)] == ["bob ", "ann "]


# -- the subprotocol -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "offered", "spoken"),
    [
        ("chat.v1", ["chat.v2", "chat.v1"], "chat.v1"),
        ("own", ["own", "token.abc"], "own"),
        (None, ["chat.v1", "token.abc"], "chat.v1"),
        ("own", ["chat.v1"], ""),
        ("own", None, ""),
    ],
)
def test_subprotocol_is_the_one_named(
    serve: Serve, named: str | None, offered: Any, spoken: str
) -> None:
    server = serve(accepting(lambda: Accept("ann", subprotocol=named)))
    with server.connect("/ws/echo", subprotocols=offered) as ws:
        assert ws.recv(5) == f"ann {spoken}"
        assert (ws.subprotocol or "") == spoken


def test_offer_of_which_none_is_spoken_is_a_line_without_it(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(accepting(lambda: True))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "websocket"):
        first_message(server, "/ws/echo")
        first_message(server, "/ws/echo", subprotocols=["chat.v1", "token.s3cret"])
        assert not caplog.records
        first_message(server, "/ws/echo", subprotocols=["chat.v3", "token.s3cret"])
    [told] = [record.getMessage() for record in caplog.records]
    assert "channel echo: of 2 subprotocol(s)" in told and "chat.v2, chat.v1" in told
    assert "s3cret" not in told and "chat.v3" not in told


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a\r\nb", b"chat", 1, "é"])
def test_subprotocol_that_is_none_is_a_value_error(name: Any) -> None:
    with pytest.raises(ValueError, match="subprotocol is "):
        Accept("ann", subprotocol=name)


# -- headers ---------------------------------------------------------------------------------------

COOKIES = [("Set-Cookie", dump_cookie("a", "1")), ("Set-Cookie", dump_cookie("b", "2"))]


@pytest.mark.parametrize(
    "headers", [COOKIES, tuple(COOKIES), Headers(COOKIES), (pair for pair in COOKIES)]
)
def test_headers_go_out_with_the_101(serve: Serve, headers: Any) -> None:
    accept = Accept("ann", headers=headers)
    server = serve(accepting(lambda: accept))
    with server.connect("/ws/echo") as ws:
        assert ws.recv(5) == "ann "
        assert ws.response is not None
        assert ws.response.headers.get_all("Set-Cookie") == [value for _, value in COOKIES]


def test_headers_may_be_a_mapping() -> None:
    assert Accept("ann", headers={"X-Room": "7", "X-Empty": ""}).headers == (
        ("X-Room", "7"),
        ("X-Empty", ""),
    )


OWN = ["Upgrade", "connection", "Sec-WebSocket-Accept", "SEC-WEBSOCKET-PROTOCOL", "Keep-Alive",
       "Sec-WebSocket-Extensions", "Sec-Websocket-Anything", "Content-Length",
       "Transfer-Encoding"]  # fmt: skip
BROKEN = [
    *(("X", f"a{sign}b") for sign in ("\r\n", "\n", "\r", "\0", "\x1b", "\x7f", "\x85", "€")),
    *((f"X{sign}Y", "a") for sign in ("\r\n", " ", ":", "\0", "é")),
    *(("", "a"), ("X", None), (b"X", b"a"), ("X", 1), ("X",), ("X", "a", "b"), "Xa", 1, None),
    ("X: a\r\nSet-Cookie", "b"),
]


@pytest.mark.parametrize("pair", [*((name, "x") for name in OWN), *BROKEN])
def test_header_that_may_not_be_sent_is_a_500(
    serve: Serve, caplog: pytest.LogCaptureFixture, pair: Any
) -> None:
    with pytest.raises(ValueError, match=r"is no header|is the handshake's own"):
        Accept("ann", headers=[("X-Fine", "1"), pair])
    server = serve(accepting(lambda: Accept("ann", headers=[pair])))
    assert status_of(server, "/ws/echo") == 500
    assert "ValueError in a handshake" in caplog.text


# -- the time --------------------------------------------------------------------------------------


def wait_for_4401(ws: Any) -> float:
    """The time at which the server closed."""
    with pytest.raises(ConnectionClosed):
        while True:
            ws.recv(10)
    assert (ws.close_code, ws.close_reason) == (4401, "expired")
    return time.time()


@pytest.mark.parametrize("left", [-3600, 0, 0.6, 1.7])
@pytest.mark.parametrize("make", [float, lambda at: dt.datetime.fromtimestamp(at, UTC)])
def test_connection_is_closed_within_a_second_of_its_time(
    serve: Serve, left: float, make: Any
) -> None:
    at = time.time() + left
    server = serve(accepting(lambda: Accept("ann", expires_at=make(at))))
    with server.connect("/ws/echo") as ws:
        due = max(at, time.time())
        assert -0.01 < wait_for_4401(ws) - due < 1.0


def test_busy_connection_is_closed_too(room: MakeRoom) -> None:
    at = time.time() + 0.5

    class Busy(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Accept:
            return Accept("ann", expires_at=at)

        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    with (
        room(Busy, idle_timeout=0, ping_interval=0).connect() as ws,
        pytest.raises(ConnectionClosed),
    ):
        while True:
            ws.send("x")
            ws.recv(5)
            gevent.sleep(0.01)
            assert time.time() < at + 1.0
    assert ws.close_code == 4401


def test_while_the_loop_was_held_up_time_has_passed_all_the_same(room: MakeRoom) -> None:
    class Held(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            self.session.expires_at = time.time() + 2.5
            hold_up_thread(2.0)  # our own clock stands still meanwhile

    with room(Held).connect() as ws:
        due = time.time() + 2.5
        ws.send("x")
        assert -0.2 < wait_for_4401(ws) - due < 1.0


@pytest.mark.parametrize("call", [lambda function: function(), in_thread])
def test_session_changes_it_later(room: MakeRoom, call: Callable[..., Any]) -> None:
    class Long(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Accept:
            return Accept("ann", expires_at=time.time() + 3600)

    served = room(Long)
    with served.connect() as ws:
        wait_until(lambda: served.wsclients.size() == 1)
        session = served.wsclients.get_clients()[0].session
        assert session.expires_at == session["expires_at"] == session.get_expires_at()
        assert session.expires_at is not None
        assert 3500 < session.expires_at - time.time() <= 3600
        call(lambda: setattr(session, "expires_at", None))
        assert session.expires_at is None
        due = time.time() + 0.3
        call(lambda: setattr(session, "expires_at", dt.datetime.fromtimestamp(due, UTC)))
        assert wait_for_4401(ws) - due < 1.0


@pytest.mark.parametrize(
    "at",
    [
        dt.datetime(2030, 1, 1),
        dt.date(2030, 1, 1),
        "2030",
        True,
        float("nan"),
        float("inf"),
        10**400,
    ],
)
def test_what_is_no_time_is_a_value_error(at: Any) -> None:
    with pytest.raises(ValueError, match=r"expires_at is .*; valid is Unix seconds, a datetime"):
        Accept("ann", expires_at=at)


def test_token_beside_the_subprotocol_inside_flask(serve: Serve) -> None:
    app = flask.Flask(__name__)

    class Chat(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Accept:
            *_, token = flask.request.headers["Sec-WebSocket-Protocol"].split(", ")
            return Accept({"token.ann": "ann"}.get(token), subprotocol="chat")

        def on_open(self, wsclient: Any) -> str:
            return str(self.session.user_principal)

    server = serve(wrap(app, listener=Chat, request_context=app.request_context))
    with server.connect("/ws/echo", subprotocols=["chat", "token.ann"]) as ws:
        assert (ws.subprotocol, ws.recv(5)) == ("chat", "ann")
    assert status_of(server, "/ws/echo", subprotocols=["chat", "token.bob"]) == 403
