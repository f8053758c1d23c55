"""Callbacks in Flask's context: one request and session a connection, one context a callback."""

from __future__ import annotations

import gc
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import flask_login
import gevent
import pytest
import sqlalchemy
from flask import (
    Flask,
    after_this_request,
    appcontext_popped,
    appcontext_pushed,
    current_app,
    flash,
    g,
    get_flashed_messages,
    has_app_context,
    request,
    session,
    url_for,
)
from flask.ctx import RequestContext
from flask.globals import _cv_app, request_ctx
from flask.sessions import SecureCookieSessionInterface
from flask_sqlalchemy import SQLAlchemy
from gevent.event import Event
from websockets.exceptions import InvalidStatus
from werkzeug.routing import UnicodeConverter

from support import Server, wait_until
from support.room import MakeRoom, Room
from wsmiddleware import WebSocketListener, WebSocketMiddleware


class CountedFlask(Flask):
    """Counts what it does for its contexts."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.secret_key = "test"
        self.counts = counts = Counter[str]()
        self.is_backend_away = False
        app = self

        class Sessions(SecureCookieSessionInterface):
            def open_session(self, app_: Any, request_: Any) -> Any:
                counts["sessions"] += 1
                if app.is_backend_away:
                    raise ConnectionError("no session backend")
                return super().open_session(app_, request_)

        class Request(Flask.request_class):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                counts["requests"] += 1
                super().__init__(*args, **options)

        class Matched(UnicodeConverter):
            def to_python(self, value: str) -> str:
                counts["matches"] += 1
                return value

        self.session_interface = Sessions()
        self.request_class = Request
        self.url_map.converters["matched"] = Matched
        self.add_url_rule("/ws/<matched:channel>", "channel", websocket=True)
        self.add_url_rule("/page", "page", view_func=lambda: "")
        self.teardown_request(lambda exc: counts.update(["request teardowns"]))
        self.teardown_appcontext(lambda exc: counts.update(["app teardowns"]))

    def serve(self, serve: Callable[..., Server], listener_class: Any) -> Room:
        """The listener as a channel of this application, and nothing counted yet."""
        middleware = WebSocketMiddleware(
            self.wsgi_app, request_context=self.request_context, config=False
        )
        self.wsgi_app = middleware  # type: ignore[method-assign]
        middleware.register("test", listener_class)
        return Room(serve(self), middleware)


class Merged(RequestContext):
    """In outline the one context that Flask 3.2 makes of the two."""

    def __init__(self, app: Flask, *args: Any, **options: Any) -> None:
        super().__init__(app, *args, **options)
        self.g = app.app_ctx_globals_class()

    def push(self) -> None:
        self._token = _cv_app.set(self)  # type: ignore[arg-type]
        appcontext_pushed.send(self.app)
        super().push()

    def pop(self, exc: BaseException | None = None) -> None:  # type: ignore[override]
        try:
            if self._cv_tokens:  # it was pushed to the end
                super().pop(exc)
        finally:
            self.app.do_teardown_appcontext(exc)
            _cv_app.reset(self._token)
            appcontext_popped.send(self.app)


@pytest.fixture(params=["two contexts", "one context"])
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CountedFlask:
    if request.param == "one context":
        monkeypatch.setattr(Flask, "request_context", lambda self, environ: Merged(self, environ))
    return CountedFlask()


def test_a_thousand_messages_of_a_session_and_a_request_each_connection(
    app: CountedFlask, serve: Callable[..., Server], tmp_path: Path
) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'users.db'}"
    db, logins, counts = SQLAlchemy(app), flask_login.LoginManager(app), app.counts

    class User(flask_login.UserMixin, db.Model):  # type: ignore[misc, name-defined]
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
        name = sqlalchemy.Column(sqlalchemy.String)

    logins.user_loader(lambda user_id: db.session.get(User, int(user_id)))
    names = ["ann", "bob", "cid", "dan"]
    with app.app_context():
        db.create_all()
        db.session.add_all(User(name=name) for name in names)
        db.session.commit()
        pool = db.engine.pool
    sqlalchemy.event.listen(pool, "checkout", lambda *args: counts.update(["checkouts"]))
    sqlalchemy.event.listen(pool, "checkin", lambda *args: counts.update(["checkins"]))

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask_login.login_user(db.session.execute(db.select(User).filter_by(name=name)).scalar())
        return name

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            before, g.mine = g.get("mine"), message
            user = flask_login.current_user.name
            url = url_for("page")
            return f"{message} {user} {session['_user_id']} {request.view_args} {url} {before}"

    served = app.serve(serve, Test)
    cookies = [served.server.get(f"/login/{name}").headers["Set-Cookie"] for name in names]
    counts.clear()
    for number, (name, cookie) in enumerate(zip(names, cookies, strict=True)):
        with served.connect(additional_headers={"Cookie": cookie.split(";")[0]}) as ws:
            for message in range(250):
                ws.send(str(message))
            view_args = {"channel": "test"}
            for message in range(250):
                said = f"{message} {name} {number + 1} {view_args} /page None"
                assert ws.recv(5) == said
    served.wait_until_settled()
    # Each connection made its listener, and then had its 250 messages.
    assert counts == {
        "sessions": 4,
        "requests": 4,
        "matches": 4,
        "request teardowns": 1004,
        "app teardowns": 1004,
        "checkouts": 1000,
        "checkins": 1000,
    }
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    assert not db.session.registry.registry  # type: ignore[attr-defined]
    pool.dispose()  # from Python 3.13 on SQLite's connections are not closed in silence


def test_callbacks_that_overlap_share_no_context(
    app: CountedFlask, serve: Callable[..., Server]
) -> None:
    both = Event(), Event()
    pushed: list[Any] = []
    seen: dict[str, Any] = {}

    def meet(name: str, mine: Event, other: Event) -> None:
        g.name = name
        pushed.append(g._get_current_object())
        mine.set()
        assert other.wait(5)
        seen[name] = g.name, request.args["q"], session.get("nobody")

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None:
            meet("on_open", *both)

        def on_open_async(self, wsclient: Any) -> str:
            meet("on_open_async", *both[::-1])
            return "done"

    served = app.serve(serve, Test)
    with served.connect("?q=1") as ws:
        assert ws.recv(5) == "done"
        wait_until(lambda: len(seen) == 2)
        wait_until(lambda: app.counts["app teardowns"] == 3)  # and __init__
    assert seen == {name: (name, "1", None) for name in ("on_open", "on_open_async")}
    assert pushed[0] is not pushed[1]
    assert app.counts["request teardowns"] == 3


def test_nothing_of_a_callbacks_context_is_the_next_ones(
    app: CountedFlask, serve: Callable[..., Server]
) -> None:
    contexts: list[Any] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> dict[str, Any]:
            flash(message)
            after_this_request(lambda response: response)
            contexts.append(request_ctx._get_current_object())
            functions = len(contexts[-1]._after_request_functions)
            return {"functions": functions, "flashed": get_flashed_messages()}

    with app.serve(serve, Test).connect() as ws:
        for message in ("one", "two"):
            ws.send(message)
            expected = f'{{"functions": 1, "flashed": ["{message}"]}}'
            assert ws.recv(5) == expected
    assert contexts[0] is not contexts[1]


def test_session_is_the_handshakes(app: CountedFlask, serve: Callable[..., Server]) -> None:
    """What a callback changes in it the next one finds, and no cookie."""

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            before = session.get("said", "nothing")
            session["said"] = message
            return str(before)

    served = app.serve(serve, Test)
    with served.connect() as ws, served.connect() as other:
        for message, before in (("one", "nothing"), ("two", "one")):
            ws.send(message)
            assert ws.recv(5) == before
        other.send("three")
        assert other.recv(5) == "nothing"


# -- what fails -------------------------------------------------------------------------------


def test_session_that_cannot_be_opened_refuses_and_leaves_nothing_behind(
    app: CountedFlask, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    served = app.serve(serve, Test)
    app.is_backend_away = True
    with pytest.raises(InvalidStatus) as raised, served.connect():
        pass
    assert raised.value.response.status_code == 500
    assert "channel test: Test: ConnectionError in a handshake" in caplog.text
    # As after a view: what opening it has taken of a database is given back.
    assert app.counts["request teardowns"] == app.counts["app teardowns"] == 1
    app.is_backend_away = False
    with served.connect() as ws:
        ws.send("x")
        assert ws.recv(5) == "x"


@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_message", "on_binary_message"])
def test_context_that_cannot_be_entered_is_an_error_of_the_callback(
    app: CountedFlask, serve: Callable[..., Server], name: str
) -> None:
    told: list[str] = []
    fails, entered = [False], [0]

    def fail(sender: Any, **more: Any) -> None:
        entered[0] += 1
        if fails[0]:
            fails[0] = False
            raise ConnectionError("no backend")

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            return f"{message} {g.get('mine')}"

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            told.append(str(exception))
            return f"told {g.get('mine')}"

    def callback(self: Any, wsclient: Any, *message: Any) -> str:
        return "ran"

    if name != "on_message":
        setattr(Test, name, callback)
    served = app.serve(serve, Test)
    with appcontext_pushed.connected_to(fail, app):
        is_message = "message" in name
        with served.connect() if is_message else _failing(served, app, fails) as ws:
            if is_message:
                fails[0] = True
                ws.send(b"x" if name == "on_binary_message" else "x")
            assert ws.recv(5) == "told None"
            ws.send("next")
            assert ws.recv(5) == "next None"
    served.wait_until_settled()
    assert told == ["no backend"]
    assert entered[0] == app.counts["app teardowns"]


@contextmanager
def _failing(served: Room, app: Flask, fails: list[bool]) -> Any:
    """A connection whose first context after the handshake's cannot be entered."""

    def arm(sender: Any, **more: Any) -> None:
        fails[0] = True
        appcontext_popped.disconnect(arm, app)

    appcontext_popped.connect(arm, app)
    with served.connect() as ws:
        yield ws


