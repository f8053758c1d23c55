"""What becomes of what a callback raises: `on_error`, the log, and nothing for a stranger."""

from __future__ import annotations

import json
import logging
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import GreenletExit

from support import wait_until
from support.room import MakeRoom
from wsmiddleware import ConnectionClosed, WebSocketListener


class Own(BaseException):
    """No `Exception` at all."""


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GreenletExit, Own, gevent.Timeout])
@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_message", "on_close"])
def test_on_error_gets_what_any_callback_raised(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, kind: type[BaseException], name: str
) -> None:
    got: list[Any] = []

    def fail(self: Any, *args: Any) -> None:
        raise kind

    def on_error(self: Any, wsclient: Any, exception: BaseException) -> str:
        assert wsclient is self.wsclient
        got.append(exception)
        return "sorry"

    served = room(type("Test", (WebSocketListener,), {name: fail, "on_error": on_error}))
    with served.connect() as ws:
        if name == "on_message":
            ws.send("x")
        if name != "on_close":
            assert ws.recv(5) == "sorry"
            assert ws.ping().wait(5)  # the connection stays open
    served.wait_until_settled()
    (exc,) = got
    assert type(exc) is kind
    assert exc.__traceback__ is not None
    assert not logged(caplog)
    assert served.middleware.metrics.callback_errors == {("test", name): 1}


class Failing(WebSocketListener):
    def on_message(self, wsclient: Any, message: str) -> str:
        if message == "raise":
            raise LookupError("the secret of the house")
        return message


def test_without_on_error_the_traceback_is_logged_and_the_client_gets_nothing(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    with room(Failing).connect() as ws:
        ws.send("raise")
        ws.send("next")
        assert ws.recv(5) == "next"
    (record,) = logged(caplog)
    assert "Failing.on_message raised LookupError: the secret of the house" in record.getMessage()
    assert record.exc_info
    assert "in on_message" in caplog.text


def test_with_debug_the_client_gets_type_and_message(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    with room(Failing, debug=True).connect() as ws:
        ws.send("raise")
        assert json.loads(ws.recv(5)) == {
            "error": {"type": "LookupError", "message": "the secret of the house"}
        }
    assert len(logged(caplog)) == 1


def test_with_on_error_debug_adds_nothing(room: MakeRoom, caplog: pytest.LogCaptureFixture) -> None:
    class Test(Failing):
        def on_error(self, wsclient: Any, exception: BaseException) -> None: ...

    with room(Test, debug=True).connect() as ws:
        ws.send("raise")
        ws.send("next")
        assert ws.recv(5) == "next"
    assert not logged(caplog)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GreenletExit, Own])
@pytest.mark.parametrize("debug", [True, False])
def test_exception_in_on_error_is_logged_and_goes_no_further(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, kind: type[BaseException], debug: bool
) -> None:
    calls: list[BaseException] = []

    class Test(Failing):
        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            calls.append(exception)
            raise kind("in on_error")

    with room(Test, debug=debug).connect() as ws:
        ws.send("raise")
        ws.send("next")
        assert ws.recv(5) == "next"
    assert len(calls) == 1
    (record,) = logged(caplog)
    assert f"Test.on_error raised {kind.__name__}: in on_error" in record.getMessage()
    # The first error is not lost: the log shows both.
    assert "the secret of the house" in caplog.text


