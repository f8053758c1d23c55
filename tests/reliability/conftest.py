"""A server in a process of its own, that hostile peers may not bring down; and one in this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import Process
from support.servers import serve_by, write_app

Serve = Callable[..., Process]

APP = """
    import gevent
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    app = WebSocketMiddleware(page, config=False, {settings})
"""

ECHO = """
    class Echo(WebSocketListener):
        def on_message(self, wsclient, message):
            return message
"""


@pytest.fixture(autouse=True)
def servers_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """coverage makes a server several times slower: it is not for it to keep these bounds."""
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve_app(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`serve_app(listener, way="run", **settings)` serves a channel, ``test``."""
    with ExitStack() as stack:

        def start(
            listener: str = ECHO,
            *,
            way: str = "run",
            options: Sequence[str] = (),
            **settings: object,
        ) -> Process:
            text = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            folder = write_app(tmp_path, APP.format(settings=text), test=listener)
            return stack.enter_context(serve_by(way, folder, options))

        yield start
