"""docs/client.md: the Python that the page shows is what runs here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, Server, wait_until
from wsmiddleware import websocket_info
from wsmiddleware.options import ClientOptions

TEXT = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
#: The page's Python by the file that a block says it is.
BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    """The page's own, in the current directory."""
    for name, text in BLOCKS.items():
        if name.startswith("websockets/"):
            (tmp_path / "websockets").mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "app"}
    exec(BLOCKS["app.py"], names)
    return serve(names["app"])


def run(name: str, server: Server) -> dict[str, Any]:
    """One block, against this server; its names."""
    names: dict[str, Any] = {"__name__": name}
    exec(BLOCKS[name].replace("localhost:8000", f"127.0.0.1:{server.port}"), names)
    return names


def test_seeds_example_connects_sends_and_closes(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "client_listener.py").write_text(BLOCKS["client_listener.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = run("use_it.py", server)
    del sys.modules["client_listener"]
    assert not names["ws"].is_open()
    assert capsys.readouterr().out == "Connection closed\n"


def test_listener_of_the_page_keeps_messages(server: Server) -> None:
    from wsmiddleware import create_websocket_client

    listener = run("client_listener.py", server)["ClientListener"]()
    with create_websocket_client(server.ws_url("/ws/test"), listener) as ws:
        ws.send_text("x")
        wait_until(listener.get_messages)
    assert listener.get_messages() == ["x"]


def test_script_prints_what_comes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    run("script.py", server)
    assert capsys.readouterr().out == "tea 4.20\n"


def test_feed_subscribes_at_each_connection(server: Server) -> None:
    feed = run("feed.py", server)["follow"](server.ws_url("/ws/prices"))
    wait_until(lambda: feed.messages == ["tea 4.20"])
    websocket_info().instances[0].component.wsclient.close(1012)
    wait_until(lambda: feed.messages == ["tea 4.20"] * 2)
    feed.ws.disconnect()


def test_every_option_is_on_the_page() -> None:
    table = TEXT.split("## Options")[1].split("## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
             for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    assert named == {row.name for row in fields(ClientOptions)}
