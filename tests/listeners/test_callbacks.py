"""What a listener's callbacks are given, what becomes of what they return, and their order."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from support import Server, wait_until, websocket_request
from support.room import MakeRoom
from wsmiddleware import ListenerError, WebSocketListener, WebSocketMiddleware


class Echo(WebSocketListener):
    def on_message(self, wsclient: Any, message: Any) -> Any:
        return message


# -- the instance -----------------------------------------------------------------------------


def test_listener_knows_client_session_and_channel_before_on_open(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> Any:
            assert self.wsclient is wsclient
            assert self.session is wsclient.session is wsclient.get_session()
            return [self.channel, wsclient.channel, self.session.id == wsclient.id]

    with room(Test).connect() as ws:
        assert json.loads(ws.recv(5)) == ["test", "test", True]


def test_instance_belongs_to_one_connection_and_class_to_all(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        total = 0

        def __init__(self) -> None:
            self.own = 0

        def on_message(self, wsclient: Any, message: str) -> Any:
            self.own += 1
            Test.total += 1
            return [self.own, Test.total]

    served = room(Test)
    with served.connect() as one, served.connect() as other:
        answers = []
        for ws in (one, other, one):
            ws.send("x")
            answers.append(json.loads(ws.recv(5)))
    assert answers == [[1, 1], [1, 2], [2, 3]]


def test_listener_without_callbacks_is_a_channel(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        pass

    served = room(Test)
    with served.connect() as ws:
        ws.send("text")
        ws.send(b"binary")
        assert ws.ping().wait(5)
        assert served.wsclients.size() == 1


def test_path_below_the_channel_gives_parameters(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        path = "/room/<int:id>"

        def on_open(self, wsclient: Any) -> Any:
            return self.session.path_parameters

    served = room(Test)
    with served.server.connect("/ws/test/room/7") as ws:
        assert json.loads(ws.recv(5)) == {"id": 7}
    with served.connect() as ws:
        assert json.loads(ws.recv(5)) == {}
    for path in ("/ws/test/room", "/ws/test/room/x", "/ws/test/room/7/more", "/ws/tes"):
        assert served.server.get(path).status == 404


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"on_open": 3}, "on_open is no method: 3"),
        ({"on_first_open": lambda cls, wsclients: None}, "on_first_open must be a classmethod"),
        ({"on_open": classmethod(lambda cls, w: None)}, "on_open must not be a classmethod"),
        ({"path": "room"}, "path is 'room'"),
    ],
)
def test_class_with_a_mistake_is_refused(body: dict[str, Any], complaint: str) -> None:
    middleware = WebSocketMiddleware(lambda environ, start: [], config=False)
    with pytest.raises(ListenerError, match=complaint):
        middleware.register("test", type("Test", (WebSocketListener,), body))
    assert "test" not in middleware.registry.channels


def test_async_callback_is_refused() -> None:
    class Test(WebSocketListener):
        async def on_message(self, wsclient: Any, message: str) -> None: ...

    middleware = WebSocketMiddleware(lambda environ, start: [], config=False)
    with pytest.raises(
        ListenerError, match=r"test_callbacks\.py, line \d+, class .*Test: on_message is async"
    ):
        middleware.register("test", Test)


# -- what is returned, what arrives ----------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "received"),
    [
        ("text", "text"),
        ("", ""),
        ("grüße 🦝", "grüße 🦝"),
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view")[1:], b"iew"),
        ({"a": [1, 2.5, None, True]}, '{"a": [1, 2.5, null, true]}'),
        ([], "[]"),
        (0, "0"),
        (False, "false"),
        (1.5, "1.5"),
        ("ü", "ü"),
        (["ü"], '["ü"]'),
    ],
    ids=repr,
)
def test_returned_value_is_sent(room: MakeRoom, returned: Any, received: Any) -> None:
    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> Any:
            return returned

        def on_message(self, wsclient: Any, message: str) -> Any:
            if message == "raise":
                raise ValueError
            return returned

        def on_error(self, wsclient: Any, exception: BaseException) -> Any:
            return returned

    with room(Test).connect() as ws:
        assert ws.recv(5) == received
        ws.send("hello")
        assert ws.recv(5) == received
        ws.send("raise")
        assert ws.recv(5) == received


def test_none_sends_nothing(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None: ...
        def on_message(self, wsclient: Any, message: str) -> Any:
            return None if message == "none" else message

    with room(Test).connect() as ws:
        ws.send("none")
        ws.send("something")
        assert ws.recv(5) == "something"


@pytest.mark.parametrize("returned", [object(), {1, 2}, float("nan"), {"x": float("inf")}], ids=str)
def test_value_that_json_cannot_hold_is_an_error(room: MakeRoom, returned: Any) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> Any:
            return returned

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return f"{type(exception).__name__}: {exception}"

    with room(Test).connect() as ws:
        ws.send("x")
        answer = ws.recv(5)
        assert answer.startswith(f"TypeError: cannot send {type(returned).__name__}: str, bytes or")


def test_text_arrives_as_str_and_binary_as_bytes_in_on_message(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> str:
            return f"{type(message).__name__} {message!r}"

    with room(Test).connect() as ws:
        ws.send("text")
        ws.send(b"\x00\xff")
        assert [ws.recv(5), ws.recv(5)] == ["str 'text'", r"bytes b'\x00\xff'"]


def test_binary_arrives_in_on_binary_message_where_there_is_one(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            return f"text {message!r}"

        def on_binary_message(self, wsclient: Any, data: bytes) -> bytes:
            assert type(data) is bytes
            return data[::-1]

    with room(Test).connect() as ws:
        ws.send(b"abc")
        ws.send("abc")
        assert [ws.recv(5), ws.recv(5)] == [b"cba", "text 'abc'"]


def test_only_on_binary_message_drops_text(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_binary_message(self, wsclient: Any, data: bytes) -> bytes:
            return data

    with room(Test).connect() as ws:
        ws.send("text")
        ws.send(b"binary")
        assert ws.recv(5) == b"binary"


# -- order ------------------------------------------------------------------------------------


def test_callbacks_of_one_connection_run_one_at_a_time_and_in_order(room: MakeRoom) -> None:
    log: list[str] = []

    class Test(WebSocketListener):
        def work(self, name: str) -> None:
            log.append(f"{name} begins")
            gevent.sleep(0.001)
            log.append(f"{name} ends")

        def on_open(self, wsclient: Any) -> None:
            self.work("open")

        def on_message(self, wsclient: Any, message: str) -> None:
            self.work(message)
            if message == "3":
                raise ValueError

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            self.work("error")

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            self.work("close")

    served = room(Test)
    with served.connect() as ws:
        for number in range(50):
            ws.send(str(number))
    served.wait_until_settled()

    names = ["open", *map(str, range(50)), "close"]
    names.insert(names.index("3") + 1, "error")
    assert log == [line for name in names for line in (f"{name} begins", f"{name} ends")]


def test_callbacks_of_different_connections_run_concurrently(room: MakeRoom) -> None:
    inside: list[str] = []
    everybody = Event()

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            inside.append(message)
            if len(inside) == 5:
                everybody.set()
            assert everybody.wait(5), "the others do not get in"
            return "together"

    served = room(Test)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 5)
        for ws in clients:
            ws.send("x")
        assert [ws.recv(5) for ws in clients] == ["together"] * 5


def test_callback_may_block_on_a_queue_without_stopping_others(room: MakeRoom) -> None:
    queue: Queue = Queue()
    is_waiting = Event()

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> Any:
            is_waiting.set()
            return queue.get(timeout=5) if message == "wait" else message

    served = room(Test)
    with served.connect() as waiting, served.connect() as other:
        waiting.send("wait")
        assert is_waiting.wait(5)
        other.send("hello")
        assert other.recv(5) == "hello"
        queue.put("at last")
        assert waiting.recv(5) == "at last"


def test_message_that_came_with_the_handshake_waits_for_on_open(room: MakeRoom) -> None:
    log: list[str] = []
    go = Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None:
            go.wait(5)
            log.append("open")

        def on_message(self, wsclient: Any, message: str) -> None:
            log.append(message)

    served = room(Test)
    with served.server.socket() as sock:
        sock.sendall(websocket_request("/ws/test") + b"\x82\x80\0\0\0\0" + b"\x81\x81\0\0\0\0x")
        wait_until(lambda: served.wsclients.size())
        assert log == []
        go.set()
        wait_until(lambda: len(log) == 3)
    assert log == ["open", b"", "x"]


def test_on_open_async_runs_beside_on_open_and_messages(room: MakeRoom) -> None:
    arrived, go = Event(), Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            assert arrived.wait(5), "on_open_async does not run beside on_open"
            return "on_open"

        def on_open_async(self, wsclient: Any) -> str:
            assert wsclient is self.wsclient
            arrived.set()
            assert go.wait(5)
            return "on_open_async"

        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    with room(Test).connect() as ws:
        assert ws.recv(5) == "on_open"
        ws.send("meanwhile")
        assert ws.recv(5) == "meanwhile"
        go.set()
        assert ws.recv(5) == "on_open_async"


def test_what_is_sent_shows_when_the_callback_blocks(room: MakeRoom) -> None:
    go = Event()

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            wsclient.send("working")
            assert go.wait(5)
            return "done"

    with room(Test).connect() as ws:
        ws.send("x")
        assert ws.recv(5) == "working"
        go.set()
        assert ws.recv(5) == "done"


def test_server_keeps_serving_pages_beside_it(room: MakeRoom) -> None:
    served: Server = room(Echo).server
    assert served.get("/").text == "hello"