@contextmanager
def _not_left(environ: Any) -> Any:
    try:
        yield
    finally:
        raise LookupError("cannot leave")


@pytest.mark.parametrize("way", ["flask", "factory"])
@pytest.mark.parametrize("name", ["on_open", "on_open_async", "on_message", "on_error", "on_close"])
def test_context_that_cannot_be_left_is_logged_with_the_callback(
    app: CountedFlask,
    serve: Callable[..., Server],
    room: MakeRoom,
    caplog: pytest.LogCaptureFixture,
    way: str,
    name: str,
) -> None:
    """What the callback has returned or raised stands."""

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if name == "on_error":
                raise ValueError("mine")
            return message

    def callback(self: Any, wsclient: Any, *more: Any) -> str:
        return f"{name} {more}"

    if name != "on_message":
        setattr(Test, name, callback)
    if way == "flask":

        @app.teardown_appcontext
        def fail(exc: BaseException | None) -> None:
            raise LookupError("cannot leave")

        served = app.serve(serve, Test)
    else:
        served = room(Test, request_context=_not_left)
    with served.connect() as ws:
        if name.startswith("on_open"):
            assert ws.recv(5) == f"{name} ()"
        for message in ("one", "two"):
            ws.send(message)
            said = "on_error (ValueError('mine'),)" if name == "on_error" else message
            assert ws.recv(5) == said
    served.wait_until_settled()
    wheres = ["__init__", name, *(["on_message"] if name != "on_message" else [])]
    for where in wheres:
        assert f"Test.{where}: leaving its context raised LookupError: cannot leave" in caplog.text
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all("leaving its context" in record.message for record in errors)


