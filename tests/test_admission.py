"""Who is let in: a listener's `on_handshake` in all its outcomes, and the room there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import bottle
import flask
import gevent
import pytest
from gevent.event import Event
from werkzeug.exceptions import HTTPException, TooManyRequests, Unauthorized, abort
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Response

from support import Server, wait_until
from support.apps import Echo, first_message, open_or_status, status_of, wrap
from support.handshakes import handshake
from wsmiddleware import WebSocketListener
from wsmiddleware.middleware import WebSocketMiddleware

Serve = Callable[..., Server]


def hooked(hook: Callable[[Any], Any], **options: Any) -> WebSocketMiddleware:
    """A middleware whose channel `echo` asks `hook`, and says who was let in."""

    class Hooked(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            return hook(request)

        def on_open(self, wsclient: Any) -> str:
            return repr(self.session.user_principal)

    return wrap(listener=Hooked, **options)


def raising(exc: BaseException) -> Callable[[Any], Any]:
    def hook(request: Any) -> Any:
        raise exc

    return hook


def as_user(app: Any, name: str) -> Any:
    """A middleware around us that has authenticated its user."""

    def around(environ: dict[str, Any], start_response: Any) -> Any:
        environ["REMOTE_USER"] = name
        return app(environ, start_response)

    return around


# -- letting in ------------------------------------------------------------------------------------


def test_everyone_is_let_in_without_a_hook(serve: Serve) -> None:
    class Whoami(WebSocketListener):
        def on_open(self, wsclient: Any) -> Any:
            return repr(self.session.user_principal)

    middleware = wrap(listener=Whoami)
    assert first_message(serve(middleware), "/ws/echo") == "None"
    assert first_message(serve(as_user(middleware, "ann")), "/ws/echo") == "'ann'"


def test_true_lets_in_as_remote_user(serve: Serve) -> None:
    middleware = hooked(lambda request: True)
    assert first_message(serve(as_user(middleware, "ann")), "/ws/echo") == "'ann'"
    assert first_message(serve(middleware), "/ws/echo") == "None"


def test_hook_may_set_remote_user(serve: Serve) -> None:
    def hook(request: Any) -> bool:
        request.environ["REMOTE_USER"] = "bob"
        return True

    assert first_message(serve(as_user(hooked(hook), "ann")), "/ws/echo") == "'bob'"


@pytest.mark.parametrize("user", ["ann", {"id": 7}, 1, 0, "", (), 1.0])
def test_any_other_value_lets_in_as_that_user(user: Any, serve: Serve) -> None:
    server = serve(as_user(hooked(lambda request: user), "somebody"))
    assert first_message(server, "/ws/echo") == repr(user)


def test_hook_gets_the_request(serve: Serve) -> None:
    seen: list[Any] = []

    def hook(request: Any) -> bool:
        seen.append(request)
        return True

    server = serve(hooked(hook))
    headers = {"Authorization": "Bearer t", "Cookie": "a=b"}
    first_message(server, "/ws/echo?q=%C3%A9&q=2", additional_headers=headers)
    (request,) = seen
    assert request.method == "GET" and request.path == "/ws/echo"
    assert request.args.getlist("q") == ["é", "2"]
    assert request.cookies["a"] == "b"
    assert request.authorization.token == "t"
    assert request.host == f"127.0.0.1:{server.port}"
    assert request.get_data() == b""


def test_hook_may_block_without_stopping_anyone(serve: Serve) -> None:
    asked, goes = Event(), Event()

    def hook(request: Any) -> Any:
        if "slow" in request.args:
            asked.set()
            goes.wait(5)
        return "ok"

    server = serve(hooked(hook))
    slow = gevent.spawn(first_message, server, "/ws/echo?slow")
    assert asked.wait(5)
    assert first_message(server, "/ws/echo") == "'ok'"
    goes.set()
    assert slow.get(timeout=5) == "'ok'"


# -- refusing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [False, None])
def test_false_and_none_refuse_and_the_log_says_what_to_return(
    answer: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    answered = handshake(serve(hooked(lambda request: answer)), "/ws/echo")
    assert (answered.status, answered.text) == (403, "Not allowed.\n")
    assert answered.headers["Connection"] == "close"
    assert f"on_handshake returned {answer}: it lets in with True or a user" in caplog.text


def tea(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("418 Tea", [("X-Own", "1"), ("Content-Length", "4")])
    return [b"mine"]


ANSWERS: dict[str, tuple[Callable[[], Any], int]] = {
    "response": (lambda: Response("mine", 402, {"X-Own": "1"}), 402),
    "redirect": (lambda: Response("mine", 302, {"X-Own": "1", "Location": "/login"}), 302),
    "status of its own": (lambda: Response("mine", 499, {"X-Own": "1"}), 499),
    "exception": (lambda: Unauthorized(response=Response("mine", 401, {"X-Own": "1"})), 401),
    "flask response": (lambda: flask.Response("mine", 429, {"X-Own": "1"}), 429),
    "any WSGI response": (
        lambda: HTTPException(
            response=tea  # type: ignore[arg-type]
        ),
        418,
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("is_raised", [False, True])
def test_response_is_the_answer_as_it_is(case: str, is_raised: bool, serve: Serve) -> None:
    make, status = ANSWERS[case]

    def hook(request: Any) -> Any:
        answer = make()
        if not is_raised:
            return answer
        raise answer if isinstance(answer, HTTPException) else HTTPException(response=answer)

    middleware = hooked(hook)
    answer = handshake(serve(middleware), "/ws/echo", behind=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.body, answer.rest) == (status, b"mine", b"")
    assert answer.headers["X-Own"] == "1"
    assert answer.headers["Connection"] == "close"
    assert middleware.metrics.refused == {status: 1}


def test_response_of_the_hook_is_not_changed(serve: Serve) -> None:
    shared = flask.Response("no", 403)
    server = serve(hooked(lambda request: shared))
    for _ in range(2):
        assert handshake(server, "/ws/echo").body == b"no"
    assert type(shared) is flask.Response
    assert "Connection" not in shared.headers


def test_exceptions_of_werkzeug_answer_with_their_status_and_headers(serve: Serve) -> None:
    assert handshake(serve(hooked(lambda request: abort(401))), "/ws/echo").status == 401
    assert handshake(serve(hooked(lambda request: Unauthorized)), "/ws/echo").status == 401
    answer = handshake(serve(hooked(raising(TooManyRequests(retry_after=7)))), "/ws/echo")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("s3cr3t"),
        SystemExit("s3cr3t"),
        gevent.Timeout(1),
        bottle.HTTPError(401, "s3cr3t"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_any_other_exception_is_a_logged_500(
    exc: BaseException, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    middleware = hooked(raising(exc), debug=True)
    answer = handshake(serve(middleware), "/ws/echo")
    assert (answer.status, answer.text) == (500, "Internal error.\n")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None and record.exc_info[1] is exc
    assert "channel echo: Hooked: " in record.getMessage()
    assert middleware.metrics.callback_errors == {("echo", "on_handshake"): 1}


def test_hook_that_takes_too_long_is_stopped(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(request: Any) -> bool:
        with contextlib.suppress(Exception):  # no listener's net catches it
            gevent.sleep(60)
        return True

    answer = handshake(serve(hooked(hook, request_timeout=0.05)), "/ws/echo")
    assert answer.status == 500
    assert "Hooked: on_handshake was stopped after 0.05 s (request_timeout)" in caplog.text


def test_hook_is_timed_alone(serve: Serve) -> None:
    with serve(hooked(lambda request: True, request_timeout=0.05)).connect("/ws/echo") as ws:
        assert ws.recv(5) == "None"
        with pytest.raises(TimeoutError):
            ws.recv(0.2)
        assert ws.ping().wait(5)


def test_async_hook_lets_nobody_in(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def hook(request: Any) -> bool:
        return False

    assert handshake(serve(hooked(hook)), "/ws/echo").status == 500
    assert "on_handshake is an async def" in caplog.text


def test_hook_with_a_yield_lets_nobody_in(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def plain(request: Any) -> Any:
        yield False

    async def asynchronous(request: Any) -> Any:
        yield False

    for hook in (plain, asynchronous):
        caplog.clear()
        assert handshake(serve(hooked(hook)), "/ws/echo").status == 500
        assert "on_handshake has a yield" in caplog.text


@pytest.mark.parametrize("user", [None, False])
def test_proxy_of_nobody_lets_nobody_in(user: Any, serve: Serve) -> None:
    assert (
        handshake(serve(hooked(lambda request: LocalProxy(lambda: user))), "/ws/echo").status == 403
    )


class Visitor:
    """A user as Flask-Login and Django have it; nobody's is one too."""

    def __init__(self, *, is_authenticated: bool) -> None:
        self.is_authenticated = is_authenticated


