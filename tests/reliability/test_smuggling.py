"""Nothing that follows a handshake is read as what it is not: neither as HTTP nor as frames.

What follows a refused one is held in ``tests/test_middleware.py`` and ``tests/test_handler.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import Server, wait_until, websocket_request
from support.apps import App, wrap
from support.servers import read_all
from support.wire import TEXT, Peer, frame, peer_of

Serve = Callable[..., Server]

PLAIN = b"GET /admin HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_request_behind_an_accepted_handshake_is_a_broken_frame(serve: Serve) -> None:
    app = App()
    with peer_of(serve(wrap(app)), "/ws/echo", behind=PLAIN) as peer:
        assert peer.read_text() == "echo []"
        assert peer.read_close()[0] == 1002
    assert not app.environs


def test_request_in_the_payload_of_a_frame_is_a_message(serve: Serve) -> None:
    app = App()
    key = bytes(4)
    wire = bytes((0x82, 0x80 | len(PLAIN))) + key + PLAIN
    with peer_of(serve(wrap(app)), "/ws/echo", behind=wire) as peer:
        peer.read_text()
        assert peer.read()[1] == PLAIN
    assert not app.environs


def test_pipelined_handshake_behind_an_accepted_one_opens_nothing(serve: Serve) -> None:
    middleware = wrap()
    behind = websocket_request("/ws/echo")
    with peer_of(serve(middleware), "/ws/echo", behind=behind) as peer:
        peer.read_text()
        assert peer.read_close()[0] == 1002
        assert middleware.metrics.opened["echo"] == 1


def test_plain_request_before_a_handshake_is_answered_first(serve: Serve) -> None:
    app = App()
    with serve(wrap(app)).socket() as sock:
        sock.sendall(PLAIN + websocket_request("/ws/echo") + frame(TEXT, "hello"))
        data = b""
        while b"hello" not in data:
            data += sock.recv(65536)
        first, second, frames = data.split(b"\r\n\r\n", 2)
        assert first.startswith(b"HTTP/1.1 200 ")
        body, _, head = second.partition(b"HTTP/1.1 101 ")
        assert body == b"app /admin" and head
        assert frames == b"\x81\x07echo []\x81\x05hello"


SMUGGLED = {
    "length of a body": {"content_length": str(len(PLAIN))},
    "two lengths": {"content_length": f"0, {len(PLAIN)}"},
    "signed length": {"content_length": "+0"},
    "length that is none": {"content_length": "0x2a"},
    "chunked": {"transfer_encoding": "chunked"},
    "chunked, hidden": {"transfer_encoding": "xchunked"},
    "both": {"transfer_encoding": "chunked", "content_length": "5"},
    "another upgrade": {"upgrade": "h2c"},
    "HTTP/1.0": {"version": "1.0"},
    "HTTP/2.0": {"version": "2.0", "sec_websocket_version": "8"},
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_doubtful_handshake_ends_the_connection_with_all_that_follows(
    case: str, serve: Serve
) -> None:
    app = App()
    middleware = wrap(app)
    changes: dict[str, str] = SMUGGLED[case]
    with serve(middleware).socket() as sock:
        sock.sendall(websocket_request("/ws/echo", **changes) + PLAIN + frame(TEXT, "hello"))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not app.environs and not middleware.metrics.opened


def test_frames_in_a_body_are_no_frames(serve: Serve) -> None:
    middleware = wrap()
    frames = frame(TEXT, "hello")
    with serve(middleware).socket() as sock:
        request = websocket_request("/ws/echo", content_length=str(len(frames)))
        sock.sendall(request + frames)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert not middleware.metrics.opened


@pytest.mark.parametrize("step", [1, 7])
def test_handshake_in_pieces_is_one(serve: Serve, step: int) -> None:
    wire = websocket_request("/ws/echo") + frame(TEXT, "hello")
    with serve(wrap()).socket() as sock:
        for start in range(0, len(wire), step):
            sock.sendall(wire[start : start + step])
        data = b""
        while not data.endswith(b"hello"):
            data += sock.recv(65536)
    assert data.startswith(b"HTTP/1.1 101 ")


def test_reset_behind_a_request_to_smuggle_leaves_nothing(serve: Serve) -> None:
    middleware = wrap()
    server = serve(middleware)
    with server.socket() as sock:
        sock.sendall(websocket_request("/ws/echo", content_length="100000") + PLAIN)
        Peer(sock).reset()
    wait_until(lambda: server.get("/").status == 200)
    assert middleware.registry.unfinished == 0
