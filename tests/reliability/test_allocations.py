"""One allocation that fails, wherever it is: one connection may suffer, the others go on."""

from __future__ import annotations

import http.client
import importlib.util
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import gevent
import pytest

from support import Process, wait_until
from support.servers import serve_by, write_app
from support.wire import TEXT, Peer, close_frame, frame, peer_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="this Python was built without _testcapi"
)

APP = """
import _testcapi
import gevent
from wsmiddleware import WebSocketMiddleware

timers = [gevent.get_hub().loop.timer(0)]

def app(environ, start_response):
    hub = gevent.get_hub()
    if environ["PATH_INFO"] == "/off":
        timers[-1].stop()
        _testcapi.remove_mem_hooks()
    elif environ["PATH_INFO"].startswith("/on/"):
        at = int(environ["PATH_INFO"][4:])
        timers[:] = [hub.loop.timer(0.005)]  # when this request has been answered
        timers[0].start(_testcapi.set_nomemory, at, at + 1)
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]

app = WebSocketMiddleware(app, config=False, listeners="websockets", close_timeout=0.5)
"""

LISTENER = """
class Test(WebSocketListener):
    def on_message(self, wsclient, message):
        if message == "broadcast":
            wsclient.broadcast(message)
            return None
        if message == "close":
            wsclient.close(4000)
            return None
        return message
"""

WHAT = ("echo", "broadcast", "close", "connect", "leave")


def do(process: Process, what: str, victim: Peer, stack: ExitStack) -> None:
    if what == "connect":
        stack.enter_context(peer_of(process.server, "/ws/test"))
    elif what == "leave":
        victim.send(close_frame(1000))
        victim.read()
    else:
        victim.send(frame(TEXT, what))
        victim.read()


@pytest.mark.parametrize("what", WHAT)
def test_failed_allocation_stops_nobody_else(tmp_path: Path, what: str) -> None:
    # One that is accepted in vain is waited for for long.
    places = iter(range(1, 100, 9 if what == "connect" else 2))
    folder = write_app(tmp_path, APP, test=LISTENER)
    at = 0
    while at < 91:
        with serve_by("run", folder) as process, peer_of(process.server, "/ws/test") as witness:
            for at in places:
                with ExitStack() as stack, suppress(OSError, AssertionError):
                    victim = stack.enter_context(peer_of(process.server, "/ws/test"))
                    victim.sock.settimeout(0.5)
                    process.server.get(f"/on/{at}")
                    gevent.sleep(0.01)  # it has been answered, and that is under way
                    do(process, what, victim, stack)
                if not is_off(process):
                    break
                # Whatever it was that failed, the others are served.
                for peer in (witness, stack.enter_context(peer_of(process.server, "/ws/test"))):
                    peer.send(frame(TEXT, f"{at}"))
                    while peer.read_text() != f"{at}":
                        pass
                stack.close()


def is_off(process: Process) -> bool:
    """True once no allocation fails any more; False where greenlet has ended the process."""

    def answers() -> bool:
        if process.popen.poll() is not None:
            return True
        # One that was accepted in vain is never answered: the next one is.
        asking = http.client.HTTPConnection("127.0.0.1", process.server.port, timeout=0.5)
        with closing(asking), suppress(OSError, http.client.HTTPException):
            asking.request("GET", "/off")
            return asking.getresponse().status == 200
        return False

    wait_until(answers, lambda: process.output[-2500:])
    if process.popen.poll() is None:
        return True
    # It cannot switch without memory, and says so; nobody can help that.
    wait_until(lambda: "slp_switch" in process.output, lambda: process.output)
    return False
