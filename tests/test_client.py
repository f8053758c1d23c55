"""`create_websocket_client` against our server, two independent ones, and bare sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import monkey
from websockets.sync.server import ServerConnection

from support import PATIENCE, Server, wait_until
from support.clients import (
    Recorder,
    accept,
    aiohttp_server,
    echo,
    raw_server,
    serve_echo,
    websockets_server,
)
from support.servers import environment
from wsmiddleware import (
    CloseCode,
    ConnectionClosed,
    create_websocket_client,
)

CLOSE_1000 = b"\x88\x02\x03\xe8"
SIZES = [0, 1, 125, 126, 65535, 65536, 2**20, 2**24]


@pytest.fixture
def ours(serve: Callable[..., Server]) -> str:
    return serve_echo(serve)


@pytest.fixture(params=["ours", "websockets", "websockets-z", "aiohttp", "aiohttp-z"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An echo server of each kind."""
    name, _, compressed = request.param.partition("-")
    if name == "ours":
        yield request.getfixturevalue("ours")
    elif name == "websockets":
        option = "deflate" if compressed else None
        with websockets_server(echo, max_size=None, compression=option) as url:
            yield url
    else:
        with aiohttp_server(tmp_path) as process:
            yield process.server.ws_url("/" if compressed else "/?z=0")


# -- against every server -------------------------------------------------------------------------


def test_messages_of_every_size_come_back(peer: str) -> None:
    listener = Recorder()
    with create_websocket_client(peer, listener, max_message_size=2**24) as ws:
        for size in SIZES:
            ws.send_text("é" * (size // 2) + "x" * (size % 2))
            ws.send_binary(bytes(range(256)) * (size // 256) + bytes(size % 256))
        listener.wait_for("binary", times=len(SIZES))
    sizes = [(name, len(data.encode() if name == "text" else data))
             for name, data in listener.events[1:-1]]  # fmt: skip
    assert sizes == [(name, size) for size in SIZES for name in ("text", "binary")]
    assert listener.names()[0] == "open"
    assert listener.names()[-1] == "close"


def test_pings_go_both_ways(peer: str) -> None:
    listener = Recorder()
    with create_websocket_client(peer, listener) as ws:
        ws.send_ping(b"data")
        listener.wait_for("pong")
        ws.send_pong()
        ws.send_text("ping" if "8" not in peer else "still there")
        wait_until(lambda: {"ping", "text"} & set(listener.names()))
    assert "error" not in str(listener.names())


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 3000, 4999])
def test_client_closes_with_a_code(ours: str, code: int) -> None:
    listener = Recorder()
    ws = create_websocket_client(ours, listener)
    ws.disconnect(code, "bye")
    assert not ws.is_open()
    assert (ws.close_code, listener.names()) == (code, ["open", "close"])


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 4000])
def test_server_closes_with_a_code(code: int) -> None:
    listener = Recorder()
    with websockets_server(lambda ws: ws.close(code, "as you like")) as url:
        ws = create_websocket_client(url, listener)
        assert ws.wait(PATIENCE)
    assert (ws.close_code, ws.close_reason) == (code, "as you like")
    assert listener.names() == ["open", "close"]
    assert not ws.is_open()


def test_server_may_close_without_a_code() -> None:
    def close(sock: socket.socket) -> None:
        accept(sock, b"\x88\x00")
        assert sock.recv(100)[:2] == b"\x88\x80"

    listener = Recorder()
    with raw_server(close) as url:
        ws = create_websocket_client(url, listener)
        assert ws.wait(PATIENCE)
    assert (ws.close_code, listener.names()) == (1005, ["open", "close"])


def test_fragments_make_one_message() -> None:
    def send(ws: ServerConnection) -> None:
        ws.send(["a", "b", "c"])
        ws.recv()

    listener = Recorder()
    with websockets_server(send) as url, create_websocket_client(url, listener) as ws:
        listener.wait_for("text", "abc")
        ws.send_text("done")


def test_compression_is_offered_and_may_be_turned_off(ours: str) -> None:
    for is_on in (True, False):
        with create_websocket_client(ours, object(), compression=is_on) as ws:
            assert ws.response is not None
            assert bool(ws.response.get("Sec-WebSocket-Extensions")) is is_on


def test_frames_right_behind_the_answer_are_not_lost() -> None:
    listener = Recorder()
    with raw_server(lambda sock: accept(sock, b"\x81\x02hi" + CLOSE_1000)) as url:
        assert create_websocket_client(url, listener).wait(PATIENCE)
    assert listener.names() == ["open", "text", "close"]


# -- sending and closing --------------------------------------------------------------------------


def test_send_takes_its_own_type_only(ours: str) -> None:
    with create_websocket_client(ours, object()) as ws:
        for call in (lambda: ws.send_text(b"x"), lambda: ws.send_binary("x")):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                call()
        with pytest.raises(ValueError, match="126 bytes"):
            ws.send_ping(bytes(126))
        with pytest.raises(ValueError, match="surrogate"):
            ws.send_text("\ud800")
        with pytest.raises(ValueError, match="1005"):
            ws.disconnect(1005)
        with pytest.raises(ValueError, match="123"):
            ws.disconnect(1000, "x" * 124)
        assert ws.is_open()


