"""`wsclient` and `wsclients`: sending, broadcasting, closing, from wherever one is."""

from __future__ import annotations

import ctypes
import json
from array import array
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from support import wait_until
from support.room import MakeRoom, Room, open_by_hand
from support.threads import in_thread
from wsmiddleware import CloseCode, ConnectionClosed, WebSocketListener, publish
from wsmiddleware.listeners.clients import WsClient

#: More clients than a broadcast reaches before the loop gets its turn.
MANY = 450


class Test(WebSocketListener):
    def on_message(self, wsclient: Any, message: str) -> str:
        return message


def only_client(served: Room) -> WsClient:
    wait_until(lambda: served.wsclients.size() == 1)
    (client,) = served.wsclients
    return client


def in_hub(function: Any) -> None:
    """Calls it where nothing may block, and waits until it has been called."""
    errors: list[BaseException | None] = []

    def call() -> None:
        try:
            function()
        except BaseException as exc:
            errors.append(exc)
        else:
            errors.append(None)

    gevent.get_hub().loop.run_callback(call)
    wait_until(lambda: errors)
    if errors[0] is not None:
        raise errors[0]


#: Where calls may come from, by name.
PLACES = {"greenlet": lambda function: function(), "hub": in_hub, "thread": in_thread}


# -- send -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_send_converts_as_a_returned_value_is(room: MakeRoom, place: str) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        results: list[bool] = []
        PLACES[place](
            lambda: results.extend(
                map(client.send, ["text", b"bytes", bytearray(b"a"), {"a": 1}, None, False])
            )
        )
        assert results == [True, True, True, True, False, True]
        assert [ws.recv(5) for _ in range(5)] == ["text", b"bytes", b"a", '{"a": 1}', "false"]


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (memoryview(b"abcd")[::2], b"ac"),
        (array("B", b"abc"), b"abc"),
        (array("H", [1, 2]), array("H", [1, 2]).tobytes()),
        ((ctypes.c_ubyte * 2)(1, 2), b"\x01\x02"),
        ({"ä": "€"}, '{"ä": "€"}'),
        ({"a": "\ud800", "ä": "€"}, '{"a": "\\ud800", "\\u00e4": "\\u20ac"}'),
    ],
)
def test_everything_bytes_like_is_binary_and_all_that_json_can_hold_is_text(
    room: MakeRoom, message: Any, sent: object
) -> None:
    class Saying(WebSocketListener):
        def on_open(self, wsclient: Any) -> Any:
            wsclient.send(message)
            wsclient.broadcast(message)
            return message

    with room(Saying).connect() as ws:
        assert [ws.recv(5) for _ in range(3)] == [sent] * 3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("message", [object(), float("nan"), ctypes.c_int(7)], ids=str)
def test_what_json_cannot_hold_is_a_type_error_at_the_caller(
    room: MakeRoom, place: str, message: Any
) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        for call in (client.send, client.broadcast, served.wsclients.broadcast):
            with pytest.raises(TypeError, match="cannot send"):
                PLACES[place](lambda call=call: call(message))
        client.send("fine")
        assert ws.recv(5) == "fine"


@pytest.mark.parametrize("place", PLACES)
def test_send_to_a_client_that_has_gone_raises_connection_closed(
    room: MakeRoom, place: str
) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        ws.close(4000, "gone")
    served.wait_until_settled()
    with pytest.raises(ConnectionClosed) as caught:
        PLACES[place](lambda: client.send("x"))
    assert (caught.value.code, caught.value.reason) == (4000, "gone")
    assert client.send(None) is False


