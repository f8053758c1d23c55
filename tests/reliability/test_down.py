"""Going down in the middle of traffic, in every way there is: specification, section 10.

Every message that `send` took for a client that was reading arrives, every client is told with the
code of the occasion, every hook runs, the process ends within its grace period and complains of
nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from support import Process, wait_until, websocket_request
from support.apps import wrap
from support.figures import longer, record
from support.servers import serve_by, write_app
from support.swarm import Visitor, swarm
from wsmiddleware import CloseCode

APP = """
    import os
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    app = WebSocketMiddleware(page, config=False)
"""

#: Each client is sent numbers until it closes; what was accepted for it is written down at its end.
TRAFFIC = """
    import os, gevent
    from wsmiddleware import ConnectionClosed

    def note(line):
        fd = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{line}\\n".encode())
        os.close(fd)

    class Traffic(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients):
            note("on_first_open")
            number = 0
            while wsclients.size():
                wsclients.broadcast(f"b {number}")
                number += 1
                gevent.sleep(0.2)

        def on_open(self, wsclient):
            self.accepted = 0
            return f"id {wsclient.id}"

        def on_open_async(self, wsclient):
            try:
                while True:
                    wsclient.send(f"n {self.accepted}".ljust(200))
                    self.accepted += 1
                    gevent.sleep(0.1)
            except ConnectionClosed:
                pass

        def on_message(self, wsclient, message):
            return f"echo {message}"

        def on_close(self, wsclient, reason_phrase):
            note(f"accepted {wsclient.id} {self.accepted}")
            note(f"on_close {wsclient.id} {wsclient.close_code}")

        @classmethod
        def on_last_close(cls):
            note("on_last_close")
