"""A message encoded once for many peers: what a broadcast puts on each wire."""

from __future__ import annotations

from .deflate import MAX_WINDOW_BITS, MIN_COMPRESS_SIZE, compress
from .frames import Opcode, encode_frame, to_payload

__all__ = ["PreparedMessage"]


class PreparedMessage:
    """One message in the server's wire forms, each made when it is first asked for.

    ``data`` is text (``str``) or binary (bytes-like, copied if it may change); ``compress=False``
    is for what must not be compressed. ``size`` is the payload's bytes before compression. Raises
    what `to_payload` raises.
    """

    __slots__ = ("_forms", "_is_compressible", "_opcode", "_payload", "size")

    def __init__(self, data: str | bytes | bytearray | memoryview, compress: bool = True) -> None:
        self._opcode = Opcode.TEXT if isinstance(data, str) else Opcode.BINARY
        self._payload = to_payload(data)
        self.size = len(self._payload)
        self._is_compressible = compress and self.size >= MIN_COMPRESS_SIZE
        self._forms: dict[int, bytes] = {}

    def wire(self, window_bits: int) -> bytes:
        """Give the frame for peers that agreed on ``window_bits``; 0 is a peer without deflate.

        Compressed once for each distinct window; the plain form where that does not shrink.
        """
        form = min(MAX_WINDOW_BITS, window_bits) if self._is_compressible else 0
        wire = self._forms.get(form)
        if wire is None:
            wire = self._forms[form] = self._encode(form)
        return wire

    def _encode(self, form: int) -> bytes:
        if form:
            compressed = compress(self._payload, form)
            if compressed is None:
                return self.wire(0)
            return encode_frame(self._opcode, compressed, rsv1=True)
        return encode_frame(self._opcode, self._payload)
