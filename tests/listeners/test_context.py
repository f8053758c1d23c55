"""What a callback finds around it: its connection's context, and nothing of another's."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.local
import pytest
from flask import Flask, g, has_request_context, request, session
from gevent.event import Event
from websockets.exceptions import InvalidStatus

from support import Server, wait_until
from support.room import MakeRoom, Room
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.net.connection import Connection
from wsmiddleware.net.reactor import Reactor

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def test_connection_keeps_its_context_from_callback_to_callback(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> bool:
            variable.set(request.query_string.decode())
            return True

        def on_open(self, wsclient: Any) -> str:
            return variable.get()

        def on_message(self, wsclient: Any, message: str) -> str:
            before = variable.get()
            variable.set(message)
            if message == "raise":
                raise ValueError
            return before

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return f"error in {variable.get()}"

    served = room(Test)
    with served.connect("?one") as one, served.connect("?two") as two:
        assert [one.recv(5), two.recv(5)] == ["one", "two"]
        for ws, message in ((one, "1"), (two, "2"), (one, "raise"), (two, "4")):
            ws.send(message)
        assert [one.recv(5), one.recv(5)] == ["one", "error in raise"]
        assert [two.recv(5), two.recv(5)] == ["two", "2"]
    assert variable.get() == "nothing"


def test_on_open_async_runs_in_a_copy(room: MakeRoom) -> None:
    has_run = Event()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None:
            variable.set("from on_open")

        def on_open_async(self, wsclient: Any) -> str:
            before = variable.get()
            variable.set("from on_open_async")
            has_run.set()
            return before

        def on_message(self, wsclient: Any, message: str) -> str:
            has_run.wait(5)
            return variable.get()

    with room(Test).connect() as ws:
        assert ws.recv(5) == "from on_open"
        ws.send("x")
        assert ws.recv(5) == "from on_open"


def test_contexts_of_callbacks_that_block_do_not_mix(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            variable.set(message)
            gevent.sleep(0.01)
            return variable.get()

    served = room(Test)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 10)
        for number, ws in enumerate(clients):
            ws.send(str(number))
        assert [ws.recv(5) for ws in clients] == [str(number) for number in range(10)]


@pytest.mark.parametrize("make", [gevent.local.local, threading.local], ids=["gevent", "threading"])
def test_locals_are_carried_to_no_later_callback(room: MakeRoom, make: Callable[[], Any]) -> None:
    values = make()
    greenlets: list[int] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            greenlets.append(id(gevent.getcurrent()))
            before = getattr(values, "value", "nothing")
            values.value = message
            gevent.sleep(0)
            assert values.value == message
            if message == "raise":
                raise ValueError
            return before

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return getattr(values, "value", "nothing")

    served = room(Test)
    with served.connect() as one, served.connect() as other:
        for ws, message in ((one, "1"), (one, "2"), (other, "3"), (one, "raise"), (other, "4")):
            ws.send(message)
            assert ws.recv(5) == "nothing"
        for number in range(5):  # of one batch
            one.send(str(number))
        assert [one.recv(5) for _ in range(5)] == ["nothing"] * 5
    assert len(set(greenlets)) < len(greenlets)  # else it has shown nothing


def test_locals_of_a_callback_die_with_it(room: MakeRoom) -> None:
    class Resource:
        pass

    values = threading.local()
    seen: list[weakref.ref[Resource]] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            values.resource = Resource()
            seen.append(weakref.ref(values.resource))
            return message

    with room(Test).connect() as ws:
        ws.send("x")
        ws.recv(5)
        assert [ref() for ref in seen] == [None]


def test_nothing_left_on_the_greenlet_shows_to_another(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            greenlet: Any = gevent.getcurrent()
            before = [getattr(greenlet, "mark", None), threading.current_thread().name]
            greenlet.mark = message
            threading.current_thread().name = message
            spawned = gevent.spawn(lambda: None)
            tree = spawned.spawn_tree_locals
            before.append(tree.get("mark"))
            tree["mark"] = message
            spawned.join()
            return "clean" if before[::2] == [None, None] and before[1] != "1" else str(before)

    served = room(Test)
    active = threading.active_count()
    with served.connect() as one, served.connect() as other:
        for ws in (one, one, other):
            ws.send("1")
            assert ws.recv(5) == "clean"
    assert threading.active_count() <= active


# -- an application's context -----------------------------------------------------------------


@pytest.fixture
def flask_room(serve: Callable[..., Server]) -> Callable[..., Room]:
    app = Flask(__name__)
    app.secret_key = "test"

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["name"] = name
        return name

    def make(listener_class: type[WebSocketListener], **settings: Any) -> Room:
        middleware = WebSocketMiddleware(
            app.wsgi_app, request_context=app.request_context, config=False, **settings
        )
        app.wsgi_app = middleware  # type: ignore[method-assign]
        middleware.register("test", listener_class)
        return Room(serve(app), middleware)

    return make


class InFlask(WebSocketListener):
    """Answers with what Flask's proxies say; `g` and `request` are one callback's own."""

    def say(self, what: str) -> str:
        kept = getattr(g, "kept", "nothing")
        g.kept = what
        return f"{what} {session.get('name')} {request.args.get('q')} {request.path} {kept}"

    def on_open(self, wsclient: Any) -> str:
        return self.say("open")

    def on_message(self, wsclient: Any, message: str) -> str:
        said = self.say(message)
        gevent.sleep(0.005)
        assert g.kept == message
        if message == "raise":
            raise ValueError
        return said

    def on_error(self, wsclient: Any, exception: BaseException) -> str:
        return self.say("error")


def test_flask_session_and_request_work_as_in_a_view(flask_room: Callable[..., Room]) -> None:
    served = flask_room(InFlask)
    with ExitStack() as stack:
        clients = {}
        for name in ("ann", "bob"):
            cookie = served.server.get(f"/login/{name}").headers["Set-Cookie"].split(";")[0]
            clients[name] = stack.enter_context(
                served.connect(f"?q={name}", additional_headers={"Cookie": cookie})
            )
        for name, ws in clients.items():
            assert ws.recv(5) == f"open {name} {name} /ws/test nothing"
        for message in ("one", "two", "raise"):
            for ws in clients.values():
                ws.send(message)
        for name, ws in clients.items():
            for said in ("one", "two", "error"):
                assert ws.recv(5) == f"{said} {name} {name} /ws/test nothing"
    assert not has_request_context()


def test_every_callback_runs_in_the_request_context(
    flask_room: Callable[..., Room],
) -> None:
    seen: dict[str, str] = {}
    of_the_channel: list[bool] = []

    def see(name: str) -> None:
        seen[name] = request.args["q"]

    class Test(WebSocketListener):
        @classmethod
        def on_handshake(cls, req: Any) -> str:
            see("on_handshake")
            return "ann"

        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            of_the_channel.append(has_request_context())

        def __init__(self) -> None:
            see("__init__")

        def on_open(self, wsclient: Any) -> None:
            see("on_open")

        def on_open_async(self, wsclient: Any) -> None:
            see("on_open_async")

        def on_binary_message(self, wsclient: Any, data: bytes) -> None:
            see("on_binary_message")

        def on_message(self, wsclient: Any, message: str) -> str:
            see("on_message")
            return message

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            see("on_close")
            raise ValueError

        def on_error(self, wsclient: Any, exception: BaseException) -> None:
            see("on_error")

        @classmethod
        def on_last_close(cls) -> None:
            of_the_channel.append(has_request_context())

    served = flask_room(Test)
    with served.connect("?q=me") as ws:
        ws.send(b"binary")
        ws.send("text")
        assert ws.recv(5) == "text"
        wait_until(lambda: "on_open_async" in seen)
    served.wait_until_settled()
    names = {"__init__", *(name for name in vars(Test) if name.startswith("on_"))}
    assert seen == dict.fromkeys(names - {"on_first_open", "on_last_close"}, "me")
    # The channel is nobody's request, whoever comes first or leaves last.
    assert of_the_channel == [False, False]


def test_teardown_of_the_context_runs_after_each_callback(serve: Callable[..., Server]) -> None:
    app = Flask(__name__)
    torn: list[BaseException | None] = []
    app.teardown_request(torn.append)

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "raise":
                raise ValueError
            return message

    middleware = WebSocketMiddleware(
        app.wsgi_app, request_context=app.request_context, config=False
    )
    middleware.register("test", Test)
    with Room(serve(middleware), middleware).connect() as ws:
        torn.clear()
        ws.send("raise")
        ws.send("x")
        assert ws.recv(5) == "x"
        wait_until(lambda: len(torn) == 2)
    assert [type(exc) for exc in torn[:2]] == [ValueError, type(None)]


def test_context_is_left_after_every_callback_however_it_ends(room: MakeRoom) -> None:
    """So an ORM that keeps a session for each context gives its connection back."""
    entered: list[str] = []
    held: set[object] = set()

    @contextmanager
    def hold(environ: Any) -> Iterator[None]:
        entered.append(environ["QUERY_STRING"])
        held.add(token := object())
        try:
            yield
        finally:
            held.discard(token)

    class Test(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> bool:
            assert len(held) == 1
            return "refused" not in request.args

        def on_open(self, wsclient: Any) -> str:
            return f"{len(held)} held"

        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "raise":
                raise ValueError
            if message == "hang":
                gevent.sleep(60)
            return f"{len(held)} held"

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return f"{len(held)} held"

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            assert len(held) == 1

    served = room(Test, request_context=hold, request_timeout=0.2)
    with pytest.raises(InvalidStatus), served.connect("?refused"):
        pass
    with served.connect() as ws:
        assert ws.recv(5) == "1 held"
        for message in ("text", "raise", "hang"):
            ws.send(message)
            assert ws.recv(5) == "1 held"
            wait_until(lambda: not held)
    served.wait_until_settled()
    assert not held
    # Two for a handshake, which makes the listener too; on_message and on_error; on_close.
    assert entered == ["refused"] + [""] * (2 + 1 + 3 + 2 + 1)


def test_request_context_that_fails_is_an_error_of_the_callback(room: MakeRoom) -> None:
    calls: list[str] = []

    def broken(environ: Any) -> Any:
        calls.append(environ["PATH_INFO"])
        if len(calls) == 2:
            raise LookupError("no context")
        return ExitStack()

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None: ...
        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return str(exception)

    with room(Test, request_context=broken).connect() as ws:
        assert ws.recv(5) == "no context"
    assert set(calls) == {"/ws/test"}


# -- what is left afterwards ------------------------------------------------------------------


def connections() -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing) is Connection]


@pytest.mark.parametrize("way", ["client", "server", "error"])
def test_nothing_of_a_connection_is_left_when_it_has_gone(room: MakeRoom, way: str) -> None:
    """By counting references alone: nothing has to wait for the garbage collector."""
    left: list[weakref.ref[Any]] = []

    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None: ...

        def on_open(self, wsclient: Any) -> None:
            left.extend(map(weakref.ref, (self, wsclient)))
            wsclient.join("group")
            variable.set("x")
            self.session.user_properties["me"] = "x"

        def on_open_async(self, wsclient: Any) -> None: ...

        def on_message(self, wsclient: Any, message: str) -> str:
            if way == "server":
                wsclient.close()
            if way == "error":
                raise ValueError
            return message

        def on_error(self, wsclient: Any, exception: BaseException) -> None: ...

    served = room(Test)
    with served.connect() as staying:  # so that the channel keeps what it keeps
        staying.send("wait for me")
        wait_until(lambda: len(left) == 2)
        gc.collect()
        gc.disable()
        try:
            with served.connect() as ws:
                ws.send("x")
                wait_until(lambda: len(left) == 4)
            wait_until(lambda: len(served.channel.unfinished) <= (way != "server"))
            if way == "server":
                wait_until(lambda: all(ref() is None for ref in left))
            wait_until(lambda: [ref() for ref in left[2:]] == [None, None])
            wait_until(lambda: len(connections()) == (way != "server"))
        finally:
            gc.enable()


def test_reactor_and_its_greenlets_are_garbage_when_nobody_holds_them() -> None:
    def use_one() -> weakref.ref[Any]:
        ran: list[int] = []
        reactor = Reactor(0.005)
        reactor.pool.submit(lambda worker: ran.append(1))
        reactor.start_clock()
        wait_until(lambda: ran and not reactor.pool.workers)
        return weakref.ref(reactor.pool)

    pool = use_one()
    wait_until(lambda: gc.collect() >= 0 and pool() is None)
