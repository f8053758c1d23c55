"""`websocket_info()`: from views, threads and greenlets, with nothing secret."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import gevent
import pytest

from support import Server, wait_until
from support.apps import App, Echo, wrap
from support.servers import environment
from support.threads import in_thread
from wsmiddleware import WebSocketListener, WebSocketMiddleware, publish, websocket_info
from wsmiddleware.info import Info, middlewares
from wsmiddleware.net.connection import Connection
from wsmiddleware.speedups import IMPLEMENTATION

Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def no_older_middleware() -> None:
    """Middlewares are known weakly: those of earlier tests go with their last reference."""
    gc.collect()


# -- what it gives ---------------------------------------------------------------------------------


def test_before_any_middleware_it_is_empty(tmp_path: Path) -> None:
    code = (
        "import json, wsmiddleware as w; info = w.websocket_info(); "
        "print(json.dumps([info.to_dict(), info.mapping, info['config'], list(info.instances)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    info, mapping, config, instances = json.loads(done.stdout)
    assert (mapping, config, instances) == (None, {}, [])
    assert info == {
        "version": info["version"],
        "mapping": None,
        "config": {},
        "config_file": None,
        "log": "websocket",
        "speedups": IMPLEMENTATION,
        "instances": [],
    }


def test_it_gives_the_effective_settings(
    tmp_path: Path, listener_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = listener_dir(chat="class L(WebSocketListener): pass")
    file = tmp_path / "own.json"
    file.write_text('{"idleTimeout": 7, "requestTimeout": 8}')
    monkeypatch.setenv("WSMIDDLEWARE_REQUEST_TIMEOUT", "9")
    middleware = WebSocketMiddleware(
        App(), config=file, listeners=directory, subprotocols=["a"], max_connections=3
    )
    info = websocket_info()
    assert info.version[0].isdigit()
    assert info.mapping == str(directory)
    assert Path(info.mapping).is_absolute()
    assert info.config_file == str(file)
    assert info.log == "websocket"
    assert info.config["idle_timeout"] == 7
    assert info.config["request_timeout"] == 9
    assert info.config["subprotocols"] == ["a"]
    assert info.config["max_connections"] == 3
    assert info.config["directory"] == str(directory)
    assert middlewares()[-1] is middleware


def test_attributes_are_items_too(serve: Serve) -> None:
    server = serve(wrap())
    with server.connect("/ws/echo") as ws:
        ws.recv(5)
        info = websocket_info()
        assert list(info) == sorted(Info.__slots__)
        for name in info.keys():  # noqa: SIM118
            assert info[name] is getattr(info, name)
        assert dict(info)["instances"] is info["instances"]
        (instance,) = info["instances"]
        assert instance["component"] is instance.component
        assert instance["session"] is instance.session
        assert instance["session"]["id"] == instance.session.id
        for name in ("to_dict", "none", "_x", "__class__", 0):
            with pytest.raises(KeyError):
                info[name]
            with pytest.raises(KeyError):
                instance[name]
        assert "instances" in info and "none" not in info


def test_component_is_the_live_listener(serve: Serve) -> None:
    class Counting(WebSocketListener):
        def __init__(self) -> None:
            self.count = 0

        def on_message(self, wsclient: Any, message: str) -> int:
            self.count += 1
            return self.count

    server = serve(wrap(listener=Counting))
    with server.connect("/ws/echo") as one, server.connect("/ws/echo") as two:
        one.send("x")
        assert one.recv(5) == "1"
        wait_until(lambda: len(websocket_info().instances) == 2)
        components = [instance.component for instance in websocket_info().instances]
        assert sorted(component.count for component in components) == [0, 1]
        for component in components:
            component.count = 10
        two.send("x")
        assert two.recv(5) == "11"


def test_it_is_a_snapshot_of_what_is_open(serve: Serve) -> None:
    server = serve(wrap())
    with server.connect("/ws/echo") as one:
        one.recv(5)
        before = websocket_info()
        with server.connect("/ws/echo") as two:
            two.recv(5)
            during = websocket_info()
            assert (len(before.instances), len(during.instances)) == (1, 2)
            (instance,) = (i for i in during.instances if i.session.id not in str(before.to_dict()))
        wait_until(lambda: len(websocket_info().instances) == 1)
        # What it lists may close, and can still be asked.
        assert len(during.instances) == 2
        assert not instance.session.is_open()
        assert instance.to_dict()["session"]["is_open"] is False
        assert publish("echo", "still there") and one.recv(5) == "still there"


def test_instance_is_listed_in_its_own_on_open_and_no_more_in_on_close(serve: Serve) -> None:
    seen: list[list[object]] = []

    class Looking(WebSocketListener):
        def look(self) -> None:
            seen.append([instance.component is self for instance in websocket_info().instances])

        def on_open(self, wsclient: Any) -> None:
            self.look()

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            self.look()

    with serve(wrap(listener=Looking)).connect("/ws/echo"):
        pass
    wait_until(lambda: len(seen) == 2)
    assert seen == [[True], []]


def test_several_middlewares_give_all_instances_and_the_newest_settings(serve: Serve) -> None:
    older = wrap(idle_timeout=1)
    newer = wrap(older, prefix="/live", idle_timeout=2)
    server = serve(newer)
    with server.connect("/ws/echo") as one, server.connect("/live/echo") as two:
        one.recv(5), two.recv(5)
        info = websocket_info()
    uris = sorted(instance.session.request_uri for instance in info.instances)
    assert uris == ["/live/echo", "/ws/echo"]
    assert info.config["idle_timeout"] == 2


def test_middleware_that_nobody_holds_is_gone() -> None:
    count = len(middlewares())
    middleware = wrap()
    assert len(middlewares()) == count + 1
    del middleware
    gc.collect()
    assert len(middlewares()) == count


def test_add_raw_adds_the_connection_and_nothing_else_changes(serve: Serve) -> None:
    server = serve(wrap())
    with server.connect("/ws/echo") as ws:
        ws.recv(5)
        (plain,) = websocket_info().instances
        (raw,) = websocket_info(add_raw=True).instances
        assert isinstance(raw.session["raw"], Connection)
        assert raw.session.raw is raw.session["raw"]
        assert raw.session.id == raw["session"]["id"] == plain.session.id
        raw.session.max_idle_timeout = 9000
        raw.session.user_properties["a"] = 1
        assert plain.session.max_idle_timeout == 9000
        assert plain.session.user_properties == {"a": 1}
        assert raw.to_dict() == plain.to_dict()
        with pytest.raises(KeyError):
            plain.session["raw"]


# -- nothing secret --------------------------------------------------------------------------------


def test_json_holds_no_secret(serve: Serve) -> None:
    class Secretive(WebSocketListener):
        token = "s3cr3t"
        path = "/<room>/<key>"

        @classmethod
        def on_handshake(cls, request: Any) -> Any:
            return {"name": "ann", "password": "s3cr3t"}

        def on_open(self, wsclient: Any) -> str:
            self.password = "s3cr3t"
            self.session.user_properties["s3cr3t"] = "s3cr3t"
            wsclient.join("s3cr3t")
            return "open"

        def __repr__(self) -> str:
            return "s3cr3t"

    server = serve(wrap(listener=Secretive))
    headers = {
        "Authorization": "Bearer s3cr3t",
        "Proxy-Authorization": "Basic s3cr3t",
        "Cookie": "session=s3cr3t; s3cr3t=x",
        "X-Api-Key": "s3cr3t",
        "Referer": "https://user:s3cr3t@example.com/",
        "User-Agent": "s3cr3t",
    }
    path = "/ws/echo/blue/s3cr3t?s3cr3t&s3cr3t==&token=s3cr3t&a=s3cr3t&a=2"
    options = {"additional_headers": headers, "user_agent_header": None}
    offer = ["s3cr3t"]  # where browsers put what they cannot put into a header
    with server.connect(path, subprotocols=offer, **options) as ws:
        assert ws.recv(5) == "open"
        for add_raw in (False, True):
            info = websocket_info(add_raw)
            text = json.dumps(info.to_dict())
            assert "s3cr3t" not in text
            assert json.loads(text) == info.to_dict()
    (instance,) = info.to_dict()["instances"]
    assert instance["component"] == {"channel": "echo", "class": f"{__name__}.Secretive"}
    assert instance["session"]["request_uri"] == "/ws/echo/<room>/<key>"
    assert instance["session"]["query_parameters"] == ["a", "token"]
    assert instance["session"]["remote_address"] == "127.0.0.1"


# -- from wherever ---------------------------------------------------------------------------------


def test_view_pushes_to_those_with_a_role(serve: Serve) -> None:
    app = flask.Flask(__name__)

    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> str:
            self.wsclient = wsclient
            return "Welcome"

        def has_role(self, role: str) -> bool:
            return role in self.session.request_parameter_map.get("role", ())

        def send_message(self, message: str) -> None:
            self.wsclient.send(message)

    middleware = WebSocketMiddleware(app.wsgi_app, config=False)
    middleware.register("test", Test)
    middleware.register("other", Echo)
    app.wsgi_app = middleware  # type: ignore[method-assign]

    @app.post("/notify/<role>")
    def notify(role: str) -> tuple[str, int]:
        for instance in websocket_info().instances:
            if instance.component.channel == "test" and instance.component.has_role(role):  # type: ignore[attr-defined]
                instance.component.send_message("hello")  # type: ignore[attr-defined]
        return "", 204

    server = serve(app)
    with (
        server.connect("/ws/test?role=editor") as editor,
        server.connect("/ws/test?role=reader") as reader,
        server.connect("/ws/other?role=editor") as other,
    ):
        assert editor.recv(5) == reader.recv(5) == "Welcome"
        assert other.recv(5) == "other []"
        assert server.request("POST", "/notify/editor").status == 204
        assert editor.recv(5) == "hello"
        for quiet in (reader, other):
            with pytest.raises(TimeoutError):
                quiet.recv(0.05)


@pytest.mark.parametrize(
    "call", [in_thread, lambda function: gevent.spawn(function).get(timeout=5)]
)
def test_thread_and_greenlet_push_through_it(call: Callable[..., Any], serve: Serve) -> None:
    def push() -> int:
        instances = websocket_info().instances
        for instance in instances:
            instance.component.wsclient.send("pushed")
        json.dumps(websocket_info().to_dict())
        return len(instances)

    with serve(wrap()).connect("/ws/echo") as ws:
        ws.recv(5)
        assert call(push) == 1
        assert ws.recv(5) == "pushed"


def test_it_can_be_asked_while_clients_come_and_go(serve: Serve) -> None:
    server = serve(wrap())
    stop: list[bool] = []

    def ask() -> int:
        count = 0
        while not stop:
            json.dumps(websocket_info().to_dict())
            count += 1
        return count

    asking = gevent.spawn(in_thread, ask)
    for _ in range(30):
        with server.connect("/ws/echo") as ws:
            ws.recv(5)
    stop.append(True)
    assert asking.get(timeout=10) > 0
