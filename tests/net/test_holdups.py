"""A callback that holds the loop is told of, by its name and how long; one that lets go is not."""

from __future__ import annotations

import functools
import gc
import re
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event

from support import Server, wait_until
from support.room import MakeRoom, hold_up_thread
from support.threads import in_thread
from wsmiddleware import WebSocketListener, create_websocket_client
from wsmiddleware.listeners.callbacks import CLIENT, SERVER
from wsmiddleware.net import holdups
from wsmiddleware.net.holdups import HoldUps
from wsmiddleware.net.reactor import Reactor

HELD = r"(\S+) held the loop for (\d\.\d\d) s"


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    """The rate at which a name is told of is the loop's, and the loop is every test's."""
    hub = gevent.get_hub()
    HoldUps.of(hub, hub.thread_ident)._told.clear()


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, float]]:
    return [(name, float(seconds)) for name, seconds in re.findall(HELD, caplog.text)]


def compute(seconds: float) -> None:
    """In Python: another thread is let in each few milliseconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


def compute_in_c(seconds: float) -> None:
    """In one call that keeps the interpreter's lock, about so long."""
    size, began = 18, time.monotonic()
    while time.monotonic() - began < seconds / 4:
        size, began = size + 1, time.monotonic()
        re.match("(a+)+$", "a" * size + "b")
    re.match("(a+)+$", "a" * (size + 2) + "b")


def wait_first(seconds: float) -> None:
    gevent.sleep(0.2)
    hold_up_thread(seconds)


def wait_behind(seconds: float) -> None:
    hold_up_thread(seconds)
    gevent.sleep(0.2)


@pytest.mark.parametrize("hold", [hold_up_thread, compute, compute_in_c, wait_first, wait_behind])
def test_what_holds_the_loop_is_told_with_its_time(
    hold: Callable[[float], None], room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Chat(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            hold(0.3)
            return message

    with room(Chat).connect() as ws:
        ws.send("x")
        assert ws.recv(5) == "x"
        wait_until(lambda: told(caplog))
    [(name, seconds)] = told(caplog)
    assert name == "Chat.on_message"
    assert 0.15 < seconds < 10
    place = re.search(r"It was at (.*), line \d+\.", caplog.text)
    assert place and place[1] == __file__


#: How long each of `hold` took: on a busy machine a short one may be a long one.
took: list[float] = []


def hold(seconds: float) -> None:
    began = time.monotonic()
    hold_up_thread(seconds)
    took.append(time.monotonic() - began)


def let_go(step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(40):
            step()
            gevent.sleep(0)

    return run


@pytest.mark.parametrize(
    "work",
    [
        lambda: gevent.sleep(0.3),
        lambda: gevent.get_hub().threadpool.apply(hold_up_thread, (0.3,)),
        let_go(lambda: hold(0.01)),
        lambda: hold(0.03),
    ],
    ids=["waits", "in a thread", "lets go at times", "short"],
)
def test_what_lets_go_of_the_loop_is_not_told(
    work: Callable[[], None], room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Chat(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            work()
            return message

    took.clear()
    with room(Chat).connect() as ws:
        for _ in range(3):
            ws.send("x")
            assert ws.recv(5) == "x"
    assert not told(caplog) or max(took, default=0.0) > 0.09


def test_many_short_ones_in_a_row_are_nobodys_fault(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    """They may hold the loop together: that is load."""

    class Chat(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            hold_up_thread(0.01)
            return message

    served = room(Chat)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 30)
        for ws in clients:
            ws.send("x")
        for ws in clients:
            assert ws.recv(5) == "x"
    assert not told(caplog)


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@pytest.mark.parametrize("decorate", [lambda function: function, logged], ids=["", "decorated"])
@pytest.mark.parametrize("scope", [False, True], ids=["", "in a context"])
@pytest.mark.parametrize("name", SERVER)
def test_every_callback_is_told_of_by_name(
    name: str,
    scope: bool,
    decorate: Callable[[Any], Any],
    room: MakeRoom,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names: dict[str, Any] = {"hold": hold_up_thread}
    exec(f"def {name}(*args):\n    hold(0.2)\n    return True", names)
    callback = decorate(names[name])
    body = {name: classmethod(callback) if SERVER[name].is_of_class else callback}
    if name == "on_error":
        body["on_open"] = lambda self, wsclient: 1 / 0
    options = {"request_context": lambda environ: gevent.Timeout(None)} if scope else {}
    served = room(type("Test", (WebSocketListener,), body), **options)
    with served.connect() as ws:
        ws.send("text")
        ws.send(b"binary")
        ws.ping().wait(5)
    served.wait_until_settled()
    wait_until(lambda: told(caplog))
    assert told(caplog)[0][0] == name


@pytest.mark.parametrize("name", [name for name in CLIENT if name in ("on_open", "on_message")])
def test_clients_callbacks_are_told_of_too(
    name: str, room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Chat(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            return "hello"

    names: dict[str, Any] = {"hold": hold_up_thread, "done": Event()}
    exec(f"def {name}(*args):\n    hold(0.2)\n    done.set()", names)
    url = room(Chat).server.ws_url("/ws/test")
    with create_websocket_client(url, type("Bot", (), {name: names[name]})):
        assert names["done"].wait(5)
        wait_until(lambda: told(caplog))
    assert told(caplog)[0][0] == name


def test_view_that_holds_the_loop_is_no_callback(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, serve: Callable[..., Server]
) -> None:
    class Chat(WebSocketListener):
        pass

    served = room(Chat)

    def view(environ: Any, start_response: Any) -> list[bytes]:
        hold_up_thread(0.3)
        start_response("200 OK", [])
        return [b""]

    served.middleware.app = view
    with served.connect():
        assert served.server.get("/").status == 200
    assert not told(caplog)


def test_same_callback_is_told_of_at_a_bounded_rate(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Chat(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            hold_up_thread(0.15)
            return message

        def on_binary_message(self, wsclient: Any, data: bytes) -> bytes:
            hold_up_thread(0.15)
            return data

    with room(Chat).connect() as ws:
        for message in ("one", "two", b"three", "four"):
            ws.send(message)
            assert ws.recv(5) == message
        wait_until(lambda: len(told(caplog)) == 2)
    assert [name for name, _ in told(caplog)] == ["Chat.on_message", "Chat.on_binary_message"]


class Once:
    """Is looked at once, then forgotten."""

    due_step = 0

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor

    def tick(self, now: float) -> float:
        self.reactor.forget(self)
        return now


def test_watching_keeps_no_reactor_alive() -> None:
    def use() -> weakref.ref[Reactor]:
        reactor = Reactor(step=0.01)
        for _ in range(3):  # the clock stops and starts: one thread each time, and none is left
            reactor.watch(Once(reactor), 0.0)
            wait_until(lambda: reactor._timer is None)
        return weakref.ref(reactor)

    reference = use()
    gc.collect()
    wait_until(lambda: reference() is None)


def test_watching_ends_with_the_loop() -> None:
    # An exception in the watching thread fails the test: warnings are errors.
    def live() -> None:
        Reactor().start_clock()
        gevent.get_hub().destroy(destroy_loop=True)

    in_thread(live)
    wait_until(lambda: not is_watching())


def is_watching() -> bool:
    """Whether a thread of this process watches a loop."""
    frames = sys._current_frames().values()
    return any(frame.f_code.co_filename == holdups.__file__ for frame in frames)
