"""A child that is forked and goes on in Python has nothing of its parent's clients.

With the parent's loop it would read what they send, and answer; and what the parent closes would
stay open while the child lives.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path

import pytest

from support import PATIENCE, wait_until
from support.servers import serve_by, write_app
from support.wire import TEXT, close_frame, frame, peer_of

APP = """
import json, os, socket, time
import multiprocessing
import gevent
from wsmiddleware import WebSocketMiddleware, websocket_info

def ports():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family == socket.AF_INET:
                    found.append(sock.getsockname()[1])
        except OSError:
            pass
    return found

def live(names):
    open_clients = [name for name in names if name.is_open()]
    try:
        sent = names[0].send("from the child")
    except Exception as exc:
        sent = type(exc).__name__
    report = {
        "ports": ports(), "instances": len(websocket_info().instances),
        "open": len(open_clients), "sent": sent, "pid": os.getpid(),
    }
    with open("report.tmp", "w") as file:
        json.dump(report, file)
    os.rename("report.tmp", "report.json")
    until = time.monotonic() + 30
    while time.monotonic() < until and not os.path.exists("stop"):
        if not os.path.exists("compute"):
            gevent.sleep(0.02)  # its loop runs
    os._exit(0)

def fork(way):
    names = [each.component.wsclient for each in websocket_info().instances]
    if way == "fork":
        if os.fork() == 0:
            live(names)
    else:
        context = multiprocessing.get_context("fork")
        context.Process(target=live, args=(names,), daemon=True).start()

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/by/"):
        fork(environ["PATH_INFO"][4:])
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

app = WebSocketMiddleware(app, config=False, listeners="websockets")
"""

LISTENER = """
import os
import gevent

class Test(WebSocketListener):
    def on_message(self, wsclient, message):
        if message.startswith("by "):
            from app import fork
            fork(message[3:])
        elif message == "sleep":
            gevent.sleep(0.5)
        elif message == "close":
            wsclient.close(4000)
            return None
        return f"{message} {os.getpid()}"
"""


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
@pytest.mark.parametrize("place", ["callback", "view"])
@pytest.mark.parametrize("server", ["run", "worker"])
def test_forked_child_answers_nobody_and_keeps_nobody_open(
    tmp_path: Path, server: str, place: str, way: str
) -> None:
    folder = write_app(tmp_path, APP, test=LISTENER)
    with serve_by(server, folder) as process:
        there = process.server
        kept = http.client.HTTPConnection(there.host, there.port, timeout=PATIENCE)
        with peer_of(there, "/ws/test") as one, peer_of(there, "/ws/test") as other:
            kept.request("GET", "/")
            parent = kept.getresponse().read().decode()
            other.send(frame(TEXT, "sleep"))
            if place == "view":
                assert there.get(f"/by/{way}").text == parent
            else:
                one.send(frame(TEXT, f"by {way}"))
                assert one.read_text() == f"by {way} {parent}"
            assert other.read_text() == f"sleep {parent}"
            wait_until((folder / "report.json").exists)
            report = json.loads((folder / "report.json").read_text())
            for number in range(50):
                for peer in (one, other):
                    peer.send(frame(TEXT, f"{number}"))
                    assert peer.read_text() == f"{number} {parent}"
                kept.request("GET", "/")
                assert kept.getresponse().read().decode() == parent, process.output
                assert there.get("/").text == parent
            # The child lives; what is closed is closed.
            one.send(frame(TEXT, "close"))
            assert one.read_close() == (4000, "")
            one.send(close_frame(4000))
            one.read_end()
            assert Path(f"/proc/{report.pop('pid')}").exists()
            (folder / "stop").touch()
        kept.close()
    assert "internal error" not in process.output
    assert report == {"ports": [], "instances": 0, "open": 0, "sent": "ConnectionClosed"}
    assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_forked_child_that_computes_ends_by_a_signal(tmp_path: Path, number: int) -> None:
    """As any other process: what goes down at a signal, in turns of the loop, is the server."""
    folder = write_app(tmp_path, APP, test=LISTENER)
    (folder / "compute").touch()
    with serve_by("run", folder) as process, peer_of(process.server, "/ws/test") as peer:
        peer.send(frame(TEXT, "by multiprocessing"))
        parent = peer.read_text().rpartition(" ")[2]
        wait_until((folder / "report.json").exists)
        pid = json.loads((folder / "report.json").read_text())["pid"]
        os.kill(pid, number)
        wait_until(lambda: has_ended(pid))
        peer.send(frame(TEXT, "x"))
        assert peer.read_text() == f"x {parent}"


def has_ended(pid: int) -> bool:
    """Its parent may not have asked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
