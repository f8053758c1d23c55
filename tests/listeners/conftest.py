"""One channel under a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support import Server
from support.room import MakeRoom, Room, hello
from wsmiddleware import WebSocketListener, WebSocketMiddleware


@pytest.fixture
def room(serve: Callable[..., Server]) -> MakeRoom:
    """`room(Listener, **settings)` serves a class as the channel "test"."""

    def make(listener_class: type[WebSocketListener], **settings: Any) -> Room:
        middleware = WebSocketMiddleware(hello, config=False, **settings)
        middleware.register("test", listener_class)
        return Room(serve(middleware), middleware)

    return make
