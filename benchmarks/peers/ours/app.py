"""Our application: a Flask app with the middleware at its defaults, and views that measure."""

from __future__ import annotations

import os
import time
from typing import Any

import gevent
from flask import Flask

from wsmiddleware import WebSocketMiddleware, websocket_info

app = Flask(__name__)
# No websocket.json beside it: what is measured are the defaults.
app.wsgi_app = WebSocketMiddleware(  # type: ignore[method-assign]
    app.wsgi_app,
    config=False,
    request_context=app.request_context if os.environ.get("BENCH_CONTEXT") else None,
    listeners=os.environ.get("BENCH_LISTENERS")
    or os.path.join(os.path.dirname(__file__), "websockets"),
)


class Turns:
    """How long the loop is held up: the time between two looks at the sockets."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.perf_counter()
        loop = gevent.get_hub().loop
        # The first and the last of a turn: gevent runs its callbacks, slices of broadcasts among
        # them, in a watcher of the kind of the second one.
        self._watchers = [loop.check(priority=2), loop.prepare(priority=-2)]
        self._watchers[0].start(self._begin)
        self._watchers[1].start(self._end)

    def _begin(self) -> None:
        self._began = time.perf_counter()

    def _end(self) -> None:
        self.longest = max(self.longest, time.perf_counter() - self._began)

    def stop(self) -> float:
        """The longest turn in seconds."""
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        return self.longest


turns: list[Turns] = []


@app.get("/turns/start")
def start_turns() -> str:
    turns.append(Turns())
    return ""


@app.get("/turns/stop")
def stop_turns() -> dict[str, float]:
    return {"longest_ms": turns.pop().stop() * 1e3}


@app.get("/info")
def info() -> dict[str, Any]:
    """What a snapshot of every connection costs."""
    start = time.perf_counter()
    count = len(websocket_info().instances)
    return {"count": count, "ms": (time.perf_counter() - start) * 1e3}


@app.get("/push")
def push() -> dict[str, Any]:
    """The push of the README: a view that sends to each connection that it picks."""
    start = time.perf_counter()
    count = 0
    for instance in websocket_info().instances:
        if instance.component.channel == "echo":
            instance.component.wsclient.send("x" * 128)
            count += 1
    return {"count": count, "ms": (time.perf_counter() - start) * 1e3}