def test_everything_else_may_be_called_after_the_end(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect("?q=1"):
        client = only_client(served)
    served.wait_until_settled()
    for place in PLACES.values():
        place(lambda: client.close(4000, "late"))
        place(lambda: client.join("late"))
        place(lambda: client.leave("late"))
        place(lambda: client.broadcast("late"))
    assert client.is_close() is True and client.is_open() is False
    assert (client.close_code, client.close_reason) == (1000, "")
    assert client.channel == "test" and client.id == client.session.id
    assert client.get_session().query_string == "q=1"
    assert repr(client) == f"<WsClient {client.id} of channel 'test', closed>"


def test_send_uncompressed(room: MakeRoom) -> None:
    served = room(Test)
    text = "secret " * 100
    with served.connect() as ws:
        client = only_client(served)
        sizes = []
        for compress in (True, False):
            before = client._connection.bytes_sent
            client.send(text, compress=compress)
            assert ws.recv(5) == text
            sizes.append(client._connection.bytes_sent - before)
    assert sizes[0] < 100 < len(text) < sizes[1]


def test_message_larger_than_the_mark_is_taken_when_the_queue_is_below_it(room: MakeRoom) -> None:
    served = room(Test, send_queue_size=1000)
    with served.connect(compression=None) as ws:
        only_client(served).send("x" * 100_000)
        assert len(ws.recv(5)) == 100_000


def test_sends_of_many_greenlets_and_threads_do_not_interleave_and_keep_order(
    room: MakeRoom,
) -> None:
    served = room(Test, send_queue_size=2**26)
    pool = ThreadPool(2)
    with served.connect(compression=None, max_size=None, max_queue=None) as ws:
        client = only_client(served)

        def send_all(name: str) -> None:
            for number in range(100):
                client.send(json.dumps([name, number, "x" * (number * 97 % 5000)]))

        tasks = [gevent.spawn(send_all, f"greenlet {n}") for n in range(2)]
        tasks += [pool.spawn(send_all, f"thread {n}") for n in range(2)]
        seen: dict[str, list[int]] = {}
        for _ in range(400):
            name, number, rest = json.loads(ws.recv(5))
            assert len(rest) == number * 97 % 5000
            seen.setdefault(name, []).append(number)
        gevent.joinall(tasks, raise_error=True)
    assert len(seen) == 4
    assert all(numbers == list(range(100)) for numbers in seen.values())
    pool.kill()


# -- close ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (CloseCode.GOING_AWAY, 1001),
        (1003, 1003),
        (1007, 1007),
        (1014, 1014),
        (3000, 3000),
        (4999, 4999),
        ("GOING_AWAY", 1001),
        ("UNEXPECTED_CONDITION", 1011),
        ("try_again_later", 1013),
    ],
)
def test_close_gives_code_and_reason(room: MakeRoom, place: str, code: Any, expected: int) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        PLACES[place](lambda: client.close(code, "ä" * 61 + "x"))
        with pytest.raises(Exception, match=str(expected)):
            ws.recv(5)
        assert (ws.close_code, ws.close_reason) == (expected, "ä" * 61 + "x")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("who", ["wsclient", "wsclients", "session"])
def test_close_with_a_text_alone_is_1000_and_a_reason(room: MakeRoom, place: str, who: str) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        target = {"wsclient": client, "wsclients": served.wsclients, "session": client.session}[who]
        PLACES[place](lambda: target.close("bye"))
        with pytest.raises(Exception, match="1000"):
            ws.recv(5)
        assert (ws.close_code, ws.close_reason) == (1000, "bye")