def test_callback_that_fails_keeps_its_own_error_where_leaving_fails_too(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def hold(environ: Any) -> Any:
        try:
            yield
        except ValueError as exc:
            raise LookupError("cannot leave") from exc

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            raise ValueError("mine")

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return repr(exception)

    with room(Test, request_context=hold).connect() as ws:
        ws.send("x")
        assert ws.recv(5) == "ValueError('mine')"
    assert "Test.on_message: leaving its context raised LookupError" in caplog.text


def test_factory_may_swallow_what_a_callback_raises(room: MakeRoom) -> None:
    @contextmanager
    def hold(environ: Any) -> Any:
        with suppress(ValueError):
            yield

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            if message == "raise":
                raise ValueError
            return message

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return "told"

    with room(Test, request_context=hold).connect() as ws:
        ws.send("raise")
        ws.send("x")
        assert ws.recv(5) == "x"


# -- whose context it is ----------------------------------------------------------------------


def test_a_way_of_its_own_to_make_contexts_is_gone_each_time(
    app: CountedFlask, serve: Callable[..., Server]
) -> None:
    """A subclass's, and a function around Flask's: they may do what only they know."""

    class Own(CountedFlask):
        def request_context(self, environ: Any) -> Any:
            self.counts["own"] += 1
            return super().request_context(environ)

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            return current_app.name

    app = Own()
    served = app.serve(serve, Test)
    with served.connect() as ws:
        for _ in range(3):
            ws.send("x")
            ws.recv(5)
    assert app.counts["own"] == app.counts["sessions"] == 4


def test_frames_that_led_to_no_view_are_not_kept(serve: Callable[..., Server]) -> None:
    """They hold the whole of the handshake, for as long as the connection lives."""
    app = Flask(__name__)

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            exc = request.routing_exception
            return f"{type(exc).__name__} {exc and (exc.__traceback__ or exc.__context__)}"

    middleware = WebSocketMiddleware(
        app.wsgi_app, request_context=app.request_context, config=False
    )
    middleware.register("test", Test)
    with Room(serve(middleware), middleware).connect() as ws:
        assert ws.recv(5) == "NotFound None"


def test_nothing_of_a_connection_is_left_when_it_has_gone(
    app: CountedFlask, serve: Callable[..., Server]
) -> None:
    """By counting references alone, as without a context."""
    left: list[weakref.ref[Any]] = []

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None:
            left.extend(map(weakref.ref, (self, wsclient, request._get_current_object())))

        def on_open_async(self, wsclient: Any) -> None:
            gevent.sleep(0)

        def on_message(self, wsclient: Any, message: str) -> str:
            raise ValueError

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return "told"

    served = app.serve(serve, Test)
    with served.connect() as staying:
        staying.send("x")
        staying.recv(5)
        gc.collect()
        gc.disable()
        try:
            with served.connect() as ws:
                ws.send("x")
                assert ws.recv(5) == "told"
            wait_until(lambda: len(served.channel.unfinished) == 1)
            wait_until(lambda: [ref() for ref in left[3:]] == [None] * 3)
        finally:
            gc.enable()
    assert not has_app_context()
