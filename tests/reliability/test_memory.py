"""What hostile peers can make the server hold: their limits times their number, and no more.

Each bound is far below what the same peers would cost without the limit that is tried.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import gevent
import pytest

from support import Process, wait_until, websocket_request
from support.figures import record
from support.procfs import Memory, cpu_seconds, descriptors
from support.wire import BINARY, CLOSE, PING, TEXT, Peer, close_frame, frame, peer_of

ServeApp = Callable[..., Process]

MIB = 2**20
KEY = bytes(4)


def head(opcode: int, size: int) -> bytes:
    """The header of a masked frame that declares `size`; the key is zero."""
    return bytes((opcode, 0xFF)) + struct.pack("!Q", size) + KEY


def compressed(data: bytes, *, level: int = 9) -> bytes:
    """A message as permessage-deflate has it, without its last four bytes."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


@contextmanager
def peers(process: Process, count: int, **options: object) -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(peer_of(process.server, **options))  # type: ignore[arg-type]
            for _ in range(count)
        ]


def warm_up(process: Process, count: int, **options: object) -> Memory:
    """Let the server pay once for what it keeps for ever, then count."""
    with peers(process, count, **options) as crowd:
        for peer in crowd:
            peer.send(frame(TEXT, "x" * 1000))
            peer.read()
    return Memory(process.popen.pid)


def is_well(process: Process) -> None:
    """The server serves others, and nothing went wrong in it."""
    with peer_of(process.server) as peer:
        peer.send(frame(TEXT, "still here"))
        assert peer.read_text() == "still here"
    assert "Traceback" not in process.output


def held_to(row: str, memory: Memory, bound: int) -> None:
    peak = memory.peak
    record(
        row, bound=f"≤ {bound / MIB:.0f} MiB more", measured=f"{max(0, peak) / MIB:.1f} MiB more"
    )
    assert peak <= bound


@pytest.mark.parametrize(("size", "code"), [(2**63, 1002), (2**63 - 1, 1009), (2**40, 1009)])
def test_declared_size_costs_nothing(serve_app: ServeApp, size: int, code: int) -> None:
    process = serve_app()
    memory = warm_up(process, 200)
    with peers(process, 200) as crowd:
        for peer in crowd:
            peer.send(head(0x80 | BINARY, size), b"x" * 100)
        for peer in crowd:
            assert peer.read_close()[0] == code
        held_to(f"200 peers that declare a frame of {size:,} bytes", memory, 8 * MIB)
    is_well(process)


def test_declared_size_that_is_allowed_is_not_held_before_it_comes(serve_app: ServeApp) -> None:
    process = serve_app()
    memory = warm_up(process, 200)
    with peers(process, 200) as crowd:
        for peer in crowd:
            peer.send(head(0x80 | BINARY, MIB), b"x" * 100)
        is_well(process)
        held_to("200 peers that declare 1 MiB and send 100 bytes of it", memory, 8 * MIB)


