"""Both engines against each other, and each against `websockets` as the independent peer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Close as PeerClose
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from wsmiddleware.protocol.deflate import OFFER, Deflate, agree, negotiate
from wsmiddleware.protocol.engine import Close, Engine, Ping, Pong
from wsmiddleware.protocol.frames import Opcode, close_payload
from wsmiddleware.protocol.handshake import accept_key, is_valid_key
from wsmiddleware.protocol.prepared import PreparedMessage

MESSAGES: list[str | bytes] = [
    "",
    "hello",
    "né €",
    b"",
    b"\x00\xff",
    "x" * 125,
    b"y" * 126,
    "né" * 200,
    "1,2,3," * 20_000,
    os.urandom(70_000),
]
COMPRESSION = pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "deflate"])


@COMPRESSION
@pytest.mark.parametrize("is_client", [False, True], ids=["server sends", "client sends"])
def test_engine_receives_what_the_other_engine_sends(is_client: bool, is_compressed: bool) -> None:
    deflate = Deflate(9) if is_compressed else None
    sender = Engine(is_client=is_client, deflate=deflate)
    receiver = Engine(is_client=not is_client, deflate=deflate)
    wire = b"".join(sender.encode(message) for message in MESSAGES)
    assert receiver.receive(wire) == MESSAGES


def test_engines_ping_and_close() -> None:
    client, server = Engine(is_client=True), Engine()
    assert server.receive(client.control(Opcode.PING, b"1")) == [Ping(b"1")]
    assert client.receive(server.control(Opcode.PONG, b"1")) == [Pong(b"1")]
    farewell = client.control(Opcode.CLOSE, close_payload(4001, "bye"))
    assert server.receive(farewell) == [Close(4001, "bye")]


@pytest.mark.parametrize("window_bits", [0, 9, 12, 15])
@pytest.mark.parametrize("message", MESSAGES)
def test_client_receives_prepared_message(message: str | bytes, window_bits: int) -> None:
    client = Engine(is_client=True, deflate=Deflate() if window_bits else None)
    assert client.receive(PreparedMessage(message).wire(window_bits)) == [message]


def open_client(factory: ClientPerMessageDeflateFactory | None) -> tuple[ClientProtocol, Engine]:
    """Let the independent client open a connection to us; give it and our engine."""
    peer = ClientProtocol(
        parse_uri("ws://localhost/ws/test"), extensions=[factory] if factory else None
    )
    request = peer.connect()
    peer.send_request(request)
    peer.data_to_send()
    key = request.headers["Sec-WebSocket-Key"]
    assert is_valid_key(key)
    agreed = negotiate(request.headers.get("Sec-WebSocket-Extensions", ""))
    deflate, response = agreed or (None, "")
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {accept_key(key)}")
    lines += [f"Sec-WebSocket-Extensions: {response}"] if response else []
    peer.receive_data("\r\n".join([*lines, "", ""]).encode())
    assert isinstance(peer.events_received()[0], Response)
    assert peer.state is State.OPEN, peer.handshake_exc
    return peer, Engine(deflate=deflate)


def open_server(factory: ServerPerMessageDeflateFactory | None) -> tuple[ServerProtocol, Engine]:
    """Open a connection to the independent server; give it and our engine."""
    peer = ServerProtocol(extensions=[factory] if factory else None)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    lines = ["GET / HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    lines.append(f"Sec-WebSocket-Extensions: {OFFER}")
    peer.receive_data("\r\n".join([*lines, "", ""]).encode())
    request = peer.events_received()[0]
    assert isinstance(request, Request)
    response = peer.accept(request)
    peer.send_response(response)
    peer.data_to_send()
    assert response.headers["Sec-WebSocket-Accept"] == accept_key(key)
    deflate = agree(response.headers.get("Sec-WebSocket-Extensions", ""))
    return peer, Engine(is_client=True, deflate=deflate)


Link = tuple["ClientProtocol | ServerProtocol", Engine]


@pytest.fixture(params=["client", "small client", "plain client", "server", "plain server"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    link: Link
    if request.param == "client":
        link = open_client(ClientPerMessageDeflateFactory(client_max_window_bits=True))
    elif request.param == "small client":
        link = open_client(ClientPerMessageDeflateFactory(server_max_window_bits=9))
    elif request.param == "server":
        link = open_server(
            ServerPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12)
        )
    else:
        link = open_client(None) if request.param == "plain client" else open_server(None)
    peer, engine = link
    assert (engine.deflate is None) == request.param.startswith("plain")
    assert len(peer.extensions) == (engine.deflate is not None)
    yield link


def frames(peer: ClientProtocol | ServerProtocol) -> list[Frame]:
    return [event for event in peer.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("message", MESSAGES)
def test_peer_receives_what_the_engine_sends(link: Link, message: str | bytes) -> None:
    peer, engine = link
    peer.receive_data(engine.encode(message) * 2)
    received = [bytes(frame.data) for frame in frames(peer)]
    assert received == [message.encode() if isinstance(message, str) else message] * 2


@pytest.mark.parametrize("message", MESSAGES)
def test_engine_receives_what_the_peer_sends(link: Link, message: str | bytes) -> None:
    peer, engine = link
    for _ in range(2):
        if isinstance(message, str):
            peer.send_text(message.encode())
        else:
            peer.send_binary(message)
    assert engine.receive(b"".join(peer.data_to_send())) == [message, message]


def test_engine_receives_fragments_of_the_peer(link: Link) -> None:
    peer, engine = link
    peer.send_text("né €".encode()[:2], fin=False)
    peer.send_ping(b"p")
    peer.send_continuation("né €".encode()[2:] + b"x" * 5000, fin=False)
    peer.send_continuation(b"", fin=True)
    assert engine.receive(b"".join(peer.data_to_send())) == [Ping(b"p"), "né €" + "x" * 5000]


def test_peer_answers_ping_and_close(link: Link) -> None:
    peer, engine = link
    peer.receive_data(engine.control(Opcode.PING, b"1"))
    peer.receive_data(engine.control(Opcode.CLOSE, close_payload(4001, "bye")))
    assert engine.receive(b"".join(peer.data_to_send())) == [Pong(b"1"), Close(4001, "bye")]
    assert (peer.close_rcvd, peer.close_sent) == (PeerClose(4001, "bye"),) * 2


def test_server_compresses_for_the_window_that_the_peer_can_hold() -> None:
    peer, engine = open_client(ClientPerMessageDeflateFactory(server_max_window_bits=9))
    assert engine.deflate == Deflate(9)
    # Repeated from 1,700 bytes back: only a window of more than 9 bits could make use of it.
    part = bytes(range(256)) + os.urandom(1400) + b"z" * 256
    peer.receive_data(engine.encode(part * 3))
    assert [bytes(frame.data) for frame in frames(peer)] == [part * 3]


def test_client_sends_plain_where_the_peer_wants_a_window_that_zlib_lacks() -> None:
    _, engine = open_server(ServerPerMessageDeflateFactory(client_max_window_bits=8))
    assert engine.deflate == Deflate(8)
    assert engine.encode("x" * 1000)[0] == 0x81
