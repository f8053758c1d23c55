"""What was promised: the peer's server CPU divided by ours, at least, for each cell."""

from __future__ import annotations

from dataclasses import dataclass

from cells import flask_cells
from servers import IN_FLASK, OURS, PURE, SOCK

__all__ = ["TARGETS", "Target"]

_PICOWS, _AIOHTTP = "picows + uvloop", "aiohttp + uvloop"
_WEBSOCKETS, _GEVENT = "websockets + uvloop", "gevent-websocket"
_FLOOR = "C epoll, raw TCP"


@dataclass(frozen=True)
class Target:
    """A row of the promise. A cell's key has the form of `cells`."""

    group: str
    cells: tuple[str, ...]
    #: Peer and the least ratio, with the extension and without it.
    ratios: dict[str, tuple[float, float]]
    #: Our servers, with the extension and without it.
    ours: tuple[str, str] = (OURS.name, PURE.name)


def _both(ratio: float) -> tuple[float, float]:
    """With the extension, and without it: within a tenth."""
    return ratio, ratio * 0.9


def _echo(sizes: tuple[str, ...], connections: int, outstanding: int) -> tuple[str, ...]:
    return tuple(
        f"{kind}, {size}, {connections}, {outstanding}"
        for size in sizes
        for kind in ("text", "binary")
    )


def _small(size: str, outstanding: int, ratios: dict[str, tuple[float, float]]) -> Target:
    return Target("echo", _echo((size,), 100, outstanding), ratios)


_ONE = {_PICOWS: (1.0, 0.75), _AIOHTTP: _both(1.6), _WEBSOCKETS: _both(2.5), _FLOOR: _both(0.8)}
_MANY = {_PICOWS: (5.0, 3.0), _AIOHTTP: _both(8), _WEBSOCKETS: _both(10), _FLOOR: _both(0.4)}
_LARGE = {_PICOWS: _both(1), _AIOHTTP: _both(1.1), _WEBSOCKETS: _both(1), _GEVENT: _both(80)}
_FANOUT = {
    _PICOWS: _both(0.95),
    _AIOHTTP: _both(1.4),
    _WEBSOCKETS: _both(1.6),
    _GEVENT: _both(1.5),
    _FLOOR: _both(0.85),
}
_SIZES = ("64 KiB", "1 MiB")
_TO_MANY = tuple(f"{size}, {count}" for count in (1000, 5000) for size in ("128 B", "16 KiB"))

TARGETS = (
    _small("32 B", 1, {**_ONE, _GEVENT: _both(3)}),
    _small("1 KiB", 1, {**_ONE, _GEVENT: _both(12)}),
    _small("32 B", 16, {**_MANY, _GEVENT: _both(8)}),
    _small("1 KiB", 16, {**_MANY, _GEVENT: _both(60)}),
    *(
        Target("echo", _echo(_SIZES, connections, outstanding), _LARGE)
        for connections in (1, 100)
        for outstanding in (1, 16)
    ),
    *(
        Target(
            "flask",
            tuple(cell.key for cell in flask_cells() if cell.key.endswith(f", {outstanding}")),
            {SOCK.name: (ratio, 1.0)},
            (IN_FLASK[0].name, IN_FLASK[1].name),
        )
        for outstanding, ratio in ((1, 1.6), (16, 1.3))
    ),
    Target("fanout", tuple(f"plain, {cell}" for cell in _TO_MANY), _FANOUT),
    Target(
        "fanout",
        tuple(f"compressed, {cell}" for cell in _TO_MANY if "16 KiB" in cell),
        {_AIOHTTP: _both(20), _WEBSOCKETS: _both(20)},
    ),
)
