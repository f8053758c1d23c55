"""The one door to the optional C extension: what it offers here, or `None` in its place.

The extension is built where there is a compiler when the package is installed; without it nothing
is missing but time. ``WSMIDDLEWARE_SPEEDUPS=off`` (or ``0``, ``no``, ``false``) turns it off for a
process. `IMPLEMENTATION` says which one is in use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsmiddleware._speedups import Ready as _Ready
    from wsmiddleware._speedups import Stream as _Stream

    ApplyMask = Callable[[bytes | bytearray | memoryview, bytes], bytes]
    Deliver = Callable[[list[Any], Any], None]
    Pack = Callable[
        [str | bytes | bytearray | memoryview, bool], bytes | tuple[bytes, bytes | memoryview]
    ]

__all__ = [
    "IMPLEMENTATION",
    "VARIABLE",
    "Counts",
    "Ready",
    "Stream",
    "apply_mask",
    "deliver",
    "pack",
    "use_deflate",
]

#: The variable that turns the extension off; read once, at import.
VARIABLE = "WSMIDDLEWARE_SPEEDUPS"


class Counts:
    """Messages counted, by the extension too."""

    __slots__ = ("messages_received", "messages_sent")
    messages_received: int
    messages_sent: int


#: In place of those of `net.stream`.
Stream: type[_Stream] | None = None
Ready: type[_Ready] | None = None
deliver: Deliver | None = None
#: Masks or unmasks bytes.
apply_mask: ApplyMask | None = None
#: Tells the extension how messages are inflated, and from what size on they are deflated.
use_deflate: Callable[[Callable[[bytes, int], bytes], int], None] | None = None
#: The wire form of a message: unmasked, uncompressed; a large one's header and payload apart.
pack: Pack | None = None

if os.environ.get(VARIABLE, "").strip().lower() not in ("0", "off", "no", "false"):
    try:
        from wsmiddleware import _speedups
    except ImportError:  # not built
        pass
    else:
        Stream, deliver, pack = _speedups.Stream, _speedups.deliver, _speedups.pack
        apply_mask, use_deflate = _speedups.apply_mask, _speedups.use_deflate
        Counts, Ready = _speedups.Counts, _speedups.Ready  # type: ignore[misc]

#: ``"c"`` or ``"python"``.
IMPLEMENTATION = "c" if Stream else "python"
