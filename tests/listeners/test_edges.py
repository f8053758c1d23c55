"""`on_first_open` and `on_last_close`: once an edge, in order, whatever the interleaving."""

from __future__ import annotations

import logging
import random
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event

from support import let_pass, wait_until, websocket_request
from support.room import MakeRoom, open_by_hand
from wsmiddleware import RequestTimeout, WebSocketListener


class Logged(WebSocketListener):
    """Writes down its edges; a subclass gives `log`."""

    log: list[str]

    @classmethod
    def on_first_open(cls, wsclients: Any) -> None:
        cls.log.append("first")

    def on_open(self, wsclient: Any) -> str:
        self.log.append("open")
        return "hello"

    def on_close(self, wsclient: Any, reason_phrase: str) -> None:
        self.log.append("close")

    @classmethod
    def on_last_close(cls) -> None:
        cls.log.append("last")


def test_edges_run_once_for_a_channel_and_again_after_it_was_empty(room: MakeRoom) -> None:
    class Test(Logged):
        log: list[str] = []  # noqa: RUF012

    served = room(Test)
    for _ in range(2):
        with served.connect() as one, served.connect() as other:
            one.recv(5), other.recv(5)
        served.wait_until_settled()
    assert Test.log == ["first", "open", "open", "close", "close", "last"] * 2