def test_unfinished_message_costs_what_has_come_of_it(serve_app: ServeApp) -> None:
    process = serve_app()
    memory = warm_up(process, 50)
    with peers(process, 50) as crowd:
        for peer in crowd:
            peer.send(head(0x80 | BINARY, MIB), bytes(MIB - 1))
        is_well(process)
        held_to("50 peers that leave the last byte of 1 MiB out", memory, 50 * MIB * 3 // 2)
        for peer in crowd:
            peer.send(b"\0")
            assert peer.read() == (BINARY, bytes(MIB))


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_endless_fragments_end_at_the_limit(serve_app: ServeApp, size: int) -> None:
    count = 10
    process = serve_app(max_message_size=MIB)
    memory = warm_up(process, count)
    fragments = frame(0, bytes(size), fin=False) * 1000
    # What the sockets on both sides hold comes on top.
    limit = 16 * MIB

    def send_until_closed(peer: Peer) -> int:
        peer.send(frame(BINARY, fin=False))
        sent = 0
        closing = gevent.spawn(peer.read_close)
        while not closing.ready():
            try:
                peer.send(fragments)
            except OSError:
                break
            sent += len(fragments)
            assert sent < limit, "no end"
            gevent.sleep(0)
        assert closing.get()[0] == 1009
        return sent

    with peers(process, count) as crowd:
        senders = [gevent.spawn(send_until_closed, peer) for peer in crowd]
        gevent.joinall(senders, raise_error=True)
    held_to(f"{count} peers with endless fragments of {size} bytes", memory, 3 * count * MIB)
    is_well(process)


BOMBS = {
    "zeros in one frame": [frame(0xC0 | BINARY, compressed(bytes(200 * MIB)))],
    "zeros in fragments": [
        frame(0x40 | BINARY, compressed(bytes(50 * MIB)) + b"\0\0\xff\xff", fin=False),
        frame(0, compressed(bytes(50 * MIB)), fin=True),
    ],
    "text": [frame(0xC0 | TEXT, compressed(b"x" * 200 * MIB))],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_decompression_bomb_ends_at_the_limit(serve_app: ServeApp, kind: str) -> None:
    count = 20
    process = serve_app()
    offer = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
    memory = warm_up(process, count, extensions=offer)
    with peers(process, count, extensions=offer) as crowd:
        spent = cpu_seconds(process.popen.pid)
        for peer in crowd:
            peer.send(*BOMBS[kind])
        for peer in crowd:
            assert peer.read_close()[0] == 1009
        spent = cpu_seconds(process.popen.pid) - spent
    held_to(f"{count} decompression bombs of 100 MiB and more, {kind}", memory, 2 * count * MIB)
    # Each stops at 1 MiB, which takes 2 ms.
    assert spent < 2
    is_well(process)


def test_peer_that_never_reads_its_echoes_costs_its_queues(serve_app: ServeApp) -> None:
    """Its own outbox, its own inbox, its own half message: then it is not read any more."""
    count = 10
    process = serve_app(send_timeout=60, ping_timeout=60)
    memory = warm_up(process, count)
    with peers(process, count, receive_buffer=4096) as crowd:
        piece = frame(TEXT, "x" * 60_000)
        senders = [gevent.spawn(peer.send_until_full, piece) for peer in crowd]
        gevent.joinall(senders, raise_error=True)
        is_well(process)
        held_to(f"{count} peers that send and never read", memory, 3 * count * MIB)


def test_pings_of_peers_that_never_read_cost_nothing(serve_app: ServeApp) -> None:
    process = serve_app(ping_timeout=60)
    memory = warm_up(process, 10)
    pings = frame(PING, "x" * 125) * 1000

    def send(peer: Peer) -> None:
        for _ in range(100):
            peer.send(pings)

    with peers(process, 10, receive_buffer=4096) as crowd:
        gevent.joinall([gevent.spawn(send, peer) for peer in crowd], raise_error=True)
        is_well(process)
        held_to("10 peers, a hundred thousand pings of each, none reads", memory, 15 * MIB)
        for peer in crowd:
            peer.reset()


PUSH = """
    import gevent

    class Push(WebSocketListener):
        def on_message(self, wsclient, message):
            # Ten at a time, less than the mark: who reads is never behind, however slow it is.
            for number in range(int(message), int(message) + 10):
                wsclient.broadcast(str(number).zfill(50_000))
                gevent.sleep(0.005)
"""


def test_slow_reader_costs_its_own_queue_and_nobody_elses_messages(serve_app: ServeApp) -> None:
    process = serve_app(PUSH, close_timeout=1)
    with peers(process, 15) as crowd:
        for peer in crowd:
            peer.send(close_frame(1000))
            assert peer.read()[0] == CLOSE
    memory = Memory(process.popen.pid)
    with peers(process, 10) as readers:
        wait_until(lambda: process.server.get("/").status == 200)
        count = descriptors(process.popen.pid)

        def read_ten(peer: Peer, start: int) -> None:
            for number in range(start, start + 10):
                assert peer.read_text()[-9:] == f"{number:09}"

        with peers(process, 5, receive_buffer=4096):
            for start in range(0, 300, 10):
                readers[0].send(frame(TEXT, f"{start}"))
                reading = [gevent.spawn(read_ten, peer, start) for peer in readers]
                gevent.joinall(reading, raise_error=True)
            # Past its mark of 1 MiB each of the others is closed, and gone after close_timeout.
            wait_until(lambda: process.output.count("slow consumer, ") == 5, lambda: process.output)
            wait_until(lambda: descriptors(process.popen.pid) <= count)
    held_to("15 MB broadcast past 5 clients that never read", memory, 5 * 2 * MIB + 10 * MIB)


@pytest.mark.parametrize("kind", ["names", "lists", "hosts"])
def test_big_heads_leave_nothing_behind(serve_app: ServeApp, kind: str) -> None:
    """Three hundred visits of 60 KB each: 18 MB, had it been kept."""
    process = serve_app()
    big = "a" * 60_000

    def visit(number: int) -> None:
        fields = {
            "names": {f"x-{number}-{big}": "1"},
            "lists": {"sec-websocket-extensions": f"a{number}{big}"},
            "hosts": {"host": f"{number}.{big}", "origin": f"http://{number}.{big}"},
        }[kind]
        if kind == "hosts":
            fields = {name: value[:30_000] for name, value in fields.items()}
        with process.server.socket() as sock:
            sock.sendall(websocket_request("/ws/test", **fields))
            assert sock.recv(4096).startswith(b"HTTP/1.1 ")

    for number in range(20):
        visit(number)
    memory = Memory(process.popen.pid)
    for number in range(20, 320):
        visit(number)
    is_well(process)
    held_to(f"300 visits with big heads, {kind}", memory, 8 * MIB)