"""

Trigger = Callable[[Process, Path], None]


def by(number: signal.Signals) -> Trigger:
    return lambda process, folder: process.signal(number)


def by_a_change(process: Process, folder: Path) -> None:
    write_app(folder, APP + "\n    # changed\n")


def by_requests(process: Process, folder: Path) -> None:
    for _ in range(20):
        process.server.get("/")


#: Way to serve, further options, what makes it end, the code, and whether the process itself ends.
OCCASIONS: dict[str, tuple[str, list[str], Trigger, int, bool]] = {
    "run, SIGTERM": ("run", [], by(signal.SIGTERM), 1001, True),
    "run, Ctrl-C": ("run", [], by(signal.SIGINT), 1001, True),
    "run --reload, a change": ("run", ["--reload"], by_a_change, 1012, False),
    "worker, SIGTERM": ("worker", [], by(signal.SIGTERM), 1001, True),
    "worker, SIGHUP": ("worker", [], by(signal.SIGHUP), 1012, False),
    "worker, max_requests": (
        "worker",
        ["--max-requests", "{count}"],
        by_requests,
        1012,
        False,
    ),
}
#: Seconds: the grace period, and the second with which gunicorn's worker looks at its state.
GRACE = 5.0


@pytest.mark.parametrize("occasion", OCCASIONS)
def test_going_down_in_traffic(tmp_path: Path, occasion: str) -> None:
    way, options, trigger, code, ends = OCCASIONS[occasion]
    count = longer(100, 500)
    options = [option.format(count=count + 10) for option in options]
    folder = write_app(tmp_path, APP, traffic=TRAFFIC)
    with serve_by(way, folder, options) as process:
        with swarm(process.server, "/ws/traffic", count) as visitors:
            wait_until(lambda: all(len(each.messages) > 10 for each in visitors), timeout=30)
            talking = gevent.spawn(talk, visitors)
            started = time.monotonic()
            trigger(process, folder)
            gevent.joinall([each.greenlet for each in visitors], timeout=30)
            seconds = time.monotonic() - started
            talking.kill()
            assert {each.code for each in visitors} == {code}
            if ends:
                assert process.wait() == 0
                seconds = time.monotonic() - started
            else:
                wait_until(lambda: process.server.get("/").status == 200)
        wait_until(lambda: "on_last_close" in notes(folder), lambda: process.output)
        accepted = {line[1]: int(line[2]) for line in notes(folder, "accepted")}
        closes = notes(folder, "on_close")
        # The reloader and gunicorn's worker look once a second.
        allowed = GRACE + (0 if way == "run" and not options else 2)
        total = sum(check(each, accepted) for each in visitors)
        record(
            f"{occasion}, {count} clients in traffic",
            bound=f"every accepted message arrives, {code}, hooks run, ≤ {allowed:g} s",
            measured=f"{total:,} messages, all arrived; over after {seconds:.1f} s",
        )
        assert len(closes) == count
        assert {line[2] for line in closes} == {str(code)}
        assert notes(folder).count("on_first_open") == notes(folder).count("on_last_close") == 1
        assert seconds <= allowed
        assert "Traceback" not in process.output, process.output
        assert "Error" not in process.output, process.output


def talk(visitors: list[Visitor]) -> None:
    """What clients say while the server goes down."""
    while True:
        for visitor in visitors:
            visitor.send("hello")
        gevent.sleep(0.05)


def notes(folder: Path, kind: str = "") -> list[Any]:
    """What the listener wrote down; split where one kind of line is asked for."""
    path = folder / "notes"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.split() for line in lines if line.split()[0] == kind] if kind else lines


def check(visitor: Visitor, accepted: dict[str, int]) -> int:
    """Each stream has come whole and in order; gives how many messages were accepted."""
    words = [message.split() for message in visitor.messages]
    (name,) = [word[1] for word in words if word[0] == "id"]
    numbers = [int(word[1]) for word in words if word[0] == "n"]
    assert numbers == list(range(accepted[name]))
    broadcasts = [int(word[1]) for word in words if word[0] == "b"]
    assert broadcasts == list(range(broadcasts[0], broadcasts[0] + len(broadcasts)))
    return len(numbers)


def test_quick_end_tells_five_hundred_clients(tmp_path: Path) -> None:
    folder = write_app(tmp_path, APP, traffic=TRAFFIC)
    count = longer(100, 500)
    with (
        serve_by("worker", folder) as process,
        swarm(process.server, "/ws/traffic", count) as visitors,
    ):
        started = time.monotonic()
        process.signal(signal.SIGQUIT)
        assert process.wait() == 0
        assert time.monotonic() - started < 4
        gevent.joinall([each.greenlet for each in visitors], timeout=10)
        assert {each.code for each in visitors} == {1001}


@pytest.mark.parametrize(
    ("way", "number", "allowed"),
    [
        ("run", signal.SIGTERM, GRACE),
        ("worker", signal.SIGTERM, GRACE + 1),
        ("worker", signal.SIGINT, 3),
    ],
)
def test_peers_that_do_not_answer_cost_no_hook(
    tmp_path: Path, way: str, number: signal.Signals, allowed: float
) -> None:
    folder = write_app(tmp_path, APP, traffic=TRAFFIC)
    with serve_by(way, folder) as process, ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(process.server.socket())
            sock.sendall(websocket_request("/ws/traffic"))
            assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
        started = time.monotonic()
        process.signal(number)
        assert process.wait() == 0
        assert time.monotonic() - started < allowed
    assert [line[2] for line in notes(folder, "on_close")] == ["1006"] * 20
    assert notes(folder).count("on_last_close") == 1


# -- in batches -----------------------------------------------------------------------------------


class Closing:
    """A member whose connection notes when it was closed, by a clock that only waiting moves."""

    now = 0.0

    def __init__(self, times: list[float]) -> None:
        self.connection = self
        self._times = times

    @classmethod
    def wait(cls, seconds: float) -> None:
        cls.now += seconds

    def close(self, code: int, reason: str) -> None:
        self._times.append(self.now)

    def abort(self) -> None: ...


@pytest.mark.parametrize(
    ("count", "grace", "least", "most"), [(50, 5, 0, 0.5), (10_000, 5, 2, 4), (10_000, 1, 0.4, 0.9)]
)
def test_many_clients_are_closed_in_batches(
    monkeypatch: pytest.MonkeyPatch, count: int, grace: float, least: float, most: float
) -> None:
    registry = wrap().registry
    times: list[float] = []
    members = [Closing(times) for _ in range(count)]
    monkeypatch.setattr(registry, "members", lambda: iter(members))
    monkeypatch.setattr(type(registry), "size", count)
    monkeypatch.setattr(Closing, "now", 0.0)
    monkeypatch.setattr(gevent, "sleep", Closing.wait)
    registry.drain(CloseCode.GOING_AWAY, "", grace)
    assert len(times) == count
    spread = times[-1] - times[0]
    record(
        f"{count:,} clients closed in batches, {grace} s of grace",
        bound=f"over {least} to {most} s, ≤ 5 % of them in any 50 ms where there is the time",
        measured=f"over {spread:.2f} s",
    )
    assert least <= spread <= most
    if grace == 5:
        window = max(sum(start <= at < start + 0.05 for at in times) for start in times[::100])
        assert window <= max(count // 20, 100)