def test_first_connection_is_counted_and_listed_before_on_first_open(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            cls.seen = [wsclients.size(), len(list(wsclients)), wsclients.get_clients()[0].id]

        def on_open(self, wsclient: Any) -> bool:
            return self.seen == [1, 1, wsclient.id]  # type: ignore[attr-defined]

    with room(Test).connect() as ws:
        assert ws.recv(5) == "true"


def test_channel_is_empty_in_on_last_close(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        sizes: list[int] = []  # noqa: RUF012

        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            cls.wsclients = wsclients

        @classmethod
        def on_last_close(cls) -> None:
            cls.sizes.append(cls.wsclients.size())

    served = room(Test)
    with served.connect():
        wait_until(lambda: served.wsclients.size())
    served.wait_until_settled()
    assert Test.sizes == [0]


def test_on_open_uses_what_on_first_open_stored_before_it_blocked(room: MakeRoom) -> None:
    go = Event()

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            cls.stored = "stored"
            go.wait(5)
            cls.stored = "later"

        def on_open(self, wsclient: Any) -> str:
            return self.stored

    served = room(Test)
    with ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(3)]
        assert [ws.recv(5) for ws in clients] == ["stored"] * 3
        go.set()


def test_on_open_of_many_that_come_at_once_waits_for_on_first_open(room: MakeRoom) -> None:
    class Test(Logged):
        log: list[str] = []  # noqa: RUF012

    served = room(Test)
    with ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(served.server.socket())
            sock.sendall(websocket_request("/ws/test"))
        wait_until(lambda: Test.log.count("open") == 20)
    served.wait_until_settled()
    assert Test.log == ["first"] + ["open"] * 20 + ["close"] * 20 + ["last"]


def test_error_in_on_first_open_is_logged_with_the_class(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            raise LookupError("no database")

        def on_open(self, wsclient: Any) -> str:
            return "open all the same"

        @classmethod
        def on_last_close(cls) -> None:
            raise SystemExit(3)

    served = room(Test)
    with served.connect() as ws:
        assert ws.recv(5) == "open all the same"
    served.wait_until_settled()
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [type(record.exc_info[1]) for record in records if record.exc_info] == [
        LookupError,
        SystemExit,
    ]
    first, last = (record.getMessage() for record in records)
    assert "Test.on_first_open" in first and "no database" in first
    assert "Test.on_last_close" in last
    errors = served.middleware.metrics.callback_errors
    assert errors == {("test", "on_first_open"): 1, ("test", "on_last_close"): 1}


@pytest.mark.parametrize("has_last", [True, False])
def test_on_first_open_that_still_runs_is_stopped_after_grace_period(
    room: MakeRoom, has_last: bool
) -> None:
    log: list[str] = []

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            try:
                while True:
                    try:
                        gevent.sleep(10)
                    except Exception:  # a stop must not be swallowed by this
                        log.append("swallowed")
            finally:
                log.append("stopped")

        def on_open(self, wsclient: Any) -> str:
            return "hello"

    if has_last:
        Test.on_last_close = classmethod(lambda cls: log.append("last"))  # type: ignore[attr-defined]
    # ping_interval makes the clock fine.
    served = room(Test, grace_period=0.2, ping_interval=0.1)
    with served.connect() as ws:
        ws.recv(5)
        # Longer than grace_period: while somebody is there it may run.
        let_pass(served.channel.members()[0].connection.reactor, 0.4)
        assert log == []
    served.wait_until_settled()
    assert log == (["stopped", "last"] if has_last else ["stopped"])


def test_on_first_open_whose_channel_emptied_before_it_began_has_grace_period(
    room: MakeRoom,
) -> None:
    log: list[str] = []
    go = Event()

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            log.append("begins")
            try:
                gevent.sleep(60)
            finally:
                log.append("stopped")

        @classmethod
        def on_last_close(cls) -> None:
            log.append("last")
            go.wait(5)

    served = room(Test, grace_period=0.1, ping_interval=0.1, close_timeout=0.1)
    with served.connect():
        wait_until(lambda: log == ["begins"])
    wait_until(lambda: log == ["begins", "stopped", "last"])
    with served.connect():  # comes and goes while on_last_close still runs
        wait_until(lambda: served.wsclients.size() == 1)
    wait_until(lambda: served.wsclients.size() == 0)
    go.set()
    served.wait_until_settled()
    assert log == ["begins", "stopped", "last"] * 2


def test_on_first_open_is_stopped_after_request_timeout(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = Event()

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            try:
                gevent.sleep(10)
            finally:
                stopped.set()

        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    served = room(Test, request_timeout=0.1)
    with served.connect() as ws:
        assert stopped.wait(5)
        ws.send("still here")
        assert ws.recv(5) == "still here"
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in errors] == [RequestTimeout]
    assert "Test.on_first_open was stopped: it ran past request_timeout (0.1 s)" in str(errors[0])


def test_greenlet_that_on_first_open_spawned_lives_on(room: MakeRoom) -> None:
    """The seed's own push pattern: a greenlet that broadcasts while somebody is there."""
    ended: list[int] = []

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            def push() -> None:
                number = 0
                while wsclients.size() > 0:
                    wsclients.broadcast({"number": number})
                    number += 1
                    gevent.sleep(0.02)
                ended.append(number)

            gevent.spawn(push)

    served = room(Test, request_timeout=0.05, grace_period=0)
    for _ in range(2):
        ended.clear()
        with served.connect() as ws:
            assert [ws.recv(5) for _ in range(10)] == [f'{{"number": {n}}}' for n in range(10)]
        wait_until(lambda: ended)


def test_on_last_close_comes_after_the_last_on_close_has_ended(room: MakeRoom) -> None:
    log: list[str] = []
    go = Event()

    class Test(WebSocketListener):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            log.append("close begins")
            go.wait(5)
            log.append("close ends")

        @classmethod
        def on_last_close(cls) -> None:
            log.append("last")

    served = room(Test)
    with served.connect():
        wait_until(lambda: served.wsclients.size() == 1)
    wait_until(lambda: log == ["close begins"])
    gevent.sleep(0)
    assert log == ["close begins"]
    go.set()
    served.wait_until_settled()
    assert log == ["close begins", "close ends", "last"]


@pytest.mark.parametrize("has_first", [True, False])
def test_somebody_new_does_not_wait_for_an_on_close_that_hangs(
    room: MakeRoom, has_first: bool
) -> None:
    log: list[str] = []
    go = Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            log.append("open")
            return "hello"

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            go.wait(5)
            log.append("close")

        @classmethod
        def on_last_close(cls) -> None:
            log.append("last")

    if has_first:
        Test.on_first_open = classmethod(lambda cls, wsclients: log.append("first"))  # type: ignore[attr-defined]
    served = room(Test)
    with served.connect() as ws:
        ws.recv(5)
    wait_until(lambda: served.wsclients.size() == 0)
    with served.connect() as ws:
        ws.recv(5)
        wait_until(lambda: "last" in log)
        assert "close" not in log
        go.set()
    served.wait_until_settled()
    if has_first:
        assert log == ["first", "open", "last", "first", "open", "close", "close", "last"]
    else:
        assert sorted(log) == ["close", "close", "last", "last", "open", "open"]
        assert log[-1] == "last"


def test_next_on_first_open_waits_for_on_last_close(room: MakeRoom) -> None:
    log: list[str] = []
    go = Event()

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            log.append("first")

        def on_open(self, wsclient: Any) -> str:
            log.append("open")
            return "hello"

        @classmethod
        def on_last_close(cls) -> None:
            log.append("last begins")
            go.wait(5)
            log.append("last ends")

    served = room(Test)
    with served.connect():
        wait_until(lambda: "open" in log)
    wait_until(lambda: "last begins" in log)
    with served.connect() as ws:
        wait_until(lambda: served.wsclients.size() == 1)
        with pytest.raises(TimeoutError):
            ws.recv(0.05)
        go.set()
        assert ws.recv(5) == "hello"
    served.wait_until_settled()
    once = ["first", "open", "last begins", "last ends"]
    assert log == once * 2


def test_on_last_close_that_hangs_is_stopped_and_holds_up_nobody_for_longer(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None: ...

        def on_open(self, wsclient: Any) -> str:
            return "hello"

        @classmethod
        def on_last_close(cls) -> None:
            gevent.sleep(20)

    served = room(Test, request_timeout=0.2)
    for _ in range(2):
        with served.connect() as ws:
            assert ws.recv(5) == "hello"
    served.wait_until_settled()


@pytest.mark.parametrize("blocks", [False, True])
def test_edges_alternate_under_hundreds_of_short_visits(room: MakeRoom, blocks: bool) -> None:
    log: list[str] = []
    inside: list[str] = []
    opens: list[int] = []
    closes: list[int] = []

    def edge(name: str) -> None:
        assert not inside, f"{name} beside {inside}"
        inside.append(name)
        log.append(name)
        if blocks:
            gevent.sleep(random.random() / 500)
        inside.remove(name)

    class Test(WebSocketListener):
        is_up = False

        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            cls.is_up = True
            edge("first")

        def on_open(self, wsclient: Any) -> None:
            opens.append(1)
            if self.is_up is False:
                log.append("open without first")

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            if blocks:
                gevent.sleep(random.random() / 500)
            closes.append(1)

        @classmethod
        def on_last_close(cls) -> None:
            edge("last")

    served = room(Test, close_timeout=0.1)

    def visit() -> None:
        for _ in range(25):
            with served.server.socket() as sock:
                sock.sendall(websocket_request("/ws/test"))
                if random.random() < 0.7:
                    sock.recv(1000)
            gevent.sleep(random.random() / 200)

    gevent.joinall([gevent.spawn(visit) for _ in range(12)], raise_error=True)
    served.wait_until_settled()
    assert log == ["first", "last"] * (len(log) // 2)
    assert len(log) >= 4
    assert len(opens) == len(closes) >= 200
    assert served.wsclients.size() == 0


def test_connection_whose_wait_for_an_edge_is_broken_off_is_served_all_the_same(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    enter, leave, closes = Event(), Event(), []

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None: ...

        def on_message(self, wsclient: Any, message: str) -> str:
            return message

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            closes.append(reason_phrase)

        @classmethod
        def on_last_close(cls) -> None:
            enter.set()
            leave.wait(5)

    served = room(Test)
    with served.connect():
        pass
    assert enter.wait(5)
    with served.connect() as ws:
        (member,) = served.channel.members()
        connection = member.connection
        wait_until(lambda: connection.worker is not None)
        # As a time-out does that an earlier callback in the same worker has left behind.
        connection.reactor.loop.run_callback(connection.worker.greenlet.throw, gevent.Timeout(1))
        wait_until(lambda: "came for a callback that has ended" in caplog.text)
        leave.set()
        ws.send("hello")
        assert ws.recv(5) == "hello"
    served.wait_until_settled()
    assert len(closes) == 2


def test_idle_channel_costs_no_timer_and_no_greenlet(room: MakeRoom) -> None:
    class Test(Logged):
        log: list[str] = []  # noqa: RUF012

    served = room(Test, ping_interval=0.1)
    with served.connect() as ws:
        ws.recv(5)
        reactor = served.channel.members()[0].connection.reactor
    served.wait_until_settled()
    wait_until(lambda: not reactor.pool.workers)
    assert reactor._timer is None


def test_edge_runs_without_what_the_connection_set(room: MakeRoom) -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    seen: list[str] = []

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            seen.append(variable.get())
            variable.set("edge")

        def on_open(self, wsclient: Any) -> str:
            seen.append(variable.get())
            variable.set("connection")
            return "x"

        @classmethod
        def on_last_close(cls) -> None:
            seen.append(variable.get())

    served = room(Test)
    with served.server.socket() as sock:
        open_by_hand(sock)
        assert sock.recv(10) == b"\x81\x01x"
    served.wait_until_settled()
    assert seen == ["nothing"] * 3
