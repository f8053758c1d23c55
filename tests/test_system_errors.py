"""Whatever user code of a request raises is a 500 and a traceback, and cuts nobody else off."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import wait_until
from support.servers import OURS, read_all, serve_by, write_app

pytestmark = pytest.mark.once

APP = """
    import gevent
    from greenlet import GreenletExit
    from wsmiddleware import WebSocketMiddleware

    class Own(BaseException):
        pass

    KINDS = {
        kind.__name__: kind
        for kind in (
            ValueError, SystemExit, KeyboardInterrupt, SystemError,
            gevent.Timeout, Own, GreenletExit,
        )
    }

    class Body:
        def __init__(self, place, kind):
            self.place, self.kind, self.left = place, kind, 2

        def __iter__(self):
            return self

        def __next__(self):
            if self.place == ("iter", self.left):
                raise self.kind(place_of(self.place))
            if not self.left:
                raise StopIteration
            self.left -= 1
            return b"x" * 10

        def close(self):
            if self.place == ("close", 0):
                raise self.kind(place_of(self.place))

    def place_of(place):
        return f"raised at {place[0]} {place[1]}"

    def page(environ, start_response):
        _, name, where, number = environ["PATH_INFO"].split("/")
        place, kind = (where, int(number)), KINDS.get(name)
        if where == "call":
            raise kind(place_of(place))
        start_response("200 OK", [("Content-Length", "20")])
        if where == "behind":
            raise kind(place_of(place))
        return Body(place, kind)

    def static(app):
        def middleware(environ, start_response):
            if "outer" in environ["PATH_INFO"]:
                raise KINDS[environ["PATH_INFO"].split("/")[1]](place_of(("outer", 0)))
            return app(environ, start_response)
        return middleware

    app = static(WebSocketMiddleware(page, config=False))
"""

LISTENER = """
    import app

    class Echo(WebSocketListener):
        @classmethod
        def on_handshake(cls, request):
            if "kind" in request.args:
                raise app.KINDS[request.args["kind"]]("raised at handshake 0")
            return True

        def on_message(self, wsclient, message):
            return message
"""

KINDS = ["ValueError", "SystemExit", "KeyboardInterrupt", "SystemError", "Timeout", "Own"]
#: Where it is raised, and whether something of the response has been sent by then.
PLACES = {
    "outer/0": False,
    "call/0": False,
    "behind/0": False,
    "iter/2": False,
    "iter/1": True,
    "iter/0": True,
    "close/0": True,
}


@pytest.mark.parametrize("way", [way for way in OURS if way in ("run", "worker")])
def test_what_a_request_raises_is_its_own(tmp_path: Path, way: str) -> None:
    folder = write_app(tmp_path, APP, echo=LISTENER)
    with serve_by(way, folder) as process, process.server.connect("/ws/echo") as stayer:
        for kind in [*KINDS, "GreenletExit"]:
            for place, is_sent in PLACES.items():
                with process.server.socket() as sock:
                    sock.sendall(f"GET /{kind}/{place} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    status = read_all(sock)[:12]
                    assert status == (b"HTTP/1.1 200" if is_sent else b"HTTP/1.1 500"), (
                        kind,
                        place,
                    )
            assert process.server.get(f"/ws/echo?kind={kind}").status == 426
            stayer.send("still here")
            assert stayer.recv(timeout=10) == "still here"
        # A time-out's text is of its own making.
        told = [(kind, place) for kind in KINDS if kind != "Timeout" for place in PLACES]
        wanted = {f"{kind}: raised at {place.replace('/', ' ')}" for kind, place in told}
        wait_until(
            lambda: all(text in process.output for text in wanted),
            lambda: f"not told: {[text for text in wanted if text not in process.output]}",
        )
        assert process.output.count("Booting worker") <= 1
