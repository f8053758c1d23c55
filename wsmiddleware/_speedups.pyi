from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

from wsmiddleware.protocol.prepared import PreparedMessage
from wsmiddleware.speedups import Counts as Counts

_Member = TypeVar("_Member")

class Ready:
    now: float
    def __init__(self, pool: object) -> None: ...
    def __call__(self, worker: object, /) -> None: ...

class Stream:
    def __init__(
        self, fd: int, max_size: int, mark: int, turn: float, window_bits: int
    ) -> None: ...
    is_engines: bool
    is_open: bool
    @property
    def last_message(self) -> float: ...
    @property
    def last_received(self) -> float: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    def start(
        self,
        connection: object,
        inbox: list[str | bytes],
        due: list[str | bytes],
        outbox: object,
        ready: Ready,
        counts: Counts,
        /,
    ) -> None: ...
    def serve_for(
        self,
        member: object,
        listener: object,
        client: object,
        context: Context,
        text_name: str,
        binary_name: str,
        timeout: float,
        /,
    ) -> None: ...
    def stop(self) -> None: ...
    def receive(self) -> None: ...
    def serve(self, worker: object, /) -> None: ...
    def take_pending(self) -> bytes | None: ...

def apply_mask(data: bytes | bytearray | memoryview, key: bytes, /) -> bytes: ...
def deliver(members: list[_Member], prepared: PreparedMessage, /) -> list[_Member]: ...
def pack(
    data: str | bytes | bytearray | memoryview, compress: bool = True, /
) -> bytes | tuple[bytes, bytes | memoryview]: ...
def use_deflate(decompress: Callable[[bytes, int], bytes], min_compress_size: int, /) -> None: ...
