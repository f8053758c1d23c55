"""`on_close`: once for every connection, whoever ended it and however, with code and reason."""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import Any

import gevent
import pytest
from gevent.event import Event

from support import wait_until, websocket_request
from support.room import MakeRoom, Room, open_by_hand
from support.wire import CLOSE, TEXT, frame
from wsmiddleware import ConnectionClosed, WebSocketListener


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
        sock.sendall(frame(CLOSE, b""))
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
        sock.sendall(frame(TEXT, b"bare"))
        assert sock.recv(100) == b"\x88\x02\x03\xe8"
        assert ends_of(served) == [(1006, "")]


def test_on_close_when_both_close_at_once(closing: Room) -> None:
    with closing.server.socket() as sock:
        open_by_hand(sock)
        closing.wsclients.close(4001, "ours")
        sock.sendall(frame(CLOSE, b"\x0f\xa2theirs"))
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
        frames = [frame(TEXT, b"%d" % number) for number in range(3)]
        sock.sendall(b"".join(frames) + frame(CLOSE, b"\x03\xe8"))
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
        sock.sendall(frame(TEXT, b"x") + frame(CLOSE, b"\x03\xe8"))
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
                sock.sendall(frame(TEXT, b"close"))
            if way == 2:
                sock.sendall(frame(CLOSE, b""))
            if way == 3:
                sock.sendall(frame(TEXT, b"close") + frame(CLOSE, b"") + b"rubbish")
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
    assert served.wsclients.size() == 0 and not served.channel.unfinished
