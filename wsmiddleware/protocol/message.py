"""A message that did not come whole: fragments, pieces of a big frame, or compressed data.

One `Assembly` lives from a message's first byte to its last. It holds what came, never more than
the limit, and refuses what cannot become a valid message at the first byte that proves it.
"""

from __future__ import annotations

from codecs import utf_8_decode
from io import BytesIO

from .deflate import Inflater
from .frames import CloseCode, ProtocolViolation, too_big

__all__ = ["Assembly"]

#: Pieces of text from so many bytes on are decoded one by one.
_PIECE_SIZE = 4096


class Assembly:
    """The message that is coming in; ``max_size`` bytes bound it, also after decompression."""

    __slots__ = (
        "_ascii",
        "_buffer",
        "_fragments",
        "_inflater",
        "_is_text",
        "_max_size",
        "_pending",
        "_size",
        "_wire_size",
        "is_final",
    )

    def __init__(self, max_size: int, *, is_text: bool, is_compressed: bool) -> None:
        self.is_final = False
        self._max_size = max_size
        self._is_text = is_text
        self._inflater = Inflater() if is_compressed else None
        self._size = 0
        #: Large pieces of text, as long as all of it is ASCII: decoded when they come. Against a
        #: check now and decoding at the end: saves 10 % of 1 MiB, batch 1.
        self._ascii: list[str] = []
        #: Everything else. `getvalue` makes no copy: saves 4 % of 1 MiB, batch 1, against a
        #: bytearray.
        self._buffer = BytesIO()
        self._pending = b""
        self._fragments = 0
        self._wire_size = 0

    def open_frame(self, size: int, *, is_final: bool) -> None:
        """Take note of a frame's header; a message that must get too big is refused here: 1009."""
        self._fragments += 1
        if self._fragments > max(1024, self._max_size // 16):
            raise ProtocolViolation(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
        self._wire_size += size
        limit = self._max_size
        if self._inflater is not None:
            # Deflate can make a message longer: this is above zlib's deflateBound().
            limit += limit // 4 + 1024
        if self._wire_size > limit:
            raise too_big()
        self.is_final = is_final

    def feed(self, chunk: bytes, *, is_last: bool) -> str | bytes | None:
        """Take unmasked payload; gives the message with its last chunk, else ``None``.

        Raises `ProtocolViolation` as `Inflater.feed` does, `UnicodeDecodeError` at the first byte
        that makes a text message invalid (RFC 6455 section 8.1).
        """
        if self._inflater is not None:
            chunk = self._inflater.feed(chunk, is_last, self._max_size - self._size)
        if is_last and not self._size:
            return str(chunk, "utf-8") if self._is_text else chunk
        self._size += len(chunk)
        if self._is_text:
            return self._feed_text(chunk, is_last)
        self._buffer.write(chunk)
        return self._buffer.getvalue() if is_last else None

    def _feed_text(self, chunk: bytes, is_last: bool) -> str | None:
        if not self._add_ascii(chunk):
            self._buffer.write(chunk)
            if not is_last:
                self._validate(chunk)
        if not is_last:
            return None
        return "".join((*self._ascii, str(self._buffer.getbuffer(), "utf-8")))

    def _add_ascii(self, chunk: bytes) -> bool:
        if self._buffer.tell() or len(chunk) < _PIECE_SIZE:
            return False
        try:
            self._ascii.append(str(chunk, "ascii"))
        except UnicodeDecodeError:
            return False
        return True

    def _validate(self, chunk: bytes) -> None:
        # Decoding again at the end costs less than keeping str, which may need 4 bytes for each.
        if self._pending:
            chunk = self._pending + chunk
        elif chunk.isascii():
            return
        pending = self._pending = chunk[utf_8_decode(chunk, "strict", False)[1] :]
        # The decoder waits for the third byte of a surrogate; its second byte is wrong already.
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            end = len(chunk)
            raise UnicodeDecodeError("utf-8", chunk, end - len(pending), end, "a surrogate")
