"""Fixtures of every test, and what holds for all of them.

The test process is monkey-patched, as every process with listeners is. So the independent client of
`websockets.sync` runs its threads as greenlets, and servers, clients and tests share one loop.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import Server, serving, wait_until
from support.figures import pytest_terminal_summary
from support.loud import Loud
from support.strict import pytest_make_collect_report, pytest_runtest_makereport

# pytest finds hooks by the names in this module.
__all__ = [
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
]


# No test sees the user's settings; nor its servers WSMIDDLEWARE_TEST_STRICT, which is none.
# What chooses the implementation under test stays.
for name in {name for name in os.environ if name.startswith("WSMIDDLEWARE_")}:
    if name != "WSMIDDLEWARE_SPEEDUPS":
        del os.environ[name]


#: Folders and files of tests that start processes, a browser or floods: see the marker `once`.
ONCE = {"browser", "reliability"} | {
    f"test_{name}.py"
    for name in (
        *("cli", "connect_command", "docker", "example", "gunicorn"),
        *("nginx", "programs", "tutorial", "ways"),
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what one Python is enough for."""
    for item in items:
        if ONCE & {item.path.name, item.path.parent.name}:
            item.add_marker(pytest.mark.once)


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves a websocket.json in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_connection_left(own_surroundings: None) -> Iterator[None]:
    """A test whose connections outlive it fails: there is a leak, or it forgot to close one."""
    yield
    if "wsmiddleware.info" not in sys.modules:
        return  # a test of bytes alone
    from wsmiddleware import websocket_info

    def left() -> list[str]:
        return [instance.session.id for instance in websocket_info().instances]

    wait_until(lambda: not left(), lambda: f"connections left open: {left()}")


@pytest.fixture(autouse=True)
def no_assertion_swallowed() -> Iterator[None]:
    """A test whose callbacks fail an assertion fails: the package logs it and serves on."""
    with Loud(logging.getLogger("websocket")):
        yield


@pytest.fixture
def listener_dir(tmp_path: Path) -> Callable[..., Path]:
    """`listener_dir(chat="source…")` writes listener files and gives their directory.

    The import of `WebSocketListener` need not be written each time.
    """
    directory = tmp_path / "websockets"

    def write(**sources: str) -> Path:
        directory.mkdir(exist_ok=True)
        for channel, source in sources.items():
            text = "from wsmiddleware import WebSocketListener\n" + textwrap.dedent(source)
            (directory / f"{channel}.py").write_text(text, encoding="utf-8")
        return directory

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """`serve(app)` starts a server for the length of the test; its options are `WSGIServer`'s."""
    with ExitStack() as stack:

        def start(app: Any, **options: Any) -> Server:
            server: AbstractContextManager[Server] = serving(app, **options)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def room(serve: Callable[..., Server]) -> Callable[..., Any]:
    """`room(Listener, **settings)` serves a class as the channel "test", in this process."""
    from support.room import room_maker

    return room_maker(serve)
