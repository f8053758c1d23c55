"""The engine: bytes of the peer in, messages and control events out; data in, wire bytes out.

Law of this file: `Engine.receive` never raises whatever the peer sends; it never holds more than
one message, one received chunk and one frame header; it never waits, reads a clock or writes. The
owner of the socket feeds it, answers its events and sends what `Engine.encode` gives.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from .deflate import MIN_COMPRESS_SIZE, Deflate
from .deflate import compress as deflate_message
from .deflate import decompress as inflate_message
from .frames import (
    MAX_CONTROL_SIZE,
    CloseCode,
    Opcode,
    ProtocolViolation,
    Wire,
    encode_frame,
    is_receivable_close_code,
    make_header,
    to_payload,
    too_big,
)
from .masking import apply_mask
from .message import Assembly

__all__ = ["Close", "Engine", "Event", "Fail", "Ping", "Pong"]


class Ping(NamedTuple):
    """The peer wants a pong with the same payload (RFC 6455 section 5.5.2)."""

    payload: bytes


class Pong(NamedTuple):
    """The peer answers a ping, or shows that it lives (section 5.5.3)."""

    payload: bytes


class Close(NamedTuple):
    """The peer's close frame (section 5.5.1); 1005 and ``""`` when it was empty."""

    code: int
    reason: str


class Fail(NamedTuple):
    """We must fail the connection (section 7.1.7): a close frame with this, then drop TCP."""

    code: int
    reason: str


Event: TypeAlias = str | bytes | Ping | Pong | Close | Fail
"""A text message is a ``str``, a binary one ``bytes``; the rest are control events."""

# What the first byte of a frame may be (section 5.2): FIN, RSV1-3 and opcode in one look-up.
_TEXT, _BINARY = 0x81, 0x82
_CONTROL = frozenset({0x88, 0x89, 0x8A})
_STARTS = _CONTROL | {0x01, 0x02, _TEXT, _BINARY}
_STARTS_DEFLATE = _STARTS | {0x41, 0x42, 0xC1, 0xC2}
_WHOLE = (_TEXT, _BINARY, 0xC1, 0xC2)
_CONTINUES = _CONTROL | {0x00, 0x80}

_SHORT_TEXT = tuple(bytes((_TEXT, size)) for size in range(126))
_SHORT_BINARY = tuple(bytes((_BINARY, size)) for size in range(126))
_MEDIUM_HEADER = struct.Struct("!BBH").pack

# From this size on a memoryview is cheaper than a copy (measured).
_VIEW_SIZE = 4096

#: Bytes of assembled messages after which `receive` stops: a few bytes may decompress to many.
_MAX_ASSEMBLED = 262144


#: From this size on header and payload are not copied together: saves 10 % of 64 KiB, batch 1. Text
#: of fewer characters always fits a length of 16 bits.
_APART_SIZE = 16384


