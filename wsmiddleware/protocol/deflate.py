"""permessage-deflate (RFC 7692): the agreement, and single messages in and out.

Neither side ever keeps its window from one message to the next (``*_no_context_takeover``): no
compressor lives as long as its connection, no secret of one message meets another's bytes, and
a broadcast is compressed once for everybody.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

from wsmiddleware import speedups
from wsmiddleware.settings import shorten

from .frames import CloseCode, ProtocolViolation, too_big
from .handshake import Extension, parse_extensions

__all__ = [
    "MAX_WINDOW_BITS",
    "MIN_COMPRESS_SIZE",
    "OFFER",
    "Deflate",
    "Inflater",
    "agree",
    "compress",
    "decompress",
    "negotiate",
]

MIN_COMPRESS_SIZE = 256
"""Messages of fewer bytes are not worth the time."""

MAX_WINDOW_BITS = 12
"""Largest window we compress with: 37 KiB a compressor instead of 159, hardly a byte more sent."""

OFFER = (
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
    "client_max_window_bits"
)
"""What our client sends as ``Sec-WebSocket-Extensions``."""

_NAME = "permessage-deflate"
_MEMORY_LEVEL = 5
#: zlib's fastest: 16 KiB of JSON in 40 % of the time of its default, with 8 % more bytes.
_LEVEL = 1
#: The tail that the sender took off (RFC 7692 section 7.2.1), and a final block. The final block
#: ends zlib's stream only where a block has ended: so an incomplete message is noticed.
_END = b"\x00\x00\xff\xff" + b"\x01\x00\x00\xff\xff"
#: The answers to offers of up to so many bytes are cached: no more of what peers sent is kept.
_MAX_KNOWN_SIZE = 256
_MAX_RESTARTS = 32
_WINDOW_BITS = {str(bits): bits for bits in range(8, 16)}


@dataclass(frozen=True, slots=True)
class Deflate:
    """What was agreed. ``window_bits`` limits our compressor (8: we send nothing compressed)."""

    window_bits: int = 15


def negotiate(header: str) -> tuple[Deflate, str] | None:
    """Answer a request's ``Sec-WebSocket-Extensions``: the agreement and our response value.

    The first offer we can take wins (RFC 7692 section 5.1); malformed offers, unknown or
    repeated parameters and a window of 8 bits decline an offer. ``None``: no compression.
    """
    if len(header) > _MAX_KNOWN_SIZE:
        return _negotiate.__wrapped__(header)
    return _negotiate(header)


@functools.lru_cache(maxsize=256)  # browsers offer the same few, in 50 to 110 bytes
def _negotiate(header: str) -> tuple[Deflate, str] | None:
    try:
        extensions = parse_extensions(header)
    except ValueError:
        return None
    for extension in extensions:
        try:
            window_bits = _read_offer(extension)
        except ValueError:
            continue
        response = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
        if window_bits is None:
            return Deflate(), response
        return Deflate(window_bits), f"{response}; server_max_window_bits={window_bits}"
    return None


def _read_offer(extension: Extension) -> int | None:
    # Section 7.1: of what a client may offer only the limit on our own window binds us.
    parameters = _read_parameters(extension)
    _window_bits(parameters.get("client_max_window_bits") or "15")
    if "server_max_window_bits" not in parameters:
        return None
    window_bits = _window_bits(parameters["server_max_window_bits"])
    if window_bits == 8:
        raise ValueError("zlib cannot compress with a window of 8 bits")
    return window_bits


def agree(response_header: str) -> Deflate | None:
    """Read the server's answer to `OFFER`; an empty one is ``None``: no compression.

    An answer that our offer does not allow is a `ValueError`: the client must fail the connection
    (RFC 7692 section 7.1).
    """
    extensions = parse_extensions(response_header)
    if not extensions:
        return None
    if len(extensions) > 1:
        raise ValueError(f"server accepted more than was offered: {shorten(response_header)}")
    parameters = _read_parameters(extensions[0])
    if "server_no_context_takeover" not in parameters:
        raise ValueError(f"server left out server_no_context_takeover: {shorten(response_header)}")
    _window_bits(parameters.get("server_max_window_bits", "15"))
    return Deflate(_window_bits(parameters.get("client_max_window_bits", "15")))


def _read_parameters(extension: Extension) -> dict[str, str | None]:
    name, pairs = extension
    if name != _NAME:
        raise ValueError(f"unknown extension {shorten(name)}")
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise ValueError(f"{name}: a parameter is repeated")
    for key, value in pairs:
        if key in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                raise ValueError(f"{name}: {key} takes no value")
        elif key not in ("server_max_window_bits", "client_max_window_bits"):
            raise ValueError(f"{name}: unknown parameter {shorten(key)}")
    return parameters


def _window_bits(value: str | None) -> int:
    try:
        return _WINDOW_BITS[value or ""]
    except KeyError:
        raise ValueError(f"{_NAME}: window bits {shorten(value)} are not 8-15") from None


def compress(payload: bytes, window_bits: int) -> bytes | None:
    """Compress one whole message from an empty window, the tail taken off (section 7.2.1).

    Uses ``min(MAX_WINDOW_BITS, window_bits)``. ``None`` where that is no shorter, or where zlib
    has no such window (fewer than 9 bits): send the message as it is.
    """
    if window_bits < 9:
        return None
    bits = min(MAX_WINDOW_BITS, window_bits)
    compressor = zlib.compressobj(_LEVEL, wbits=-bits, memLevel=_MEMORY_LEVEL)
    compressed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return compressed[:-4] if len(compressed) - 4 < len(payload) else None


def decompress(data: bytes, limit: int) -> bytes:
    """Decompress one whole message (RFC 7692 section 7.2.2); errors as of `Inflater.feed`."""
    # The everyday message: one call of zlib, which halves what 1 KiB costs beside zlib's own time.
    # Everything else is left to `Inflater`.
    stream = zlib.decompressobj(wbits=-15)
    try:
        output = stream.decompress(data + _END, limit + 1)
    except zlib.error:
        output = b""
    if stream.eof and not stream.unused_data and len(output) <= limit:
        return output
    return Inflater().feed(data, True, limit)


class Inflater:
    """Bounded decompression of one message that may come in pieces (RFC 7692 section 7.2.2)."""

    __slots__ = ("_is_fresh", "_restarts", "_stream")

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=-15)
        self._is_fresh = True
        self._restarts = 0

    def feed(self, data: bytes, last: bool, limit: int) -> bytes:
        """Decompress the next piece of the message; ``last`` says that it is the final one.

        Raises `ProtocolViolation`: 1009 when more than ``limit`` bytes would come out (at most
        one byte past it is made), 1007 when the data are broken or end too soon.
        """
        try:
            output = self._inflate(data, limit)
            return output + self._end(limit - len(output)) if last else output
        except zlib.error as exc:
            raise _bad_data() from exc

    def _inflate(self, data: bytes, limit: int) -> bytes:
        output = b""
        while data:
            output += self._stream.decompress(data, limit + 1 - len(output))
            if len(output) > limit:
                raise too_big()
            self._is_fresh = False
            data = b""
            if self._stream.eof:
                data = self._restart()
        return output

    def _restart(self) -> bytes:
        # Section 7.2.3.4: a block with BFINAL ends zlib's stream, not the message. Each restart
        # copies what is left, so a message of nothing but final blocks would cost its square.
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise _bad_data()
        rest = self._stream.unused_data
        self._stream = zlib.decompressobj(wbits=-15)
        self._is_fresh = True
        return rest

    def _end(self, limit: int) -> bytes:
        # A fresh stream: an empty message, or one that ended with a final block.
        if self._is_fresh:
            return b""
        # With the tail back on, the data must be at the end of a block.
        output = self._stream.decompress(_END, limit + 1)
        if len(output) > limit:
            raise too_big()
        if not self._stream.eof or self._stream.unused_data:
            raise _bad_data()
        return output


def _bad_data() -> ProtocolViolation:
    return ProtocolViolation(CloseCode.INVALID_DATA, "invalid compressed data")


if speedups.use_deflate is not None:
    speedups.use_deflate(decompress, MIN_COMPRESS_SIZE)