def test_user_who_is_not_authenticated_is_nobody(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    users = [Visitor(is_authenticated=False), LocalProxy(lambda: Visitor(is_authenticated=False))]
    server = serve(hooked(lambda request: users.pop()))
    for _ in range(2):
        assert handshake(server, "/ws/echo").status == 403
    assert caplog.text.count("returned a user who is not authenticated") == 2


def test_user_who_is_authenticated_comes_in(serve: Serve) -> None:
    server = serve(hooked(lambda request: Visitor(is_authenticated=True)))
    assert "Visitor object" in first_message(server, "/ws/echo")


def test_proxy_of_a_user_is_that_user(serve: Serve) -> None:
    users: list[Any] = ["ann"]
    server = serve(hooked(lambda request: LocalProxy(lambda: users.pop())))
    assert first_message(server, "/ws/echo") == "'ann'"


def test_listener_that_cannot_be_made_is_a_logged_500(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(WebSocketListener):
        def __init__(self) -> None:
            raise RuntimeError("no database")

    middleware = wrap(listener=Broken)
    assert handshake(serve(middleware), "/ws/echo").status == 500
    assert "no database" in caplog.text
    assert middleware.registry.unfinished == 0


class _Meta(type):
    def __call__(cls, *args: Any) -> Any:
        gevent.sleep(60)


@pytest.mark.parametrize("way", ["init", "new", "metaclass", "context"])
def test_listener_that_takes_too_long_to_make_is_stopped(
    way: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def sleep(*args: Any) -> Any:
        gevent.sleep(60)

    names = {"init": {"__init__": sleep}, "new": {"__new__": sleep}}.get(way, {})
    slow = (_Meta if way == "metaclass" else type)("Slow", (WebSocketListener,), names)
    options: dict[str, Any] = {"request_context": sleep} if way == "context" else {}
    middleware = wrap(listener=slow, request_timeout=0.05, **options)
    assert handshake(serve(middleware), "/ws/echo").status == 500
    assert "was stopped after 0.05 s (request_timeout)" in caplog.text


def test_hook_is_not_asked_where_the_handshake_is_refused_before(serve: Serve) -> None:
    asked: list[object] = []
    server = serve(hooked(asked.append))
    for changes in ({"origin": "https://evil.example"}, {"sec_websocket_key": "x"}):
        handshake(server, "/ws/echo", **changes)
    assert not asked


# -- room ------------------------------------------------------------------------------------------


def test_no_room_gets_503_and_room_again_after_a_close(serve: Serve) -> None:
    middleware = wrap(max_connections=2)
    server = serve(middleware)
    with server.connect("/ws/echo"):
        with server.connect("/ws/echo"):
            answer = handshake(server, "/ws/echo")
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Connection"] == "close"
        wait_until(lambda: middleware.registry.unfinished == 1)
        assert first_message(server, "/ws/echo") == "echo []"
    assert middleware.metrics.refused == {503: 1}


def test_room_is_that_of_all_channels_and_of_callbacks_that_still_run(serve: Serve) -> None:
    goes, closed = Event(), Event()

    class Slow(WebSocketListener):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            closed.set()
            goes.wait(5)

    middleware = wrap(max_connections=1)
    middleware.register("slow", Slow)
    server = serve(middleware)
    with server.connect("/ws/slow"):
        pass
    assert closed.wait(5)
    assert middleware.registry.size == 0
    assert status_of(server, "/ws/echo") == 503
    goes.set()
    wait_until(lambda: middleware.registry.unfinished == 0)
    assert first_message(server, "/ws/echo") == "echo []"


class Gate(Echo):
    """A hook that waits until the test lets it go on."""

    asked: Any
    goes: Any

    @classmethod
    def on_handshake(cls, request: Any) -> bool:
        cls.asked.set()
        cls.goes.wait(5)
        return True


@pytest.fixture
def gate() -> type[Gate]:
    return type("Gated", (Gate,), {"asked": Event(), "goes": Event()})


def test_room_is_looked_at_again_when_the_hook_has_blocked(serve: Serve, gate: type[Gate]) -> None:
    middleware = wrap(max_connections=1)
    middleware.register("gate", gate)
    server = serve(middleware)
    waiting = gevent.spawn(handshake, server, "/ws/gate")
    assert gate.asked.wait(5)
    with server.connect("/ws/echo") as ws:
        ws.recv(5)
        gate.goes.set()
        assert waiting.get(timeout=5).status == 503


def test_never_more_than_the_room_there_is(serve: Serve, gate: type[Gate]) -> None:
    middleware = wrap(listener=gate, max_connections=3)
    server = serve(middleware)
    clients = [gevent.spawn(open_or_status, server) for _ in range(8)]
    assert gate.asked.wait(5)
    gate.goes.set()
    gevent.joinall(clients, timeout=5)
    opened = [client.value for client in clients if client.value != 503]
    assert len(opened) == 3
    assert middleware.registry.size == 3
    for socket in opened:
        socket.close()


def test_handshake_that_waits_in_its_hook_gets_503(serve: Serve, gate: type[Gate]) -> None:
    middleware = wrap(listener=gate)
    server = serve(middleware)
    waiting = gevent.spawn(handshake, server, "/ws/echo")
    assert gate.asked.wait(5)
    middleware.shutdown()
    gate.goes.set()
    assert waiting.get(timeout=5).status == 503