def test_session_closes_as_its_client_does(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect() as ws:
        session = only_client(served).get_session()
        with pytest.raises(ValueError, match="may not be sent"):
            session.close(1005)
        session.close(4001, "signed out")
        session.close()
        assert not session.is_open()
        with pytest.raises(Exception, match="4001"):
            ws.recv(5)
        assert ws.close_reason == "signed out"


def test_wsclients_send_is_their_broadcast(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        one, two = served.connect_many(stack, 2)
        first, second = served.wsclients
        second.join("group")
        assert served.wsclients.send({"a": 1}) is True
        assert served.wsclients.send(None) is False
        assert (one.recv(5), two.recv(5)) == ('{"a": 1}', '{"a": 1}')
        assert served.wsclients.group("group").send("hi") is True
        assert two.recv(5) == "hi"
        served.wsclients.send("others", exclude=first)
        assert two.recv(5) == "others"
        with pytest.raises(TimeoutError):
            one.recv(0.05)


def test_close_is_1000_and_a_second_one_does_nothing(room: MakeRoom) -> None:
    served = room(Test)
    with served.server.socket() as sock:
        open_by_hand(sock)
        client = only_client(served)
        client.close()
        client.close(4000, "second")
        assert client.is_close()
        assert sock.recv(100) == b"\x88\x02\x03\xe8"
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(100)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, "NONSENSE", "NO_STATUS_CODE", None]
)
def test_close_with_another_code_is_a_value_error(room: MakeRoom, place: str, code: Any) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        for target in (client, served.wsclients, served.wsclients.group("nobody")):
            with pytest.raises(ValueError, match="may not be sent"):
                PLACES[place](lambda target=target: target.close(code))
        ws.send("still open")
        assert ws.recv(5) == "still open"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("reason", "words"), [("ä" * 62, "at most 123"), (None, "is None"), (b"x", "is b'x'")]
)
def test_close_with_another_reason_is_a_value_error(
    room: MakeRoom, place: str, reason: Any, words: str
) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)
        for target in (client, served.wsclients, served.wsclients.group("nobody")):
            with pytest.raises(ValueError, match=words):
                PLACES[place](lambda target=target: target.close(1000, reason))
        ws.send("still open")
        assert ws.recv(5) == "still open"


@pytest.mark.parametrize("place", PLACES)
def test_what_is_queued_is_sent_before_the_close_frame(room: MakeRoom, place: str) -> None:
    served = room(Test, send_queue_size=2**26)
    with served.connect(compression=None, max_queue=None, max_size=None) as ws:
        client = only_client(served)

        def send_and_close() -> None:
            for number in range(50):
                client.send(f"{number} " + "x" * 100_000)
            client.close(4000)

        PLACES[place](send_and_close)
        assert [int(ws.recv(5).split()[0]) for _ in range(50)] == list(range(50))
        with pytest.raises(Exception, match="4000"):
            ws.recv(5)


def test_wsclients_close_closes_each(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 5)
        served.wsclients.close("GOING_AWAY", "all of you")
        assert served.wsclients.size() == 0
        for ws in clients:
            with pytest.raises(Exception, match="1001"):
                ws.recv(5)
            assert ws.close_reason == "all of you"


