"""What fuzz.py runs: the reading path in C and the Python engine, with the same bytes.

An input is a little program (`Script`) that writes frames, good and bad ones, and cuts them into
pieces. Each piece goes through a socket to a `Stream`, and to an engine; after each the two must
have given the same messages, control frames and end. `Reader` does with what the stream leaves what
`Connection` does with it, so both go back and forth as they do in a server.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import sys
import zlib

import atheris

with atheris.instrument_imports(include=["wsmiddleware"]):
    from wsmiddleware import speedups
    from wsmiddleware.protocol import engine as engines
    from wsmiddleware.protocol.deflate import Deflate
    from wsmiddleware.protocol.engine import Close, Engine, Event, Fail
    from wsmiddleware.protocol.masking import xor_mask

assert speedups.Stream and speedups.Ready
# The engine is to find out by itself what the extension has unmasked.
engines.apply_mask = xor_mask

#: The largest is more than the stream's buffer.
MAX_SIZES = (20, 1000, 70_000, 600_000)
MAX_WIRE = 800_000

# The bits of a frame's flags.
REPEATED, DEFLATED, LYING, UNMASKED, WIDE, WIDEST = 1, 2, 4, 8, 16, 32


class Script:
    """What the bytes of an input say: the settings, and the pieces of what a peer sends."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        settings = self._take()
        self.window_bits = 15 if settings & 1 else 0
        self.max_size = MAX_SIZES[settings >> 1 & 3]
        wire = bytearray()
        cuts = {0}
        while len(wire) < MAX_WIRE and (operation := self._data.read(1)):
            match operation[0] & 3:
                case 0:  # a cut, so far along what there is
                    cuts.add(len(wire) * self._take(2) >> 16)
                case 1:  # bytes as they are
                    wire += self._data.read(self._take())
                case _:
                    wire += self._frame()
        ends = sorted(cuts | {len(wire)})
        self.pieces = [bytes(wire[a:b]) for a, b in itertools.pairwise(ends)]

    def _take(self, size: int = 1) -> int:
        return int.from_bytes(self._data.read(size), "big")

    def _frame(self) -> bytes:
        first, flags = self._take(), self._take()
        payload = self._data.read(self._take())
        if flags & REPEATED:
            shift = self._take()
            # Few large ones: they take a hundred times as long.
            payload *= 1 << (shift & 7 if shift < 250 else 12)
            payload = payload[: MAX_SIZES[-1]]
        if flags & DEFLATED:
            payload = deflate(payload, is_final=self._take() & 1 != 0)
        size = len(payload)
        if flags & LYING:
            size += self._take(1 + 7 * (flags & WIDEST > 0)) - 128
        mask = 0 if flags & UNMASKED else 128
        head = bytes([first]) + encode_size(max(0, size), mask, flags)
        if not mask:
            return head + payload
        key = self._data.read(4).ljust(4, b"k")
        return head + key + xor_mask(payload, key)


def deflate(payload: bytes, *, is_final: bool) -> bytes:
    """One compressed message: its tail taken off, or with a final block (RFC 7692 section 7.2)."""
    compressor = zlib.compressobj(1, wbits=-15)
    start = compressor.compress(payload)
    if is_final:
        return start + compressor.flush() + b"\x00"
    return (start + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def encode_size(size: int, mask: int, flags: int) -> bytes:
    """The length field in its shortest form or in a longer one."""
    if flags & WIDEST or size > 0xFFFF:
        return bytes([mask | 127]) + (size & (1 << 64) - 1).to_bytes(8, "big")
    if flags & WIDE or size > 125:
        return bytes([mask | 126]) + size.to_bytes(2, "big")
    return bytes([mask | size])


class Reader(speedups.Stream):
    """A stream whose worker is at it and takes nothing; what it leaves goes to an engine."""

    __slots__ = ("_engine", "_far", "_near", "is_lost")

    def __init__(self, script: Script, near: socket.socket, far: socket.socket) -> None:
        ready, counts, bits = speedups.Ready(None), speedups.Counts(), script.window_bits
        super().__init__(ready, None, counts, near.fileno(), script.max_size, 1 << 20, 60.0, bits)
        self._near, self._far = near, far
        self._engine = make_engine(script)
        self.worker = True
        self.is_lost = False

    def come(self, piece: bytes) -> None:
        """Let that come; as much at a time as a socket takes."""
        while piece:
            piece = piece[self._far.send(piece) :]
            while has_more(self._near):
                self.receive()
            self.receive()  # nothing has come

    def end(self) -> None:
        """Let the stream end there, which is no message."""
        taken = self.inbox.copy()
        self._far.shutdown(socket.SHUT_WR)
        self.receive()
        assert self.is_lost and self.inbox == taken

    # What `Connection` does

    def take(self, data: bytes, is_slice_over: bool = False) -> None:
        self.inbox.extend(receive_all(self._engine, data))
        self.is_engines = not self._engine.is_idle

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self._near.recv(1 << 17)
            self.bytes_received += len(data)
            if data:
                self.take(data)
            else:
                self.lost(None)

    def pause_if_needed(self) -> None:
        pass

    def lost(self, exc: OSError | None) -> None:
        assert exc is None
        self.is_lost = True

    def broken(self, exc: BaseException) -> None:
        raise exc


def has_more(sock: socket.socket) -> bool:
    """Whether something has come that was not read."""
    with contextlib.suppress(BlockingIOError):
        return bool(sock.recv(1, socket.MSG_PEEK))
    return False


def make_engine(script: Script) -> Engine:
    agreed = Deflate() if script.window_bits else None
    return Engine(max_message_size=script.max_size, deflate=agreed)


def receive_all(engine: Engine, data: bytes) -> list[Event]:
    """What comes of `data`, in however many turns."""
    events = engine.receive(data)
    while engine.more:
        events += engine.receive(b"")
    return events


def compare(found: list[Event], expected: list[Event], script: Script) -> None:
    """Both have given the same, each message of the same type."""
    is_compressed = script.window_bits > 0
    if is_compressed and expected and isinstance(expected[-1], Fail):
        # Of a compressed frame the extension waits for the end before it looks.
        expected = expected[: max(len(found), len(expected) - 1)]
    got = [describe(event, is_compressed) for event in found]
    wanted = [describe(event, is_compressed) for event in expected]
    assert got == wanted, f"the extension gave {got!r:.1000}, the engine {wanted!r:.1000}"


def describe(event: Event, is_compressed: bool) -> object:
    """What must be the same of it: of two faults in one message the pieces decide which shows."""
    if not isinstance(event, Fail):
        return type(event), event
    # Inflated, it may be too long behind a byte that is wrong.
    return 1007 if is_compressed and event.code == 1009 else event.code


def try_one(data: bytes) -> None:
    """Take one input; whatever this raises is a finding."""
    script = Script(data)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        reader, engine = Reader(script, near, far), make_engine(script)
        expected: list[Event] = []
        for piece in script.pieces:
            reader.come(piece)
            expected += receive_all(engine, piece)
            compare(reader.inbox, expected, script)
            if reader.inbox and isinstance(reader.inbox[-1], Close | Fail):
                break
        else:
            reader.end()
        assert reader.bytes_received <= sum(map(len, script.pieces))


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
