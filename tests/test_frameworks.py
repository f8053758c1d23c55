"""Applications of every kind inside us, and servers of every kind around us."""

from __future__ import annotations

import contextlib
import io
import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import bottle
import flask
import gevent
import pytest
from gevent import pywsgi
from werkzeug.serving import WSGIRequestHandler as WerkzeugRequestHandler
from werkzeug.serving import make_server as make_werkzeug_server

from support import Server, wait_until
from support.apps import App, first_message, status_of, wrap
from support.handshakes import handshake
from wsmiddleware import WebSocketListener, WebSocketMiddleware, websocket_info

Serve = Callable[..., Server]

#: Section 1 of the specification, word for word, but for the callbacks that it leaves open.
SPECIFICATION = {
    "app.py": """
from flask import Flask
from wsmiddleware import WebSocketListener, WebSocketMiddleware, websocket_info

app = Flask(__name__)
app.wsgi_app = WebSocketMiddleware(app.wsgi_app)        # any WSGI callable

@app.post("/notify/<role>")
def notify(role):
    for instance in websocket_info().instances:
        if instance.component.channel == "test" and instance.component.has_role(role):
            instance.component.send_message("hello")
    return "", 204
""",
    "websockets/test.py": """
from wsmiddleware import WebSocketListener

EVENTS = []

class Test(WebSocketListener):
    idle_timeout = 60                                   # seconds; overrides the server's

    @classmethod
    def on_first_open(cls, wsclients): cls.wsclients = wsclients
    def on_open(self, wsclient): return "Welcome"       # a returned value is sent
    def on_open_async(self, wsclient): EVENTS.append("on_open_async")
    def on_message(self, wsclient, message): return "ECHO:" + message
    def on_close(self, wsclient, reason_phrase): EVENTS.append(f"on_close {reason_phrase}")
    def on_error(self, wsclient, exception): EVENTS.append(repr(exception))
    @classmethod
    def on_last_close(cls): EVENTS.append("on_last_close")

    def has_role(self, role): return role in self.session.request_parameter_map.get("role", ())
    def send_message(self, message): self.wsclient.send(message)
""",
}


# -- applications ----------------------------------------------------------------------------------


def test_application_of_the_specification(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "websockets").mkdir()
    for name, source in SPECIFICATION.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "app"}
    exec(SPECIFICATION["app.py"], names)
    server = serve(names["app"])
    listener = names["app"].wsgi_app.registry.channels["test"].listener_class
    events = listener.on_message.__globals__["EVENTS"]

    with server.connect("/ws/test?role=editor") as ws:
        assert ws.recv(5) == "Welcome"
        ws.send("hi")
        assert ws.recv(5) == "ECHO:hi"
        (instance,) = websocket_info().instances
        assert instance.session.max_idle_timeout == 60_000
        assert [client.id for client in listener.wsclients] == [instance.session.id]
        assert server.request("POST", "/notify/editor").status == 204
        assert ws.recv(5) == "hello"
        assert server.request("POST", "/notify/reader").status == 204
        with pytest.raises(TimeoutError):
            ws.recv(0.05)
        ws.close(1000, "bye")
    wait_until(lambda: "on_last_close" in events)
    assert events == ["on_open_async", "on_close bye", "on_last_close"]
    # The settings' file was made, with the seed's three defaults.
    written = json.loads((tmp_path / "websocket.json").read_text(encoding="utf-8"))
    assert written["directory"] == "{config-dir}/websockets/"


def flask_app() -> Any:
    app = flask.Flask(__name__)

    @app.post("/page/<name>")
    def page(name: str) -> tuple[str, int, dict[str, str]]:
        return f"{name} {flask.request.get_data(as_text=True)}", 201, {"X-Own": "1"}

    app.wsgi_app = wrap(app.wsgi_app)  # type: ignore[method-assign]
    return app


def bottle_app() -> Any:
    app = bottle.Bottle()

    @app.post("/page/<name>")  # type: ignore[misc]
    def page(name: str) -> str:
        bottle.response.status = 201
        bottle.response.set_header("X-Own", "1")
        return f"{name} {bottle.request.body.read().decode()}"

    return wrap(app)


def bare_app() -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("201 Created", [("X-Own", "1")])
        yield environ["PATH_INFO"].rpartition("/")[2].encode() + b" "
        yield environ["wsgi.input"].read()

    return wrap(app)


@pytest.mark.parametrize("make", [flask_app, bottle_app, bare_app])
def test_application_is_served_beside_its_channels(make: Callable[[], Any], serve: Serve) -> None:
    server = serve(make())
    with server.connect("/ws/echo") as ws:
        assert ws.recv(5) == "echo []"
        answer = server.request("POST", "/page/one", "body")
        assert (answer.status, answer.text, answer.headers["X-Own"]) == (201, "one body", "1")
        ws.send("hi")
        assert ws.recv(5) == "hi"
    if make is not bare_app:
        assert server.get("/none").status == 404


def test_framework_may_be_wrapped_around_us_too(serve: Serve) -> None:
    """A WSGI callable is all that both sides ask for; Django's is one."""
    statuses: list[str] = []
    inner = wrap(flask_app(), prefix="/live")

    class Around:
        def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            def started(status: str, headers: Any, exc_info: Any = None) -> Any:
                statuses.append(status[:3])
                return start_response(status, headers, exc_info)

            return inner(environ, started)

    server = serve(Around())
    assert first_message(server, "/live/echo") == "echo []"
    assert first_message(server, "/ws/echo") == "echo []"
    assert server.request("POST", "/page/one", "body").status == 201
    assert statuses == ["101", "101", "201"]