class Engine:
    """RFC 6455 for one connection, either side. Not thread-safe: one caller at a time.

    ``max_message_size`` bounds a message in bytes, also after decompression; ``deflate`` is what
    the handshake agreed on, or ``None``.
    """

    __slots__ = (
        "_assembled",
        "_fast_limit",
        "_input",
        "_key",
        "_message",
        "_offset",
        "deflate",
        "is_client",
        "is_done",
        "is_plain",
        "last_size",
        "left",
        "max_message_size",
        "more",
        "rejected",
    )

    def __init__(
        self,
        *,
        is_client: bool = False,
        max_message_size: int = 1_048_576,
        deflate: Deflate | None = None,
    ) -> None:
        self.is_client = is_client
        self.max_message_size = max_message_size
        self.deflate = deflate
        self.more = False
        self.is_done = False
        #: The bytes of a text message that are not UTF-8, as far as they had come.
        self.rejected: bytes | None = None
        #: Neither masked nor compressed on its way out.
        self.is_plain = not is_client and deflate is None
        self._input = b""
        self._offset = 0
        self._message: Assembly | None = None
        #: Payload of the last frame in bytes, but for those that the hot path takes.
        self.last_size = 0
        #: Bytes that have not come of the payload that is coming in.
        self.left = 0
        self._key = b""
        self._fast_limit = 0
        self._assembled = 0
        self._set_idle()

    def receive(self, data: bytes, max_events: int = 256) -> list[Event]:
        """Take what the peer sent; give the messages and control events that are complete.

        Stops after ``max_events`` frames, or once messages that came compressed or in pieces add up
        to more than 256 KiB; `more` then tells that input is left, for which ``receive(b"")`` is to
        be called again. After `Close` or `Fail` everything is ignored.
        """
        events: list[Event] = []
        if self.is_done:
            return events
        pos = 0
        if self._input:
            data, pos = self._take_input(data)
        end = len(data)
        limit = self._fast_limit
        try:
            for _ in range(max_events):
                # The hot path: a whole masked message of up to 4 KiB, nothing else going on. In
                # every other state `limit` is 0: one comparison covers state, mask and size.
                # All in one function, past the house's length: 0.7 us a call, 0.4 us a frame.
                start = pos + 6
                if start <= end:
                    second = data[pos + 1]
                    if 127 < second <= limit:
                        stop = start + second - 128
                        if second == 254:
                            size = data[pos + 2] << 8 | data[pos + 3]
                            start = pos + 8
                            stop = start + size if 125 < size < _VIEW_SIZE else end + 1
                        first = data[pos]
                        if stop <= end and (first == 0x81 or first == 0x82):
                            payload = apply_mask(data[start:stop], data[start - 4 : start])
                            events.append(str(payload, "utf-8") if first == 0x81 else payload)
                            if stop == end:
                                return events
                            pos = stop
                            continue
                elif pos == end:
                    break
                stop = self._read_frame(data, pos, end, events)
                if stop < 0:
                    self._input = data[pos:]
                    break
                pos = stop
                limit = self._fast_limit
                if self._assembled > _MAX_ASSEMBLED:
                    self._assembled = 0
                    self._keep(data, pos)
                    break
            else:
                self._keep(data, pos)
        except UnicodeDecodeError as exc:
            self.rejected = bytes(exc.object)
            events.append(self._fail(CloseCode.INVALID_DATA, "invalid UTF-8"))
        except ProtocolViolation as exc:
            events.append(self._fail(exc.code, exc.reason))
        return events

    def _take_input(self, data: bytes) -> tuple[bytes, int]:
        kept, offset = self._input, self._offset
        self._input, self._offset, self.more = b"", 0, False
        return (kept[offset:] + data, 0) if data else (kept, offset)

    def _keep(self, data: bytes, pos: int) -> None:
        # Kept with an offset: a flood of tiny frames is not copied again for each call.
        if pos < len(data):
            self._input, self._offset, self.more = data, pos, True

    def _fail(self, code: CloseCode, reason: str) -> Fail:
        self._finish()
        return Fail(int(code), reason)

    def _finish(self) -> None:
        self.is_done = True
        self._message = None

    def _set_idle(self) -> None:
        # The largest second byte (MASK and length) that the hot path takes.
        self._message = None
        if self.is_client:
            self._fast_limit = 0
        elif self.max_message_size < _VIEW_SIZE:
            self._fast_limit = 128 + min(125, self.max_message_size)
        else:
            self._fast_limit = 254

    def _read_frame(self, data: bytes, pos: int, end: int, events: list[Event]) -> int:
        """Read one frame, or what is there of it; gives where it ends, -1 for a header cut off."""
        if self.left:
            return self._read_payload(data, pos, end, events)
        if end - pos < 2:
            return -1
        first, second = data[pos], data[pos + 1]
        if self._message is not None:
            _check_start(first, second, _CONTINUES, self.is_client)
        else:
            starts = _STARTS if self.deflate is None else _STARTS_DEFLATE
            _check_start(first, second, starts, self.is_client)
        size = second & 0x7F
        start = pos + 2
        if size > MAX_CONTROL_SIZE:
            start += 2 if size == 126 else 8
            if start > end:
                return -1
            size = _read_size(data[pos + 2 : start])
        self.last_size = size
        if not self.is_client:
            start += 4
        if start > end:
            if size > self.max_message_size and not first & 0x40:
                raise too_big()  # no masking key makes it smaller
            return -1
        stop = start + size
        self._key = b"" if self.is_client else data[start - 4 : start]
        if first in _CONTROL:
            if stop > end:
                return -1
            event = _read_control(first, self._unmask(data, start, stop))
            events.append(event)
            if isinstance(event, Close):
                self._finish()
                return end
            return stop
        if stop <= end and first in _WHOLE and size <= self.max_message_size:
            # Browsers compress whatever they send: by way of `_open_frame` it takes twice as long.
            payload = self._unmask(data, start, stop)
            if first & 0x40:
                payload = inflate_message(payload, self.max_message_size)
                self._assembled += len(payload)
            events.append(str(payload, "utf-8") if first & 0x0F == 1 else payload)
            return stop
        self._open_frame(first, size)
        return self._read_payload(data, start, end, events)

    def _unmask(self, data: bytes, start: int, stop: int) -> bytes:
        if self.is_client:
            return data[start:stop]
        if stop - start < _VIEW_SIZE:
            return apply_mask(data[start:stop], self._key)
        return apply_mask(memoryview(data)[start:stop], self._key)

    def _open_frame(self, first: int, size: int) -> None:
        if self._message is None:
            self._fast_limit = 0
            self._message = Assembly(
                self.max_message_size,
                is_text=first & 0x0F == Opcode.TEXT,
                is_compressed=first & 0x40 != 0,
            )
        self._message.open_frame(size, is_final=first > 127)
        self.left = size

    def _read_payload(self, data: bytes, pos: int, end: int, events: list[Event]) -> int:
        message = self._message
        assert message is not None
        stop = min(pos + self.left, end)
        chunk = self._unmask(data, pos, stop)
        self.left -= stop - pos
        if self.left:
            offset = (stop - pos) & 3
            self._key = self._key[offset:] + self._key[:offset]
        whole = message.feed(chunk, is_last=message.is_final and not self.left)
        if whole is not None:
            self._set_idle()
            self._assembled += len(whole)
            events.append(whole)
        return stop

    @property
    def is_idle(self) -> bool:
        """True between two messages, when nothing has come of the next one yet."""
        return self._fast_limit > 0 and not self._input and not self.is_done

    def wire(self, data: str | bytes | bytearray | memoryview, compress: bool = True) -> Wire:
        """The same as `encode`, but a large payload is not copied once more behind its header."""
        kind = type(data)
        if self.is_plain and (kind is str or kind is bytes) and len(data) < _APART_SIZE:
            # The everyday message, without four more calls: saves 4 % of 32 B, batch 16, and
            # 10 % of 1 KiB, batch 16.
            if kind is str:
                payload, first, short = data.encode(), _TEXT, _SHORT_TEXT  # type: ignore[union-attr]
            else:
                payload, first, short = data, _BINARY, _SHORT_BINARY
            size = len(payload)
            return (short[size] if size < 126 else _MEDIUM_HEADER(first, 126, size)) + payload
        if self.is_plain and len(data) >= _APART_SIZE:
            payload = to_payload(data)
            return make_header(1 if isinstance(data, str) else 2, len(payload)), payload
        return self.encode(data, compress)

    def encode(self, data: str | bytes | bytearray | memoryview, compress: bool = True) -> bytes:
        """Give one message as wire bytes: text for ``str``, else binary; masked on the client.

        Compressed where that was agreed, ``compress`` allows it, it has at least 256 bytes and
        shrinks. Lone surrogates are a `UnicodeEncodeError` (a `ValueError`), other types a
        `TypeError`.
        """
        payload = to_payload(data)
        opcode = 1 if isinstance(data, str) else 2
        size = len(payload)
        if size < 126 and not self.is_client:
            return (_SHORT_TEXT if opcode == 1 else _SHORT_BINARY)[size] + payload
        if compress and size >= MIN_COMPRESS_SIZE and self.deflate is not None:
            compressed = deflate_message(payload, self.deflate.window_bits)
            if compressed is not None:
                return encode_frame(opcode, compressed, rsv1=True, masked=self.is_client)
        return encode_frame(opcode, payload, masked=self.is_client)

    def control(self, opcode: Opcode, payload: bytes) -> bytes:
        """Give a close, ping or pong frame as wire bytes; other opcodes, and a payload of more
        than 125 bytes, are a `ValueError` (RFC 6455 section 5.5).
        """
        if opcode not in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            raise ValueError(f"{opcode!r} is no control frame")
        if len(payload) > MAX_CONTROL_SIZE:
            raise ValueError(f"control frame of {len(payload)} bytes, at most 125 are allowed")
        return encode_frame(opcode, payload, masked=self.is_client)