def test_on_error_that_returns_what_cannot_be_sent_is_logged(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Test(Failing):
        def on_error(self, wsclient: Any, exception: BaseException) -> Any:
            return object()

    with room(Test).connect() as ws:
        ws.send("raise")
        ws.send("next")
        assert ws.recv(5) == "next"
    assert "Test.on_error raised TypeError: cannot send object" in caplog.text


def test_sending_to_a_client_that_has_gone_is_no_error_in_the_log(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    go = Event()
    ended: list[int] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            go.wait(5)
            try:
                wsclient.send("anybody there?")
            except ConnectionClosed as exc:
                ended.append(exc.code)
                raise

    served = room(Test, close_timeout=0.1)
    with served.connect() as ws:
        ws.send("x")
    wait_until(lambda: served.wsclients.size() == 0)
    go.set()
    served.wait_until_settled()
    assert ended == [1000]
    assert not logged(caplog)


def test_on_error_for_on_open_async_waits_for_its_turn(room: MakeRoom) -> None:
    """Callbacks of one connection run one at a time; only `on_open_async` is beside them."""
    log: list[str] = []
    go, inside = Event(), Event()

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> None:
            assert inside.wait(5)
            log.append("async raises")
            raise ValueError

        def on_message(self, wsclient: Any, message: str) -> str:
            log.append("message begins")
            inside.set()
            go.wait(5)
            log.append("message ends")
            return message

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            log.append("error")
            return "error"

    with room(Test).connect() as ws:
        ws.send("x")
        wait_until(lambda: "async raises" in log)
        gevent.sleep(0)
        go.set()
        assert {ws.recv(5), ws.recv(5)} == {"x", "error"}
    assert log == ["message begins", "async raises", "message ends", "error"]


def test_error_of_one_connection_is_not_anothers(room: MakeRoom) -> None:
    class Test(Failing):
        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return f"yours, {self.session.query_string}"

    served = room(Test)
    with served.connect("?one") as one, served.connect("?two") as two:
        one.send("raise")
        assert one.recv(5) == "yours, one"
        two.send("hello")
        assert two.recv(5) == "hello"


class Unspeakable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise AttributeError("message")


@pytest.mark.parametrize("name", ["on_open", "on_message", "on_error", "on_close"])
def test_exception_whose_text_cannot_be_had_is_one_like_any_other(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise Unspeakable

    def on_message(self: Any, wsclient: Any, message: str) -> str:
        if message == "raise":
            raise Unspeakable
        return message

    callbacks: dict[str, Any] = {name: fail, "on_message": on_message}
    served = room(type("Test", (WebSocketListener,), callbacks), debug=True)
    with served.connect() as ws:
        if name == "on_open":
            assert "str() failed" in ws.recv(5)
        ws.send("raise")
        ws.send("text")
        while ws.recv(5) != "text":
            pass
    served.wait_until_settled()
    assert "Unspeakable: <exception str() failed>" in caplog.text
    assert "please report it" not in caplog.text


def test_error_of_on_open_async_waits_for_its_turn_beyond_the_end(room: MakeRoom) -> None:
    told: list[str] = []
    has_begun, go = Event(), Event()

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> None:
            has_begun.wait(5)
            raise LookupError

        def on_message(self, wsclient: Any, message: str) -> None:
            has_begun.set()
            go.wait(5)
            told.append("message")

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            told.append(type(exception).__name__)

    served = room(Test, grace_period=0.1)
    with served.connect() as ws:
        ws.send("x")
        assert has_begun.wait(5)
        gevent.sleep(0.05)
    wait_until(lambda: not served.wsclients.size())
    gevent.sleep(0.5)  # the grace period is over, by the coarse clock too
    go.set()
    served.wait_until_settled()
    wait_until(lambda: len(told) == 2)
    assert sorted(told) == ["LookupError", "message"]


# -- behind the last callback ------------------------------------------------------------------


@pytest.mark.parametrize("closes", ["at once", "for a while", "with an error"])
@pytest.mark.parametrize("kind", [ValueError, SystemExit, Own, gevent.Timeout])
def test_no_callback_starts_behind_on_close(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, kind: type[BaseException], closes: str
) -> None:
    """But `on_error` for what `on_close` itself raised; the log has what `on_open_async` did."""
    began, go, closed = Event(), Event(), Event()
    log: list[str] = []

    class Test(WebSocketListener):
        def on_open_async(self, wsclient: Any) -> None:
            began.set()
            (closed if closes == "for a while" else go).wait(5)
            raise kind

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("on_close")
            closed.set()
            if closes == "for a while":
                go.wait(5)
            if closes == "with an error":
                raise LookupError

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            log.append(type(exception).__name__)

    served = room(Test)
    with served.connect():
        assert began.wait(5)
    assert closed.wait(5)
    if closes != "for a while":
        served.wait_until_settled()
    else:
        gevent.sleep(0.05)  # for on_error to start beside it, or to wait for its end
    go.set()
    wait_until(lambda: "Test.on_open_async raised" in caplog.text)
    served.wait_until_settled()
    assert log == ["on_close"] + ["LookupError"] * (closes == "with an error")
    assert [record.exc_info[0] for record in logged(caplog) if record.exc_info] == [kind]
    errors = served.middleware.metrics.callback_errors
    assert errors["test", "on_open_async"] == 1
