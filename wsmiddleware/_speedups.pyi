from contextvars import Context
from typing import TypeVar

from wsmiddleware.protocol.prepared import PreparedMessage

_Member = TypeVar("_Member")

class Stream:
    def __init__(
        self, fd: int, max_size: int, mark: int, turn: float, window_bits: int
    ) -> None: ...
    has_sent: bool
    is_open: bool
    replies: int
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def callback(self) -> str: ...
    @property
    def is_idle(self) -> bool: ...
    def take_pending(self) -> bytes | None: ...
    def read(self) -> list[str | bytes] | tuple[list[str | bytes], bytes] | bytes | None: ...
    def serve(
        self,
        due: list[str | bytes],
        context: Context,
        listener: object,
        client: object,
        text_name: str,
        binary_name: str,
        connection: object,
        worker: object,
        /,
    ) -> object: ...

def deliver(members: list[_Member], prepared: PreparedMessage, /) -> list[_Member]: ...
def pack(
    data: str | bytes | bytearray | memoryview, compress: bool = True, /
) -> bytes | tuple[bytes, bytes | memoryview]: ...