def _check_start(first: int, second: int, allowed: frozenset[int], is_client: bool) -> None:
    """Refuse what two bytes prove wrong: 1002 (RFC 6455 sections 5.1, 5.2, 5.4, 5.5)."""
    if first not in allowed:
        raise _violation(_explain(first))
    if is_client:
        if second > 127:
            raise _violation("masked frame from the server")
    elif second < 128:
        raise _violation("unmasked frame from the client")
    if first & 0x08 and second & 0x7F > MAX_CONTROL_SIZE:
        raise _violation("control frame too long")


def _read_control(first: int, payload: bytes) -> Ping | Pong | Close:
    opcode = first & 0x0F
    if opcode == Opcode.PING:
        return Ping(payload)
    if opcode == Opcode.PONG:
        return Pong(payload)
    if not payload:
        return Close(int(CloseCode.NO_STATUS_RCVD), "")
    if len(payload) == 1:
        raise _violation("close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if not is_receivable_close_code(code):
        raise _violation(f"invalid close code {code}")
    return Close(code, str(payload[2:], "utf-8"))


def _read_size(field: bytes) -> int:
    """Read an extended length; section 5.2: the shortest form, and the highest bit clear."""
    size = int.from_bytes(field, "big")
    if size < (126 if len(field) == 2 else 65536):
        raise _violation("length not in its shortest form")
    if size >= 1 << 63:
        raise _violation("length of 2^63 or more")
    return size


def _explain(first: int) -> str:
    """Say what is wrong with the first byte of a frame (only called when something is)."""
    opcode = first & 0x0F
    if opcode not in Opcode.__members__.values():
        return f"unknown opcode {opcode}"
    if first & 0x70:
        return "reserved bits set"
    if opcode & 0x08:
        return "fragmented control frame"
    if opcode == Opcode.CONTINUATION:
        return "continuation without a message"
    return "new message inside a fragmented one"


def _violation(reason: str) -> ProtocolViolation:
    return ProtocolViolation(CloseCode.PROTOCOL_ERROR, reason)
