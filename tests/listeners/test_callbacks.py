"""What a listener's callbacks are given, what becomes of what they return, and their order."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from support import Server, wait_until, websocket_request
from support.room import MakeRoom, Room, masked, open_by_hand
from wsmiddleware import ConnectionClosed, ListenerError, WebSocketListener, WebSocketMiddleware


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
    with pytest.raises(ListenerError, match=r"Test\.on_message is async"):
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


# -- on_close ---------------------------------------------------------------------------------


class Closing(WebSocketListener):
    """Writes down its end, and ends on command."""

    ends: list[tuple[int, str]]

    def on_message(self, wsclient: Any, message: str) -> Any:
        if message == "close":
            wsclient.close(4001, "enough")
        elif message == "bare":
            wsclient.close()
        elif message == "exit":
            raise SystemExit
        return message

    def on_error(self, wsclient: Any, exception: BaseException) -> None: ...

    def on_close(self, wsclient: Any, reason_phrase: str) -> None:
        assert wsclient.is_close() and not wsclient.is_open()
        assert reason_phrase == wsclient.close_reason
        self.ends.append((wsclient.close_code, reason_phrase))


@pytest.fixture
def closing(room: MakeRoom) -> Room:
    class Test(Closing):
        ends: list[tuple[int, str]] = []  # noqa: RUF012

    return room(Test)


def ends_of(served: Room) -> list[tuple[int, str]]:
    listener: Any = served.channel.listener_class
    wait_until(lambda: listener.ends)
    served.wait_until_settled()
    return listener.ends


def test_on_close_after_close_frame_with_reason(closing: Room) -> None:
    with closing.connect() as ws:
        ws.close(4000, "tschüß")
    assert ends_of(closing) == [(4000, "tschüß")]


def test_on_close_after_empty_close_frame(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(masked(0x88, b""))
        assert sock.recv(100) == b"\x88\x00"
    assert ends_of(closing) == [(1005, "")]


def test_on_close_after_eof(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
    assert ends_of(closing) == [(1006, "")]


def test_on_close_after_eof_in_the_middle_of_a_frame(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(b"\x81\xfe\x01")
    assert ends_of(closing) == [(1006, "")]


def test_on_close_after_reset(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ends_of(closing) == [(1006, "")]


def test_on_close_after_our_close_has_the_peers_answer(closing: Room) -> None:
    with closing.connect() as ws:
        ws.send("close")
        with pytest.raises(Exception, match="4001"):
            ws.recv(5)
    assert ends_of(closing) == [(4001, "enough")]


def test_on_close_when_the_peer_never_answers_our_close(room: MakeRoom) -> None:
    class Test(Closing):
        ends: list[tuple[int, str]] = []  # noqa: RUF012

    served = room(Test, close_timeout=0.1)
    with served.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(masked(0x81, b"bare"))
        assert sock.recv(100) == b"\x88\x02\x03\xe8"
        assert ends_of(served) == [(1006, "")]


def test_on_close_when_both_close_at_once(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        closing.wsclients.close(4001, "ours")
        sock.sendall(masked(0x88, b"\x0f\xa2theirs"))
        assert sock.recv(100) == b"\x88\x06\x0f\xa1ours"
    assert ends_of(closing) == [(4002, "theirs")]


def test_on_close_after_violation(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(b"\x81\x05hello")  # not masked
        answer = sock.recv(200)
        assert answer[:1] == b"\x88" and answer[2:4] == b"\x03\xea"  # 1002
    assert ends_of(closing) == [(1006, "")]


def test_on_close_after_idle_timeout(room: MakeRoom) -> None:
    class Test(Closing):
        ends: list[tuple[int, str]] = []  # noqa: RUF012
        idle_timeout = 0.1

    served = room(Test)
    with served.connect() as ws, pytest.raises(Exception, match="1001"):
        ws.recv(5)
    assert ends_of(served) == [(1001, "idle")]


def test_on_close_after_ping_timeout(room: MakeRoom) -> None:
    class Test(Closing):
        ends: list[tuple[int, str]] = []  # noqa: RUF012

    served = room(Test, ping_interval=0.1, ping_timeout=0.1)
    with served.server.socket() as sock:
        open_by_hand(sock)
        assert ends_of(served) == [(1006, "")]
        assert sock.recv(2) == b"\x89\x00"
        assert sock.recv(4) == b"\x88\x0e\x03\xf3"  # 1011


def test_on_close_at_shutdown(closing: Room) -> None:
    with closing.connect() as ws:
        closing.middleware.shutdown(timeout=5)
        ends = list(closing.channel.listener_class.ends)  # type: ignore[attr-defined]
        assert ends == [(1001, "going away")]
        with pytest.raises(Exception, match="1001"):
            ws.recv(5)


def test_on_close_after_an_abort(closing: Room) -> None:
    with closing.connect() as ws:
        ws.send("hello")
        ws.recv(5)
        for member in closing.channel.members():
            member.connection.abort()
        assert ends_of(closing) == [(1006, "")]


def test_on_close_after_callback_that_was_ended(closing: Room) -> None:
    with closing.connect() as ws:
        ws.send("exit")
        ws.send("still there")
        assert ws.recv(5) == "still there"
    assert ends_of(closing) == [(1000, "")]


def test_on_close_comes_for_a_client_that_left_during_on_open(room: MakeRoom) -> None:
    log: list[Any] = []
    go = Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            go.wait(5)
            try:
                wsclient.send("too late")
            except ConnectionClosed as exc:
                log.append(exc.code)
            return "nobody reads this"

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("close")

    served = room(Test)
    with served.server.socket() as sock:
        open_by_hand(sock)
        wait_until(lambda: served.wsclients.size() == 1)
    wait_until(lambda: served.wsclients.size() == 0)
    go.set()
    served.wait_until_settled()
    assert log == [1006, "close"]


def test_messages_before_the_close_frame_are_answered_first(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            gevent.sleep(0.01)
            assert wsclient.is_open()
            return message

    with room(Test).server.socket() as sock:
        open_by_hand(sock)
        frames = [masked(0x81, b"%d" % number) for number in range(3)]
        sock.sendall(b"".join(frames) + masked(0x88, b"\x03\xe8"))
        data = bytearray()
        while piece := sock.recv(100):
            data += piece
    assert data == b"\x81\x010\x81\x011\x81\x012\x88\x02\x03\xe8"


def test_close_frame_is_answered_in_time_though_a_callback_hangs(room: MakeRoom) -> None:
    go = Event()
    log: list[str] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            go.wait(10)
            log.append("message")

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("close")

    served = room(Test, close_timeout=0.1)
    with served.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(masked(0x81, b"x") + masked(0x88, b"\x03\xe8"))
        assert sock.recv(4) == b"\x88\x02\x03\xe8"
        assert log == []
    go.set()
    served.wait_until_settled()
    assert log == ["message", "close"]


@dataclasses.dataclass
class Counts:
    opened: int = 0
    closed: int = 0


def test_on_close_runs_once_for_every_on_open_in_a_storm(room: MakeRoom) -> None:
    counts: dict[str, Counts] = {}

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            counts.setdefault(wsclient.id, Counts()).opened += 1
            return "hello"

        def on_message(self, wsclient: Any, message: str) -> Any:
            if message == "close":
                wsclient.close()
            return message

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            counts[wsclient.id].closed += 1

    served = room(Test, close_timeout=0.1)

    def visit(number: int) -> None:
        with served.server.socket() as sock:
            sock.sendall(websocket_request("/ws/test"))
            way = number % 5
            if way == 1:
                sock.sendall(masked(0x81, b"close"))
            if way == 2:
                sock.sendall(masked(0x88, b""))
            if way == 3:
                sock.sendall(masked(0x81, b"close") + masked(0x88, b"") + b"rubbish")
            if way == 4:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif way:
                while sock.recv(1000):
                    pass

    for _ in range(4):
        gevent.joinall([gevent.spawn(visit, n) for n in range(50)], raise_error=True)
    served.wait_until_settled()
    assert len(counts) >= 120  # who leaves before the handshake is read has never been there
    assert set(map(dataclasses.astuple, counts.values())) == {(1, 1)}
    assert served.wsclients.size() == 0 and served.channel.unfinished == 0


def test_server_keeps_serving_pages_beside_it(room: MakeRoom) -> None:
    served: Server = room(Echo).server
    assert served.get("/").text == "hello"
