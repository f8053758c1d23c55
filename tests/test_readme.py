"""The README's code and commands are those of the example, of tox and of `.ci/run`."""

from __future__ import annotations

import configparser
import gc
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from greenlet import greenlet

from support import ROOT, Server, websocket_request
from wsmiddleware import WebSocketMiddleware
from wsmiddleware.config import markdown_table

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [text.strip() for language, text in BLOCKS if language == "console"]


def read_setup() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture
def hello(tmp_path: Path, serve: Callable[..., Server]) -> Server:
    """The README's listener under the README's application."""
    listener, application = PYTHON[:2]
    (tmp_path / "websockets").mkdir()
    (tmp_path / "websockets" / "hello.py").write_text(listener, encoding="utf-8")
    names: dict[str, object] = {"__name__": "app"}
    exec(application, names)
    return serve(names["app"])


def test_listener_and_application_echo(hello: Server) -> None:
    with hello.connect("/ws/hello") as ws:
        assert ws.recv(5) == "Welcome"
        ws.send("hi")
        assert ws.recv(5) == "ECHO:hi"


def test_idle_connection_costs_no_greenlet(
    serve: Callable[..., Server], listener_dir: Callable[..., Path]
) -> None:
    directory = listener_dir(quiet="class Quiet(WebSocketListener): ...")
    server = serve(WebSocketMiddleware(lambda *_: [], config=False, listeners=directory))
    with ExitStack() as stack:
        counts = []
        for _ in range(2):
            for _ in range(20):
                ws = stack.enter_context(server.socket())
                ws.sendall(websocket_request("/ws/quiet"))
                assert ws.recv(65536).startswith(b"HTTP/1.1 101 ")
            gc.collect()
            counts.append(
                sum(isinstance(item, greenlet) and not item.dead for item in gc.get_objects())
            )
    # A pool of greenlets grows once, and not by one for each connection.
    assert counts[1] - counts[0] < 10


def living_greenlets() -> int:
    gc.collect()
    return sum(isinstance(item, greenlet) and not item.dead for item in gc.get_objects())


def test_push_is_the_examples() -> None:
    view = (ROOT / "example_flask_app" / "app.py").read_text(encoding="utf-8")
    assert PYTHON[2] in view


def test_settings_are_the_table() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert markdown_table() in page


def test_test_command_is_what_continuous_integration_runs() -> None:
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_first_command_names_what_there_is() -> None:
    assert "example" in read_setup()["options.extras_require"]
    assert COMMANDS[0].startswith("pip install -e '.[example]' && cd example_flask_app && ")


def test_dependencies_are_those_of_the_package() -> None:
    wanted = read_setup()["options"]["install_requires"].split("\n")
    table = README.split("## What it depends on")[1]
    assert re.findall(r"^\| \[([\w-]+)\]", table, re.MULTILINE) == [
        line.split()[0] for line in wanted if line
    ]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
