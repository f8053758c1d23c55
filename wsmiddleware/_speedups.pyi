from collections.abc import Callable
from contextvars import Context
from typing import Any

from wsmiddleware.speedups import Counts as Counts

class Ready:
    now: float
    @property
    def pool(self) -> Any: ...
    def __init__(self, pool: object) -> None: ...
    def resubmit(self) -> None: ...

class Stream:
    inbox: list[Any]
    due: list[Any]
    worker: Any
    is_engines: bool
    is_open: bool
    is_paused: bool
    is_ending: bool
    is_flush_due: bool
    last_message: float
    last_received: float
    bytes_received: int
    bytes_written: int
    def __init__(
        self,
        reactor: Ready,
        outbox: object,
        metrics: Counts,
        fd: int,
        max_size: int,
        mark: int,
        time_slice: float,
        window_bits: int,
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
    def make_ready(self) -> None: ...
    def serve(self, worker: object, /) -> None: ...
    def enqueue_pending(self) -> None: ...

def apply_mask(data: bytes | bytearray | memoryview, key: bytes, /) -> bytes: ...
def deliver(members: list[Any], prepared: Any, /) -> None: ...
def pack(
    data: str | bytes | bytearray | memoryview, compress: bool = True, /
) -> bytes | tuple[bytes, bytes | memoryview]: ...
def use_deflate(decompress: Callable[[bytes, int], bytes], min_compress_size: int, /) -> None: ...
