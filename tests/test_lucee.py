"""The seed's examples as docs/lucee.md translates them: what the page shows is what runs here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, Server, wait_until
from wsmiddleware import WebSocketMiddleware, websocket_info

TEXT = (ROOT / "docs" / "lucee.md").read_text(encoding="utf-8")
#: The page's Python by the file that a block says it is.
BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def server(tmp_path: Path, serve: Callable[..., Server]) -> Server:
    for name, source in BLOCKS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    return serve(WebSocketMiddleware(lambda environ, start_response: [], config=False))


def test_component_with_every_callback_opens_and_closes(server: Server) -> None:
    with server.connect("/ws/component") as ws:
        ws.send("Hello, Lucee Extension!")
    assert ws.close_code == 1000


def test_count_broadcasts_to_all_clients(server: Server) -> None:
    with server.connect("/ws/count") as first:
        assert first.recv(5) == "There are now 1 connections"
        with server.connect("/ws/count") as second:
            assert second.recv(5) == "There are now 2 connections"
            assert first.recv(5) == "There are now 2 connections"


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("one", "You are connected to wsmiddleware"),
        ("welcome", "Welcome to the test websocket channel"),
        ("own", "Hello, wsmiddleware!"),
    ],
)
def test_client_is_greeted(server: Server, channel: str, message: str) -> None:
    with server.connect(f"/ws/{channel}") as ws:
        assert ws.recv(5) == message


def test_thread_pushes_while_somebody_is_connected(server: Server) -> None:
    with server.connect("/ws/feed") as ws:
        times = [json.loads(ws.recv(5))["time"] for _ in range(2)]
    assert times[1] - times[0] > 0.9
    wait_until(lambda: "thread_data_queue" not in thread_names(), timeout=5)


def thread_names() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


def test_class_method_is_called_from_anywhere(server: Server) -> None:
    calling: dict[str, Any] = {}
    exec(BLOCKS["notify.py"], calling)
    calling["notify"]("to nobody")
    with server.connect("/ws/notes") as ws:
        wait_until(lambda: websocket_info().instances)
        calling["notify"]("hello")
        assert ws.recv(5) == "hello"


def test_push_reaches_who_has_the_role(server: Server) -> None:
    pushing: dict[str, Any] = {}
    exec(BLOCKS["push.py"], pushing)
    item = json.dumps({"data": {"role": "editor"}})
    pushing["push"](item)  # nobody is there

    with ExitStack() as stack:
        editor = stack.enter_context(server.connect("/ws/test?role=reader&role=editor"))
        reader = stack.enter_context(server.connect("/ws/test?role=reader"))
        stranger = stack.enter_context(server.connect("/ws/count"))
        components = [instance.component for instance in websocket_info().instances]
        wait_until(lambda: sum(hasattr(component, "roles") for component in components) == 2)
        pushing["push"](item)
        assert editor.recv(5) == item
        assert stranger.recv(5) == "There are now 1 connections"
        for quiet in (reader, stranger):
            with pytest.raises(TimeoutError):
                quiet.recv(0.05)