def test_close_while_a_callback_runs_lets_it_end_and_discards_the_rest(room: MakeRoom) -> None:
    log: list[str] = []
    go = Event()

    class Slow(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            log.append(message)
            go.wait(5)
            return "too late"

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("close")

    served = room(Slow)
    with served.connect() as ws:
        ws.send("1")
        ws.send("2")
        wait_until(lambda: log)
        served.wsclients.close(4000)
        with pytest.raises(Exception, match="4000"):
            ws.recv(5)
        go.set()
    served.wait_until_settled()
    assert log == ["1", "close"]


# -- who is open ------------------------------------------------------------------------------


def test_client_is_open_and_listed_from_before_on_open(room: MakeRoom) -> None:
    class Counting(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            cls.wsclients = wsclients

        def on_open(self, wsclient: Any) -> Any:
            assert wsclient.is_open() is True and wsclient.is_close() is False
            return [self.wsclients.size(), wsclient in self.wsclients.get_clients()]  # type: ignore[attr-defined]

    served = room(Counting)
    with served.connect() as one, served.connect() as two:
        assert json.loads(one.recv(5)) == [1, True]
        assert json.loads(two.recv(5)) == [2, True]


def test_client_is_not_listed_once_its_closing_handshake_starts(room: MakeRoom) -> None:
    class Closing(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            before = served.wsclients.size()
            wsclient.close()
            after = served.wsclients.size()
            seen.append((before, after, wsclient.is_open(), wsclient in list(served.wsclients)))

    seen: list[Any] = []
    served = room(Closing)
    with served.connect() as ws:
        ws.send("x")
        wait_until(lambda: seen)
    assert seen == [(1, 0, False, False)]


def test_wsclients_are_live_and_their_lists_snapshots(room: MakeRoom) -> None:
    served = room(Test)
    wsclients = served.wsclients
    assert (wsclients.size(), len(wsclients), bool(wsclients)) == (0, 0, True)
    with served.connect():
        wait_until(lambda: wsclients.size() == 1)
        snapshot = wsclients.get_clients()
        iterator = iter(wsclients)
        with served.connect():
            wait_until(lambda: len(wsclients) == 2)
            assert len(snapshot) == len(list(iterator)) == 1
            assert len(list(wsclients)) == 2
    wait_until(lambda: wsclients.size() == 0)
    assert wsclients.get_clients() == [] and len(snapshot) == 1


# -- broadcast --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_broadcast_reaches_everybody_on_the_channel(room: MakeRoom, place: str) -> None:
    served = room(Test)
    served.middleware.register("other", Test)
    with ExitStack() as stack, served.server.connect("/ws/other") as stranger:
        clients = served.connect_many(stack, 3)
        sender = served.wsclients.get_clients()[0]
        results: list[bool] = []

        def broadcast() -> None:
            results.append(sender.broadcast({"n": 1}))
            results.append(served.wsclients.broadcast(b"2"))
            results.append(publish("test", "3"))
            results.append(sender.broadcast(None))
            results.append(served.wsclients.broadcast(None))

        PLACES[place](broadcast)
        assert results == [True, True, True, False, False]
        for ws in clients:
            assert [ws.recv(5) for _ in range(3)] == ['{"n": 1}', b"2", "3"]
        stranger.send("nothing else")
        assert stranger.recv(5) == "nothing else"


def test_server_wide_broadcast_of_a_client(room: MakeRoom) -> None:
    served = room(Test, broadcast_scope="server")
    served.middleware.register("other", Test)
    with served.connect() as ws, served.server.connect("/ws/other") as other:
        client = only_client(served)
        wait_until(lambda: served.middleware.registry.size == 2)
        assert client.broadcast("everybody")
        assert served.wsclients.broadcast("the channel")
        assert [ws.recv(5), ws.recv(5)] == ["everybody", "the channel"]
        assert other.recv(5) == "everybody"
        other.send("nothing else")
        assert other.recv(5) == "nothing else"


def test_broadcast_to_nobody_is_fine(room: MakeRoom) -> None:
    assert room(Test).wsclients.broadcast("x") is True


def test_broadcast_serves_every_form_at_once(room: MakeRoom) -> None:
    served = room(Test)
    text = "a long message " * 100
    with served.connect(compression=None) as plain, served.connect() as compressed:
        wait_until(lambda: served.wsclients.size() == 2)
        served.wsclients.broadcast(text)
        assert plain.recv(5) == compressed.recv(5) == text
        sizes = [member.connection.bytes_sent for member in served.channel.members()]
        assert sizes[1] < 200 < len(text) < sizes[0]


def test_broadcasts_and_sends_of_one_greenlet_keep_their_order(room: MakeRoom) -> None:
    class Mixed(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            wsclient.send("1")
            wsclient.broadcast("2")
            wsclient.send("3")
            wsclient.broadcast("4")
            return "5"

    with room(Mixed).connect() as ws:
        ws.send("x")
        assert [ws.recv(5) for _ in range(5)] == list("12345")


@pytest.mark.parametrize("place", PLACES)
def test_sends_and_broadcasts_from_anywhere_keep_their_order(room: MakeRoom, place: str) -> None:
    served = room(Test)
    with served.connect() as ws:
        client = only_client(served)

        def talk() -> None:
            for number in range(0, 100, 2):
                client.send(str(number))
                client.broadcast(str(number + 1))
            client.close(4000)

        PLACES[place](talk)
        assert [ws.recv(5) for _ in range(100)] == [str(number) for number in range(100)]


def test_big_broadcasts_from_everywhere_reach_all_in_one_order(room: MakeRoom) -> None:
    """More members than a slice has, so that broadcasts meet half-way."""
    served = room(Test, send_queue_size=2**26)
    with ExitStack() as stack:
        clients = []
        for number in range(MANY):
            sock = stack.enter_context(served.server.socket())
            open_by_hand(sock, f"/ws/test?{number}")
            clients.append(sock)
        wait_until(lambda: served.wsclients.size() == MANY)

        def talk(name: str, count: int = 10) -> None:
            for number in range(count):
                served.wsclients.broadcast(f"{name}{number:02}")

        tasks = [gevent.spawn(talk, name) for name in "ab"]
        in_thread(lambda: talk("t"))
        in_hub(lambda: talk("h"))
        gevent.joinall(tasks, raise_error=True)
        # The thread's are on their way still.
        wait_until(lambda: served.middleware.metrics.messages_sent >= 40 * MANY)
        served.wsclients.broadcast("end")

        def read(sock: Any) -> bytes:
            data = b""
            while not data.endswith(b"end"):
                data += sock.recv(4096)
            return data

        seen = {read(sock) for sock in clients}
    assert len(seen) == 1  # everybody saw the same, in the same order
    (data,) = seen
    frames = [data[i + 2 : i + 5].decode() for i in range(0, len(data) - 5, 5)]
    assert len(frames) == 40
    for name in "abth":
        assert [f for f in frames if f[0] == name] == [f"{name}{n:02}" for n in range(10)]


def test_big_broadcast_lets_others_run_and_is_not_cut_short_by_a_stop(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        clients = []
        for _ in range(MANY):
            sock = stack.enter_context(served.server.socket())
            open_by_hand(sock)
            clients.append(sock)
        wait_until(lambda: served.wsclients.size() == MANY)
        greenlet = gevent.spawn(served.wsclients.broadcast, "x")
        gevent.sleep(0)  # it has begun
        assert not greenlet.dead
        greenlet.kill()
        for sock in clients:
            assert sock.recv(10) == b"\x81\x01x"


def test_clients_that_close_during_a_broadcast_cost_nobody_else_the_message(
    room: MakeRoom,
) -> None:
    served = room(Test, close_timeout=0.1)
    with ExitStack() as stack:
        sockets = []
        for _ in range(40):
            sock = stack.enter_context(served.server.socket())
            open_by_hand(sock)
            sockets.append(sock)
        wait_until(lambda: served.wsclients.size() == 40)
        for sock in sockets[::2]:
            sock.close()
        for number in range(20):
            served.wsclients.broadcast(f"{number:02}")
            gevent.sleep(0)
        for sock in sockets[1::2]:
            data = b""
            while len(data) < 80:
                data += sock.recv(100)
            assert data == b"".join(b"\x81\x02%02d" % number for number in range(20))


def test_push_loop_of_the_seed_ends_with_the_last_client(room: MakeRoom) -> None:
    """`while wsclients.size() > 0`, in a greenlet and in a native thread at the same time."""
    served = room(Test)
    counts = {"greenlet": 0, "thread": 0}
    pool = ThreadPool(1)

    def push(name: str) -> None:
        while served.wsclients.size() > 0:
            served.wsclients.broadcast(name)
            counts[name] += 1
            gevent.sleep(0.002)

    with served.connect() as ws:
        wait_until(lambda: served.wsclients.size() == 1)
        tasks = [gevent.spawn(push, "greenlet"), pool.spawn(push, "thread")]
        seen = [ws.recv(5) for _ in range(60)]
        while len(set(seen)) < 2 and len(seen) < 5000:  # a thread may be late
            seen.append(ws.recv(5))
    gevent.joinall(tasks, timeout=10, raise_error=True)
    assert all(task.ready() for task in tasks)
    assert set(seen) == {"greenlet", "thread"}
    pool.kill()
