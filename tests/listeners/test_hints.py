"""The log says what mends an error that newcomers meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest
from websockets.exceptions import InvalidStatus

from support import wait_until
from support.room import MakeRoom
from wsmiddleware import WebSocketListener
from wsmiddleware.listeners.callbacks import SERVER

MENDS = "WebSocketMiddleware(app.wsgi_app, request_context=app.request_context)"

#: What a view may use, and a callback outside of a context may not.
USES: list[Callable[[], object]] = [
    lambda: flask.session.get("name"),
    lambda: flask.request.args,
    lambda: flask.current_app.name,
    lambda: flask.g.name,
    lambda: flask.url_for("index"),
]


def drive(served: Any) -> None:
    """Has every callback of the room run."""
    try:
        with served.connect() as ws:
            ws.send("text")
            ws.send(b"binary")
            ws.ping().wait(5)
    except InvalidStatus:
        pass
    served.wait_until_settled()


def raising(name: str, use: Callable[[], object]) -> Any:
    def callback(*args: Any) -> Any:
        use()
        return True

    return classmethod(callback) if SERVER[name].is_of_class else callback


@pytest.mark.parametrize("name", SERVER)
@pytest.mark.parametrize("use", USES)
def test_what_is_outside_of_a_context_is_told_with_what_mends_it(
    name: str, use: Callable[[], object], room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    body: dict[str, Any] = {name: raising(name, use)}
    if name == "on_error":
        body["on_open"] = raising("on_open", lambda: 1 / 0)
    served = room(type("Test", (WebSocketListener,), body))
    drive(served)
    mends = "with app.app_context():" if name in ("on_first_open", "on_last_close") else MENDS
    wait_until(lambda: mends in caplog.text)


def test_hint_is_there_where_on_error_takes_the_error(
    room: MakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> Any:
            try:
                return flask.session["name"]
            except RuntimeError as exc:
                raise LookupError(message) from exc

        def on_error(self, wsclient: Any, exception: BaseException) -> str:
            return type(exception).__name__

    with room(Test).connect() as ws:
        ws.send("text")
        assert ws.recv(5) == "LookupError"
    assert caplog.text.count(MENDS) == 1
    assert "Traceback" not in caplog.text


def test_other_errors_have_no_hint(room: MakeRoom, caplog: pytest.LogCaptureFixture) -> None:
    class Test(WebSocketListener):
        def on_open(self, wsclient: Any) -> None:
            raise RuntimeError("the disk is full")

    drive(room(Test))
    assert "the disk is full" in caplog.text
    assert "request_context" not in caplog.text
