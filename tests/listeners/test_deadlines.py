"""How long callbacks may run, and that a stop hits what it is meant for and nothing else."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import GreenletExit

from support import let_pass, wait_until
from support.room import MakeRoom, hold_up_thread, open_by_hand
from support.wire import TEXT, frame
from wsmiddleware import RequestTimeout, WebSocketListener
from wsmiddleware.net.pool import CallbackStopped

#: Makes the clock fine: time-outs are looked at four times as often as the shortest is long.
FINE = {"request_timeout": 0.2}


class Sleeper(WebSocketListener):
    """Sleeps where it is told to; its errors come back as text."""

    def on_message(self, wsclient: Any, message: str) -> str:
        if message == "sleep":
            gevent.sleep(20)
        return message

    def on_error(self, wsclient: Any, exception: BaseException) -> str:
        return f"{type(exception).__name__}: {exception}"


def test_callback_that_runs_too_long_is_stopped_and_on_error_gets_request_timeout(
    room: MakeRoom,
) -> None:
    with room(Sleeper, **FINE).connect() as ws:
        ws.send("sleep")
        ws.send("next")
        expected = "Sleeper.on_message was stopped: it ran past request_timeout (0.2 s)"
        assert ws.recv(5) == f"RequestTimeout: {expected}"
        assert ws.recv(5) == "next"


def test_stop_is_not_swallowed_by_except_exception(room: MakeRoom) -> None:
    log: list[str] = []

    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> str:
            for _ in range(10):
                try:
                    gevent.sleep(20)
                except Exception:
                    log.append("swallowed")
                except BaseException as exc:
                    log.append(type(exc).__name__)
                    raise
            return "ran to its end"

    with room(Test, **FINE).connect() as ws:
        ws.send("x")
        assert ws.recv(5).startswith("RequestTimeout: ")
    assert log == ["CallbackStopped"]


def test_callback_that_swallows_even_this_is_stopped_again(room: MakeRoom) -> None:
    stops: list[BaseException] = []

    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> str:
            for _ in range(2):
                try:
                    gevent.sleep(20)
                except BaseException as exc:
                    stops.append(exc)
            return "ran to its end"

    with room(Test, **FINE).connect() as ws:
        ws.send("x")
        assert ws.recv(5) == "ran to its end"
    assert [type(stop) for stop in stops] == [CallbackStopped] * 2
    assert stops[0] is not stops[1]


def test_stopped_callback_has_time_to_clean_up(room: MakeRoom) -> None:
    log: list[str] = []

    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> None:
            try:
                gevent.sleep(20)
            finally:
                let_pass(wsclient._connection.reactor, 0.3)  # several looks at the clock later
                log.append("cleaned up")

    with room(Test, **FINE).connect() as ws:
        ws.send("x")
        assert ws.recv(5).startswith("RequestTimeout: ")
    assert log == ["cleaned up"]


@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_close"])
def test_every_callback_of_a_connection_has_the_limit(room: MakeRoom, name: str) -> None:
    errors: list[BaseException] = []
    body = {
        name: lambda self, *args: gevent.sleep(20),
        "on_error": lambda self, wsclient, exc: errors.append(exc),
    }
    served = room(type("Test", (WebSocketListener,), body), **FINE)
    with served.connect():
        wait_until(lambda: errors or name == "on_close")
    wait_until(lambda: errors)
    served.wait_until_settled()
    assert [type(error) for error in errors] == [RequestTimeout]
    assert f"Test.{name} was stopped" in str(errors[0])


def test_on_error_has_the_limit_too(room: MakeRoom, caplog: pytest.LogCaptureFixture) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "raise":
                raise ValueError
            return message

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            gevent.sleep(20)

    with room(Test, **FINE).connect() as ws:
        ws.send("raise")
        ws.send("next")
        assert ws.recv(5) == "next"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "Test.on_error was stopped" in record.getMessage()


def test_on_close_is_stopped_though_nobody_is_connected_any_more(room: MakeRoom) -> None:
    """The clock has nothing to watch then, and must go on."""
    stopped = Event()

    class Test(WebSocketListener):
        idle_timeout = 0.1

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            try:
                gevent.sleep(20)
            finally:
                stopped.set()

    served = room(Test, close_timeout=0.1, **FINE)
    with served.server.socket() as sock:
        open_by_hand(sock)
        # Idle, then without an answer to our close frame: the end comes in a tick of the clock.
        wait_until(lambda: served.channel.size() == 0)
        assert stopped.wait(5)
    served.wait_until_settled()


def test_stop_never_hits_a_later_callback(room: MakeRoom, caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks that end about when their time does, one after the other in the same greenlets."""
    stopped: list[str] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "long":
                # The last one for ever: the clock stands still where the loop is held up.
                gevent.sleep(0.1 + self.number / 200 if self.number < 19 else 20)
            else:
                try:
                    gevent.sleep(0.03)
                except BaseException:
                    stopped.append("a short one")
                    raise
            return message

        def on_open(self, wsclient: Any) -> None:
            self.number = int(self.session.query_string)

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            assert type(exception) is RequestTimeout
            return "stopped"

    served = room(Test, request_timeout=0.15)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 20)
        answers: set[str] = set()
        for _ in range(3):
            for ws in clients:
                ws.send("long")
                ws.send("short")
            for ws in clients:
                answers.add(str(ws.recv(5)))
                assert ws.recv(5) == "short"
        let_pass(served.channel.members()[0].connection.reactor, 0.3)  # nothing is to be stopped
    assert answers == {"long", "stopped"}  # else it has shown nothing
    assert stopped == []
    assert "CallbackStopped" not in caplog.text