def test_after_the_end_sends_raise_and_disconnect_does_nothing(ours: str) -> None:
    listener = Recorder()
    ws = create_websocket_client(ours, listener)
    ws.disconnect(CloseCode.GOING_AWAY)
    for call in (ws.send_ping, ws.send_pong, lambda: ws.send_text("x")):
        with pytest.raises(ConnectionClosed) as caught:
            call()
        assert caught.value.code == 1001
    ws.disconnect()
    assert listener.names() == ["open", "close"]


def test_what_was_sent_arrives_before_the_close(ours: str) -> None:
    received: list[bytes] = []

    def keep(ws: ServerConnection) -> None:
        received.extend(message for message in ws if isinstance(message, bytes))

    with websockets_server(keep, max_size=None) as url:
        ws = create_websocket_client(url, object())
        for _ in range(8):
            ws.send_binary(bytes(2**20))
        ws.disconnect()
    assert [len(data) for data in received] == [2**20] * 8


def test_server_that_does_not_answer_the_close_is_left() -> None:
    def ignore(sock: socket.socket) -> None:
        accept(sock)
        while sock.recv(1000):
            pass

    listener = Recorder()
    with raw_server(ignore) as url:
        ws = create_websocket_client(url, listener, close_timeout=0.1)
        ws.disconnect()
    assert (ws.close_code, listener.names()) == (1006, ["open", "close"])


def test_callback_may_disconnect_and_wait_for_nobody(ours: str) -> None:
    class Leaving(Recorder):
        def on_message(self, message: str) -> None:
            super().on_message(message)
            ws.disconnect(4000, "enough")

    listener = Leaving()
    ws = create_websocket_client(ours, listener)
    ws.send_text("x")
    ws.send_text("y")
    assert ws.wait(PATIENCE)
    assert (ws.close_code, listener.names()) == (4000, ["open", "text", "close"])


def test_callbacks_run_one_at_a_time_and_in_order(ours: str) -> None:
    class Slow(Recorder):
        is_busy = False

        def on_message(self, message: str) -> None:
            assert not self.is_busy
            self.is_busy = True
            gevent.sleep(0.001)
            self.is_busy = False
            super().on_message(message)

    listener = Slow()
    with create_websocket_client(ours, listener) as ws:
        for index in range(50):
            ws.send_text(str(index))
        listener.wait_for("text", "49")
    texts = [event[1] for event in listener.events if event[0] == "text"]
    assert texts == [str(index) for index in range(50)]
    assert "error callback" not in listener.names()


def test_greenlets_and_native_threads_may_send(ours: str) -> None:
    pool = gevent.get_hub().threadpool  # of native threads, in a patched process too
    listener = Recorder()
    with create_websocket_client(ours, listener, send_queue_size=2**16) as ws:

        def send(name: str) -> None:
            for index in range(20):
                ws.send_text(f"{name} {index} " + "x" * 10_000)
            ws.send_ping()

        jobs = [gevent.spawn(send, f"greenlet{number}") for number in range(3)]
        jobs += [pool.spawn(send, f"thread{number}") for number in range(3)]
        listener.wait_for("text", times=120)
        for job in jobs:
            job.get(timeout=PATIENCE)
    texts = [event[1].split()[:2] for event in listener.events if event[0] == "text"]
    for sender in {name for name, _ in texts}:
        assert [int(index) for name, index in texts if name == sender] == list(range(20))


def test_native_thread_may_disconnect_and_then_not_send(ours: str) -> None:
    listener = Recorder()
    ws = create_websocket_client(ours, listener)

    def work() -> None:
        ws.send_text("last")
        ws.disconnect(4001)
        while ws.is_open():
            monkey.get_original("time", "sleep")(0.001)
        ws.send_text("too late")

    job = gevent.get_hub().threadpool.spawn(work)
    assert ws.wait(PATIENCE)
    with pytest.raises(ConnectionClosed):
        job.get(timeout=PATIENCE)
    assert ws.close_code == 4001


def test_client_runs_in_a_native_thread(ours: str) -> None:
    pool = gevent.get_hub().threadpool

    def talk() -> list[str]:
        listener = Recorder()
        ws = create_websocket_client(ours, listener)
        ws.send_text("x")
        listener.wait_for("text", "x")
        ws.disconnect()
        return listener.names()

    assert pool.apply(talk) == ["open", "text", "close"]


def test_script_needs_no_monkey_patching(ours: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, threading
            from gevent import monkey
            from wsmiddleware import create_websocket_client

            class Listener:
                def on_message(self, message):
                    print("got", message, flush=True)
                    if message == "thread":
                        ws.disconnect()
                def on_close(self):
                    print("closed")

            ws = create_websocket_client(sys.argv[1], Listener())
            ws.send_text("main")
            thread = threading.Thread(target=ws.send_text, args=["thread"])
            thread.start()
            assert ws.wait(10)
            thread.join()
            assert not monkey.is_module_patched("socket")
            """
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", script, ours],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("got main\ngot thread\nclosed\n", "")


def test_repr_and_url_hide_what_may_be_secret(ours: str) -> None:
    with create_websocket_client(ours + "?token=secret", object()) as ws:
        assert "secret" not in repr(ws) + ws.url
        assert "open" in repr(ws)
