"""What a callback or a view leaves behind on its greenlet reaches nobody who runs in it later."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from greenlet import greenlet

from support import Server, wait_until
from support.apps import wrap
from support.wire import TEXT, frame, peer_of
from wsmiddleware import WebSocketListener
from wsmiddleware.net.pool import Worker

Serve = Callable[..., Server]
Leave = Callable[[], None]

#: Seconds until what comes late does, and for how long others work meanwhile.
LATE = 0.05
WORK = 0.2

#: What is ours of a greenlet, what is greenlet's, and what is nobody's.
NAMES = {*Worker.__slots__, *dir(greenlet), "anything"}
NAMES = {name for name in NAMES if not name.startswith("__")}


def set_attribute(name: str) -> Leave:
    def leave() -> None:
        current = gevent.getcurrent()
        value = greenlet() if name == "parent" else "mine"
        with contextlib.suppress(AttributeError, TypeError):  # it is read-only
            setattr(current, name, value)

    return leave


def late(function: Callable[..., Any], *args: Any) -> None:
    """Calls it in the hub when what runs now has ended."""
    timer = gevent.get_hub().loop.timer(LATE)
    timer.start(function, *args)


def leave_child() -> None:
    """A raw greenlet ends in its parent, with what it raises."""

    def child() -> None:
        gevent.get_hub().switch()
        raise ValueError("of a child")

    raw = greenlet(child)
    late(raw.switch)
    gevent.get_hub().loop.run_callback(gevent.getcurrent().switch)
    raw.switch()


def fail(*args: object) -> None:
    raise RuntimeError("a link that raises")


def exit_(*args: object) -> None:
    raise SystemExit("a link that ends the process")


LATE_ONES: dict[str, Leave] = {
    "a time-out": lambda: gevent.Timeout(LATE).start() and None,
    "a time-out with an exception": lambda: gevent.Timeout(LATE, KeyError("late")).start() and None,
    "a kill": lambda: late(gevent.kill, gevent.getcurrent()),
    "a kill that was bound": lambda: late(gevent.getcurrent().throw),
    "a throw": lambda: late(gevent.getcurrent().throw, ValueError("late")),
    "a SystemExit": lambda: late(gevent.getcurrent().throw, SystemExit),
    "a switch": lambda: late(gevent.getcurrent().switch, "late"),
    "a child": leave_child,
}

OTHERS: dict[str, Leave] = {
    "a link that raises": lambda: gevent.getcurrent().rawlink(fail),
    "a link that exits": lambda: gevent.getcurrent().rawlink(exit_),
    "a link that links": lambda: gevent.getcurrent().rawlink(
        lambda each: each.rawlink(fail)  # type: ignore[no-any-return]
    ),
    **{f"an attribute: {name}": set_attribute(name) for name in sorted(NAMES)},
}


def after_a_wait(leave: Leave) -> Leave:
    def wait_and_leave() -> None:
        gevent.sleep(0.001)
        leave()

    return wait_and_leave


LEFT = {**LATE_ONES, **OTHERS}
LEFT |= {f"{name}, after a wait": after_a_wait(leave) for name, leave in LATE_ONES.items()}


@pytest.fixture(params=LEFT)
def leave(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Leave]:
    """Something that is left; afterwards the log tells of no fault of ours."""
    yield LEFT[request.param]
    told = [each for each in caplog.records if "please report it" in each.getMessage()]
    assert not told


def test_what_a_callback_leaves_hits_no_other_callback(serve: Serve, leave: Leave) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> Any:
            if message == "leave":
                return leave()
            gevent.sleep(WORK)
            return sorted(vars(gevent.getcurrent()))

    server = serve(wrap(listener=Test))
    with peer_of(server, "/ws/echo") as one, peer_of(server, "/ws/echo") as other:
        # All in one turn of the loop: for the same greenlet, one behind the other, and the same
        # connection's next message is as much another's as another connection's.
        one.send(frame(TEXT, "leave") + frame(TEXT, "work"))
        other.send(frame(TEXT, "work"))
        assert [one.read_text(), other.read_text()] == ["[]", "[]"]
        # And in the greenlet that has become idle.
        one.send(frame(TEXT, "leave"))
        gevent.sleep(0.01)
        other.send(frame(TEXT, "work"))
        assert other.read_text() == "[]"


def test_what_a_view_leaves_hits_no_other_view(serve: Serve, leave: Leave) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/leave":
            leave()
        else:
            gevent.sleep(WORK)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
        return [repr(sorted(set(vars(gevent.getcurrent())) & NAMES)).encode()]

    server = serve(app)
    for _ in range(2):
        server.get("/leave")
        assert server.get("/work").text == "[]"


# A switch into what has ended is nothing, and a child ends in the hub, which tells of it.
@pytest.mark.parametrize("name", sorted(LATE_ONES.keys() - {"a switch", "a child"}))
def test_what_comes_late_is_a_line_in_the_log(
    serve: Serve, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            LATE_ONES[name]()
            return "left"

    server = serve(wrap(listener=Test))
    with peer_of(server, "/ws/echo") as peer:
        peer.send(frame(TEXT, "x"))
        assert peer.read_text() == "left"
        wait_until(lambda: "came for a callback that has ended" in caplog.text)
    assert logging.ERROR not in {record.levelno for record in caplog.records}