def test_stop_of_a_callback_that_sent_and_waits_leaves_the_connection_usable(
    room: MakeRoom,
) -> None:
    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "sleep":
                wsclient.send("about to sleep")
                gevent.sleep(20)
            return message

    with room(Test, **FINE).connect() as ws:
        ws.send("sleep")
        assert ws.recv(5) == "about to sleep"
        assert ws.recv(5).startswith("RequestTimeout: ")
        ws.send("hello")
        assert ws.recv(5) == "hello"


def test_greenlet_that_a_stopped_callback_spawned_lives_on(room: MakeRoom) -> None:
    go = Event()

    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> None:
            gevent.spawn(lambda: go.wait(5) and wsclient.send("from the greenlet"))
            gevent.sleep(20)

    with room(Test, **FINE).connect() as ws:
        ws.send("x")
        assert ws.recv(5).startswith("RequestTimeout: ")
        go.set()
        assert ws.recv(5) == "from the greenlet"


def test_callback_that_never_yields_is_not_interrupted_and_makes_nobody_else_late(
    room: MakeRoom,
) -> None:
    class Test(Sleeper):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "hog":
                hold_up_thread(0.5)
            else:
                gevent.sleep(0.05)
            return message

    served = room(Test, **FINE)
    with served.connect() as hog, served.connect() as other:
        other.send("short")
        hog.send("hog")
        assert other.recv(5) == "short"
        assert hog.recv(5) == "hog"


@pytest.mark.parametrize("has_on_close", [True, False])
@pytest.mark.parametrize("grace_period", [0.1, 0])
def test_on_open_async_is_stopped_when_its_connection_has_closed_and_the_log_alone_says_so(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, grace_period: float, has_on_close: bool
) -> None:
    began, stopped = Event(), Event()
    log: list[str] = []

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> None:
            began.set()
            try:
                gevent.sleep(20)
            finally:
                assert not wsclient.is_open()  # while it is open it may run
                stopped.set()

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            log.append(repr(exception))

        @classmethod
        def on_last_close(cls) -> None:
            log.append("on_last_close")

    if has_on_close:
        Test.on_close = lambda *args: log.append("on_close")  # type: ignore[method-assign,assignment]
    served = room(Test, grace_period=grace_period, ping_interval=0.2)
    with served.connect():
        assert began.wait(5)
        let_pass(served.channel.members()[0].connection.reactor, 0.3)
    assert stopped.wait(5)
    wait_until(lambda: "Test.on_open_async" in caplog.text)
    served.wait_until_settled()
    assert log == ["on_close"] * has_on_close + ["on_last_close"]
    expected = f"it ran past grace_period ({grace_period:g} s) after its connection had closed"
    assert f"RequestTimeout: Test.on_open_async was stopped: {expected}" in caplog.text
    assert "request_timeout" not in caplog.text


def test_on_open_async_that_is_stopped_before_on_close_tells_the_log_alone_too(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    go = Event()
    log: list[str] = []

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> None:
            gevent.sleep(20)

        def on_message(self, wsclient: Any, message: str) -> None:
            log.append("on_message")
            go.wait(5)

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            log.append(repr(exception))

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("on_close")

    served = room(Test, grace_period=0.1, ping_interval=0.2)
    with served.server.socket() as sock:
        open_by_hand(sock)
        sock.sendall(frame(TEXT, b"x"))
        wait_until(lambda: log)
    wait_until(lambda: "grace_period (0.1 s)" in caplog.text)
    go.set()
    served.wait_until_settled()
    assert log == ["on_message", "on_close"]


def test_on_open_async_that_ends_within_grace_period_is_left_alone(room: MakeRoom) -> None:
    began, go, ended = Event(), Event(), Event()

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> str:
            began.set()
            go.wait(5)
            ended.set()
            return "nobody is there to read it"

    served = room(Test)
    with served.connect():
        assert began.wait(5)
    wait_until(lambda: served.wsclients.size() == 0)
    go.set()
    assert ended.wait(5)


# -- the greenlets themselves -----------------------------------------------------------------


def test_what_comes_for_a_callback_that_has_ended_hits_no_later_one(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    greenlets: list[Any] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            greenlets.append(gevent.getcurrent())
            if message == "timeout":
                gevent.Timeout(0.01).start()  # and never closed
            return message

    served = room(Test)
    with served.connect() as ws, served.connect() as other:
        for message in ("timeout", "switch", "throw", "exit"):
            ws.send(message)
            assert ws.recv(5) == message
            if message == "timeout":
                wait_until(lambda: "Timeout" in caplog.text)
            elif message == "switch":
                gevent.get_hub().loop.run_callback(greenlets[-1].switch, "stray")
            elif message == "throw":
                gevent.get_hub().loop.run_callback(greenlets[-1].throw, ValueError("stray"))
            else:
                gevent.get_hub().loop.run_callback(greenlets[-1].throw, GreenletExit())
            gevent.sleep(0.01)
        for client in (ws, other):
            client.send("still served")
            assert client.recv(5) == "still served"
        pool = served.channel.members()[0].connection.reactor.pool
        assert len(pool.idle) == len(set(pool.idle)) == len(pool.workers)
    assert "came for a callback that has ended" in caplog.text
    assert "internal error" not in caplog.text


def test_more_callbacks_may_block_at_once_than_greenlets_are_kept(room: MakeRoom) -> None:
    go = Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            go.wait(10)
            return "hello"

    served = room(Test, ping_interval=0.2)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 150)
        pool = served.channel.members()[0].connection.reactor.pool
        assert len(pool.workers) >= 150
        go.set()
        assert {ws.recv(5) for ws in clients} == {"hello"}
        assert len(pool.workers) == len(pool.idle) == 128
    served.wait_until_settled()
    wait_until(lambda: not pool.workers)
