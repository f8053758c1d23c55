"""Byte streams that never block."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from support import wait_until
from support.servers import Tls
from wsmiddleware.net.transport import TcpTransport, TlsTransport, Transport, wrap_socket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname(), timeout=5)
        peer, _ = listening.accept()
    peer.settimeout(5)
    yield ours, peer
    ours.close()
    peer.close()


@pytest.fixture(params=["tcp", "tls"])
def ends(
    request: pytest.FixtureRequest, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> Iterator[tuple[Transport, socket.socket]]:
    ours, peer = pair
    if request.param == "tls":
        tls = Tls(tmp_path)
        shaking = gevent.spawn(tls.client.wrap_socket, peer, server_hostname="127.0.0.1")
        ours = tls.server.wrap_socket(ours, server_side=True)
        peer = shaking.get(timeout=5)
    transport = wrap_socket(ours, detach=True)
    yield transport, peer
    transport.close()
    peer.close()


def receive(transport: Transport) -> bytes:
    data: list[bytes] = []

    def is_there() -> bool:
        try:
            data.append(transport.recv(65536))
        except BlockingIOError:
            return False
        return True

    wait_until(is_there)
    return data[0]


def test_recv_of_nothing_would_block(ends: tuple[Transport, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        ends[0].recv(65536)


def test_bytes_go_both_ways(ends: tuple[Transport, socket.socket]) -> None:
    transport, peer = ends
    assert transport.send(b"ping") == 4
    assert peer.recv(100) == b"ping"
    peer.sendall(b"pong")
    assert receive(transport) == b"pong"


def test_end_of_stream_is_empty(ends: tuple[Transport, socket.socket]) -> None:
    transport, peer = ends
    peer.shutdown(socket.SHUT_WR)
    assert receive(transport) == b""


def test_send_takes_what_fits_and_goes_on_there(ends: tuple[Transport, socket.socket]) -> None:
    transport, peer = ends
    data = bytes(range(256)) * 40_000
    view, got = memoryview(data), bytearray()
    steps = 0
    while view or len(got) < len(data):
        try:
            taken = transport.send(view) if view else 0
        except BlockingIOError:
            taken = 0
        view = view[taken:]
        steps += 1
        if len(got) < len(data) - len(view):
            got += peer.recv(200_000)
    assert got == data
    assert steps > 2


def test_shutdown_ends_our_direction_only(ends: tuple[Transport, socket.socket]) -> None:
    transport, peer = ends
    transport.send(b"last")
    transport.shutdown(socket.SHUT_WR)
    assert peer.recv(100) == b"last"
    assert peer.recv(100) == b""
    peer.sendall(b"still read")
    assert receive(transport)  # under TLS it may be ciphertext


def test_small_frames_are_not_delayed(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = wrap_socket(pair[0], detach=True)
    assert isinstance(transport, TcpTransport)
    assert transport.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    transport.close()


def test_detached_socket_is_nobodys_else(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    transport = wrap_socket(ours, detach=True)
    assert ours.fileno() == -1
    ours.close()
    transport.send(b"x")
    assert peer.recv(1) == b"x"
    transport.close()
    assert peer.recv(1) == b""


def test_borrowed_socket_is_closed_by_its_owner(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    transport = wrap_socket(ours, detach=False)
    transport.send(b"x")
    transport.close()
    assert peer.recv(1) == b"x"
    assert peer.recv(1) == b""  # both directions have ended
    assert ours.fileno() != -1


def test_tls_alert_goes_with_the_close(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    tls = Tls(tmp_path)
    shaking = gevent.spawn(
        tls.client.wrap_socket, pair[1], server_hostname="127.0.0.1", suppress_ragged_eofs=False
    )
    transport = wrap_socket(tls.server.wrap_socket(pair[0], server_side=True), detach=True)
    assert isinstance(transport, TlsTransport)
    with shaking.get(timeout=5) as peer:
        assert isinstance(peer, ssl.SSLSocket)
        transport.close()
        assert peer.recv(1) == b""
