"""What the headers of a handshake cost, whatever is in them, and what is kept of them."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from wsmiddleware import WebSocketListener
from wsmiddleware.handler import _is_stock_upgrade, _wants_upgrade
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.contract import Contract
from wsmiddleware.listeners.session import RequestRecord
from wsmiddleware.metrics import Metrics
from wsmiddleware.policy import agree, check_host, check_origin, check_request, decode_path
from wsmiddleware.protocol.handshake import MAX_LIST_ITEMS, MAX_LIST_SIZE
from wsmiddleware.settings import Settings
from wsmiddleware.values import MAX_HOST_SIZE, MAX_ORIGIN_SIZE

#: A head's limit, by default.
SIZE = 65_536

HANDSHAKE = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "PATH_INFO": "/ws/test",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "wsgi.url_scheme": "http",
    "HTTP_HOST": "example.com",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}

SETTINGS = [
    Settings(),
    Settings(allowed_origins=("same-origin", "file://", "https://*.example.com", "http://a.b.c")),
]
LISTENER = type("Test", (WebSocketListener,), {"subprotocols": ("v2", "v1")})
CHANNEL = Channel(
    "test",
    Contract(LISTENER, SETTINGS[0]),
    Metrics(),
    lambda: iter(()),
)

READ = [
    "HTTP_CONNECTION",
    "HTTP_HOST",
    "HTTP_ORIGIN",
    "HTTP_SEC_WEBSOCKET_EXTENSIONS",
    "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_PROTOCOL",
    "HTTP_SEC_WEBSOCKET_VERSION",
    "HTTP_UPGRADE",
]

BEFORE = ["", "http://", "file://", "https://[", "permessage-deflate; ", "websocket, "]
AGAIN = [
    "a", "a,", "a, ", ",", " ", "\t,", ";", "a;", "a;a=a;", 'a;a="\\a";', "\\", '"', "ü", "ü.",
    "\xbc.", "a.", ".", ":", "1", "*.", "permessage-deflate,", "\x1b", "AAAA", "=",
]  # fmt: skip
SIZES = [MAX_HOST_SIZE, MAX_ORIGIN_SIZE, 2 * MAX_LIST_ITEMS, MAX_LIST_SIZE, SIZE]


def decide(environ: dict[str, Any]) -> None:
    """All that is done with a request's headers, whether it is refused on the way or not."""
    _wants_upgrade(environ), _is_stock_upgrade(environ)
    decode_path(environ)
    refusal = check_request(environ)
    check_host(environ, ["localhost", ".example.com"])
    for settings in SETTINGS:
        check_origin(environ, settings)
    RequestRecord(environ)
    if refusal is None:
        agree(environ, CHANNEL, is_answered=False)