def test_refusals_keep_to_the_wsgi_protocol() -> None:
    """The reference checker is around us; the answers are those of a server that cannot upgrade."""
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/ws/echo",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    started: list[Any] = []
    result: Any = validator(wrap())(environ, lambda *args: started.append(args) or (lambda b: None))
    body = b"".join(result)
    result.close()
    assert started[0][0].startswith("501 ")
    assert b"python -m wsmiddleware run" in body


# -- inside an application's context ---------------------------------------------------------------


@pytest.fixture
def flask_server(serve: Serve) -> Iterator[Server]:
    app = flask.Flask(__name__)
    app.secret_key = "test"

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask.session["name"] = name
        return ""

    class Member(WebSocketListener):
        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            assert flask.request.args == request.args
            if "abort" in request.args:
                flask.abort(401)
            return flask.session.get("name")

        def on_open(self, wsclient: Any) -> Any:
            return [self.session.user_principal, flask.session["name"], flask.request.path]

    app.wsgi_app = wrap(  # type: ignore[method-assign]
        app.wsgi_app, listener=Member, request_context=app.request_context
    )
    yield serve(app)


def test_session_of_flask_is_there_in_the_hook(flask_server: Server) -> None:
    cookie = flask_server.get("/login/ann").headers["Set-Cookie"].partition(";")[0]
    headers = {"Cookie": cookie}
    expected = '["ann", "ann", "/ws/echo"]'
    assert first_message(flask_server, "/ws/echo", additional_headers=headers) == expected


def test_who_has_no_session_is_refused(flask_server: Server) -> None:
    assert status_of(flask_server, "/ws/echo") == 403
    headers = {"Cookie": "session=forged"}
    assert status_of(flask_server, "/ws/echo", additional_headers=headers) == 403


def test_abort_of_flask_is_the_answer(flask_server: Server) -> None:
    assert status_of(flask_server, "/ws/echo?abort") == 401


# -- servers that cannot upgrade -------------------------------------------------------------------

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


class Silent(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None: ...


class SilentWerkzeug(WerkzeugRequestHandler):
    def log(self, *args: Any) -> None: ...


@contextlib.contextmanager
def in_background(server: socketserver.BaseServer, port: int) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Server(port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def wsgiref_server(app: Any) -> Iterator[Server]:
    server = make_server("127.0.0.1", 0, app, handler_class=Silent)
    with in_background(server, server.server_port) as served:
        yield served


@contextlib.contextmanager
def werkzeug_server(app: Any) -> Iterator[Server]:
    server = make_werkzeug_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=SilentWerkzeug
    )
    with in_background(server, server.server_port) as served:
        yield served


@contextlib.contextmanager
def plain_pywsgi_server(app: Any) -> Iterator[Server]:
    server = pywsgi.WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    try:
        yield Server(server.server_port)
    finally:
        server.stop(timeout=1)


@pytest.mark.parametrize("make", [wsgiref_server, werkzeug_server, plain_pywsgi_server])
def test_server_that_cannot_upgrade_says_what_to_run(
    make: Callable[[Any], contextlib.AbstractContextManager[Server]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with make(wrap()) as server:
        for answer in (
            server.request("GET", "/ws/echo", headers=HANDSHAKE),
            server.request("GET", "/ws/none", headers=HANDSHAKE),
            server.get("/ws/echo"),
            server.request("POST", "/ws/echo", "body"),
        ):
            assert answer.status == 501
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert answer.text.count("\n") == 1
            assert "python -m wsmiddleware run" in answer.text
            assert "gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker" in answer.text
        # The application itself is served as ever.
        assert server.get("/page").text == "app /page"
        assert server.get("/ws").text == "app /ws"
    assert "with 501: This server cannot upgrade" in caplog.text


def test_somebody_elses_websocket_object_is_no_upgrade() -> None:
    started: list[str] = []
    environ = {"PATH_INFO": "/ws/echo", "REQUEST_METHOD": "GET", "wsgi.websocket": None}
    list(wrap()(environ, lambda status, headers, exc_info=None: started.append(status)))  # type: ignore[arg-type]
    assert started == ["501 NOT IMPLEMENTED"]


# -- the loop of another thread --------------------------------------------------------------------


def test_middleware_in_two_loops_refuses_in_the_second(serve: Serve) -> None:
    middleware = wrap()
    server = serve(middleware)
    with server.connect("/ws/echo") as ws:
        ws.recv(5)
        pool = gevent.get_hub().threadpool
        environ = {
            "PATH_INFO": "/ws/echo",
            "REQUEST_METHOD": "GET",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "x",
            "HTTP_UPGRADE": "websocket",
            "HTTP_CONNECTION": "upgrade",
            "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            "wsmiddleware.upgrade": Speaking(),
        }
        started: list[str] = []
        pool.apply(
            lambda: list(middleware(environ, lambda status, *_: started.append(status)))  # type: ignore[arg-type,return-value,func-returns-value]
        )
    assert started == ["503 SERVICE UNAVAILABLE"]


class Speaking:
    """As much of an `Upgrade` as a refusal needs."""

    speaks_first = True


def test_answers_reach_an_http_client_that_keeps_its_connection(serve: Serve) -> None:
    app = App()
    server = serve(wrap(app))
    assert handshake(server, "/ws/none").status == 404
    for _ in range(2):
        assert server.get("/page").status == 200
    assert len(app.environs) == 2


def test_flask_context_is_not_entered_without_request_context(serve: Serve) -> None:
    middleware = WebSocketMiddleware(flask.Flask(__name__).wsgi_app, config=False)

    @middleware.listener("echo")
    class Listener(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            return str(flask.has_request_context())

    assert first_message(serve(middleware), "/ws/echo") == "False"
