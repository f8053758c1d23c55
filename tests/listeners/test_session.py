"""What a session tells of its connection and of the request that opened it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support import Server, wait_until
from support.room import MakeRoom, Room
from support.threads import in_thread
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.listeners.session import RequestRecord, Session


class Test(WebSocketListener):
    subprotocols = ("chat.v2", "chat.v1")

    def on_message(self, wsclient: Any, message: str) -> str:
        return message


def session_of(served: Room) -> Session:
    wait_until(lambda: served.wsclients.size() == 1)
    return served.wsclients.get_clients()[0].session


def test_session_shows_the_request(room: MakeRoom) -> None:
    served = room(Test)
    before = time.time()
    with served.connect(
        "?a=1&b=%C3%BC&a=2&empty=",
        subprotocols=["chat.v1", "chat.v2"],
        additional_headers={"Cookie": "flavour=oat; size=2", "X-Custom": "value"},
        origin=served.server.url("").rstrip("/"),
    ) as ws:
        session = session_of(served)
        assert session.request_uri == "/ws/test"
        assert session.query_string == "a=1&b=%C3%BC&a=2&empty="
        assert session.request_parameter_map == {"a": ["1", "2"], "b": ["ü"], "empty": [""]}
        assert session.path_parameters == {}
        assert session.negotiated_subprotocol == ws.subprotocol == "chat.v2"
        assert session.protocol_version == "13"
        assert session.extensions == ws.response.headers["Sec-WebSocket-Extensions"]
        assert session.extensions.startswith("permessage-deflate")
        assert session.user_principal is None
        assert session.is_secure is False
        assert session.remote_address == "127.0.0.1"
        assert session.headers["x-custom"] == "value"
        assert session.headers["Host"] == f"127.0.0.1:{served.server.port}"
        assert session.cookies.to_dict() == {"flavour": "oat", "size": "2"}
        assert before <= session.opened_at <= time.time()
        assert session.is_open()
        assert session.request.args["b"] == "ü"
        assert session.request.url == served.server.url("/ws/test?a=1&b=ü&a=2&empty=")
        assert session.request.method == "GET" and session.request.get_data() == b""
    wait_until(lambda: not session.is_open())
    assert session.request_uri == "/ws/test"  # all of it can be read afterwards too


def test_session_without_extras(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect(compression=None):
        session = session_of(served)
        assert (session.negotiated_subprotocol, session.extensions) == ("", "")
        assert (session.query_string, session.request_parameter_map) == ("", {})
        assert not session.cookies


def test_path_with_a_root_and_other_characters(serve: Any) -> None:
    def mounted(environ: Any, start_response: Any) -> Any:
        environ["SCRIPT_NAME"] = "/app"
        environ["wsgi.url_scheme"] = "https"
        environ["REMOTE_ADDR"] = "192.0.2.7"
        return middleware(environ, start_response)

    class Anywhere(WebSocketListener):
        path = "/<name>"

    middleware = WebSocketMiddleware(lambda environ, start: [], config=False)
    middleware.register("test", Anywhere)
    server: Server = serve(mounted)
    served = Room(server, middleware)
    with server.connect("/ws/test/gr%C3%BC%C3%9Fe"):
        session = session_of(served)
        assert session.request_uri == "/app/ws/test/grüße"
        assert session.path_parameters == {"name": "grüße"}
        assert session.to_dict()["request_uri"] == "/app/ws/test/<name>"
        assert session.is_secure is True
        assert session.remote_address == "192.0.2.7"


def test_ids_are_unique_and_long(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect(), served.connect():
        wait_until(lambda: served.wsclients.size() == 2)
        one, two = (client.id for client in served.wsclients)
        assert one != two
        assert min(len(one), len(two)) >= 22  # 128 bits


def test_user_properties_are_the_connections_own(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect(), served.connect():
        wait_until(lambda: served.wsclients.size() == 2)
        one, two = (client.session for client in served.wsclients)
        one.user_properties["name"] = "ann"
        assert one.user_properties == {"name": "ann"}
        assert two.user_properties == {}


@pytest.mark.parametrize("returned", ["ann", 7, {"name": "ann"}])
def test_user_principal_is_what_on_handshake_returned(room: MakeRoom, returned: Any) -> None:
    class Known(Test):
        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            return returned

    served = room(Known)
    with served.connect():
        assert session_of(served).user_principal == returned
        assert [client.session.user_principal for client in served.wsclients.find(returned)] == [
            returned
        ]


@pytest.mark.parametrize("has_hook", [True, False])
def test_user_principal_is_else_remote_user(serve: Any, has_hook: bool) -> None:
    def authenticated(environ: Any, start_response: Any) -> Any:
        environ["REMOTE_USER"] = "bob"
        return middleware(environ, start_response)

    class Known(WebSocketListener):
        pass

    if has_hook:
        Known.on_handshake = classmethod(lambda cls, request: True)  # type: ignore[attr-defined]
    middleware = WebSocketMiddleware(lambda environ, start: [], config=False)
    middleware.register("test", Known)
    served = Room(serve(authenticated), middleware)
    with served.connect():
        assert session_of(served).user_principal == "bob"


def test_user_principal_may_be_set(room: MakeRoom) -> None:
    class Late(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> Any:
            self.session.user_principal = message
            return [client.id == wsclient.id for client in served.wsclients.find(message)]

    served = room(Late)
    with served.connect() as ws, served.connect():
        ws.send("ann")
        assert ws.recv(5) == "[true]"


def test_max_idle_timeout_is_milliseconds_and_may_be_set(room: MakeRoom) -> None:
    served = room(Test, idle_timeout=90, ping_interval=0.1)
    with served.connect() as ws:
        session = session_of(served)
        assert session.max_idle_timeout == 90_000
        session.max_idle_timeout = 100
        assert session.max_idle_timeout == 100
        with pytest.raises(Exception, match="1001"):
            ws.recv(5)


def test_max_idle_timeout_of_zero_is_never(room: MakeRoom) -> None:
    class Quick(Test):
        idle_timeout = 0.2

    served = room(Quick)
    with served.connect() as ws:
        session = session_of(served)
        assert session.max_idle_timeout == 200
        session.max_idle_timeout = 0
        with pytest.raises(TimeoutError):
            ws.recv(0.5)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_max_idle_timeout_refuses_what_is_no_time(room: MakeRoom, value: float) -> None:
    served = room(Test)
    with served.connect():
        session = session_of(served)
        with pytest.raises(ValueError, match="max_idle_timeout is milliseconds"):
            session.max_idle_timeout = value  # type: ignore[assignment]


def test_items_and_getters_are_the_attributes(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect("?a=1"):
        session: Any = session_of(served)
        session.user_properties["x"] = 1
        names = (
            "id request_uri query_string request_parameter_map path_parameters user_properties "
            "negotiated_subprotocol protocol_version extensions max_idle_timeout user_principal "
            "is_secure remote_address cookies opened_at"
        )
        for name in names.split():
            value = getattr(session, name)
            assert session[name] == value
            assert getattr(session, f"get_{name}")() == value
        assert session["headers"]["Host"] == session.get_headers()["Host"]
        assert session["is_open"] is True
        assert session.get_request().args["a"] == "1"
        for name in ("nonsense", "_connection", "attach", "environ", "to_dict", "get_id"):
            with pytest.raises(KeyError):
                session[name]
        for name in ("get_nonsense", "get__connection", "get_attach", "nonsense"):
            with pytest.raises(AttributeError, match=name):
                getattr(session, name)


def test_session_is_read_from_a_native_thread(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect("?a=1"):
        session = session_of(served)
        found = in_thread(lambda: (session.id, session.request_parameter_map, session.is_open()))
        assert found == (session.id, {"a": ["1"]}, True)


def test_repr_shows_id_and_state_and_nothing_secret(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect("?token=secret"):
        session = session_of(served)
        assert repr(session) == f"<Session {session.id} open>"
    wait_until(lambda: not session.is_open())
    assert repr(session) == f"<Session {session.id} closed>"


def test_an_operator_is_shown_a_hundred_parameters_of_an_endless_query() -> None:
    query = "&".join(f"{number}=1" for number in range(30_000))
    environ = {"PATH_INFO": "/ws/test", "QUERY_STRING": query}
    session = Session(
        RequestRecord(environ),
        path_parameters={},
        route="",
        subprotocol="",
        extensions="",
        user_principal=None,
    )
    assert session.to_dict()["query_parameters"] == sorted(map(str, range(100)))
    assert session.query_string == query