def shapes() -> list[str]:
    return [
        (before + again * (size // len(again) + 1))[:size]
        for before, again, size in itertools.product(BEFORE, AGAIN, SIZES)
    ]


def seconds(environ: dict[str, Any]) -> float:
    """The processor time that it takes, at the best of three: others disturb."""
    best = 1.0
    for _ in range(3):
        started = time.thread_time()
        decide(environ)
        best = min(best, time.thread_time() - started)
        if best < 0.005:
            break
    return best


@pytest.mark.parametrize("name", READ)
def test_head_of_any_shape_costs_little(name: str) -> None:
    for text in shapes():
        environ = {**HANDSHAKE, name: text}
        if name == "HTTP_HOST":
            environ["HTTP_ORIGIN"] = f"http://{text}"
        assert seconds(environ) < 0.01, (text[:40], len(text))


def test_head_of_several_shapes_costs_little() -> None:
    rng, texts = random.Random(19), shapes()
    for _ in range(300):
        names = rng.sample(READ, rng.randint(2, len(READ)))
        parts = [rng.choice(texts)[: SIZE // len(names)] for _ in names]
        assert seconds({**HANDSHAKE, **dict(zip(names, parts, strict=True))}) < 0.01


@pytest.mark.parametrize(
    ("name", "fitting", "status"),
    [
        ("HTTP_SEC_WEBSOCKET_EXTENSIONS", "a," * (MAX_LIST_ITEMS - 1), 400),
        ("HTTP_SEC_WEBSOCKET_EXTENSIONS", "a;" * (MAX_LIST_ITEMS - 1), 400),
        ("HTTP_SEC_WEBSOCKET_EXTENSIONS", "a" * MAX_LIST_SIZE, 400),
        ("HTTP_SEC_WEBSOCKET_PROTOCOL", "v1," + "a" * (MAX_LIST_SIZE - 3), 400),
        ("HTTP_CONNECTION", "upgrade," + "a" * (MAX_LIST_SIZE - 8), 426),
        ("HTTP_UPGRADE", "websocket" + "," * (MAX_LIST_ITEMS - 1), 426),
        ("HTTP_HOST", "a" * MAX_HOST_SIZE, 400),
    ],
)
def test_one_more_than_the_limit_is_refused(name: str, fitting: str, status: int) -> None:
    assert check_request({**HANDSHAKE, name: fitting}) is None
    refusal = check_request({**HANDSHAKE, name: fitting + ","})
    assert refusal is not None
    assert refusal.response.status_code == status


def test_origin_past_the_limit_is_foreign() -> None:
    host = "a." * 120 + "b"
    environ = {**HANDSHAKE, "HTTP_HOST": host, "HTTP_ORIGIN": f"https://{host}"}
    assert check_origin(environ, Settings()) is None
    scheme = "a" * (MAX_ORIGIN_SIZE - len(host))
    environ["HTTP_ORIGIN"] = f"{scheme}://{host}"
    assert check_origin(environ, Settings()) is not None


# -- what is kept ----------------------------------------------------------------------------------


def big_names(number: int) -> dict[str, Any]:
    return {f"HTTP_{number}_{'X' * SIZE}": "1"}


def many_names(number: int) -> dict[str, Any]:
    return {f"HTTP_{number}_{index}": "1" for index in range(2000)}


def big_hosts(number: int) -> dict[str, Any]:
    host = f"{number}." + "a" * SIZE
    return {"HTTP_HOST": host, "HTTP_ORIGIN": f"http://{host}"}


def big_origins(number: int) -> dict[str, Any]:
    return {"HTTP_ORIGIN": f"http://{number}." + "a" * SIZE}


def big_extensions(number: int) -> dict[str, Any]:
    return {"HTTP_SEC_WEBSOCKET_EXTENSIONS": f"a{number}" + "," * SIZE}


def long_extensions(number: int) -> dict[str, Any]:
    return {"HTTP_SEC_WEBSOCKET_EXTENSIONS": f"a{number}".ljust(MAX_LIST_SIZE, "a")}


@pytest.mark.parametrize(
    "kind", [big_names, many_names, big_hosts, big_origins, big_extensions, long_extensions]
)
def test_nothing_big_is_kept_of_heads(kind: Callable[[int], dict[str, Any]]) -> None:
    decide(HANDSHAKE)
    tracemalloc.start()
    try:
        for number in range(100):
            decide({**HANDSHAKE, **kind(number)})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20


def test_what_strangers_sent_makes_room_for_what_is_sent_again() -> None:
    """The names of the headers are shared by those who come now, whoever came before."""
    for number in range(1000):
        RequestRecord({**HANDSHAKE, f"HTTP_X_{number}": "1"})
    first, second = (RequestRecord({**HANDSHAKE, "HTTP_COOKIE": text}) for text in "ab")
    assert first._names is second._names


def test_what_is_shared_is_small_in_all() -> None:
    tracemalloc.start()
    try:
        for number in range(1000):
            names = [f"HTTP_{number}_{index}" for index in range(52)]
            RequestRecord({**HANDSHAKE, **dict.fromkeys(names, "1")})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * 2**20
