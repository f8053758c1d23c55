"""The README's code and commands are those of the example, of tox and of `.ci/run`."""

from __future__ import annotations

import configparser
import gc
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from greenlet import greenlet

from support import PATIENCE, ROOT, Process, Server, websocket_request
from support.servers import WAYS, environment, serve_by
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
def hello(tmp_path: Path) -> Iterator[Process]:
    """The README's two files in a folder, served by its command, but on a port that is free."""
    for block in PYTHON:
        first, text = block.split("\n", 1)
        file = tmp_path / first.removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert " ".join([*WAYS["run"][:2], "app:app"]) in command("run app:app")
    with serve_by("run", tmp_path) as process:
        yield process


def command(words: str) -> str:
    """The one command that says so."""
    [found] = [each for each in COMMANDS if words in each and "\n" not in each and "&" not in each]
    return found


def test_listener_is_talked_to_with_the_command(hello: Process, tmp_path: Path) -> None:
    words = command(" connect ").replace(":8000", f":{hello.server.port}").split()
    assert words[0] == "python"
    result = subprocess.run(
        [sys.executable, *words[1:]],
        input="hi\n",
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (result.returncode, result.stdout) == (0, "Welcome\nECHO:hi\n")


def test_push_reaches_who_is_connected(hello: Process) -> None:
    _, _, body, url = command("curl ").split()
    path = url.removeprefix("http://127.0.0.1:8000")
    with hello.server.connect("/ws/hello") as ws:
        assert ws.recv(5) == "Welcome"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert hello.server.request("POST", path, body, form).status == 204
        assert ws.recv(5) == body.removeprefix("text=")


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


def test_what_a_listener_can_do_is_there() -> None:
    part = README.split("## What a listener can do")[1].split("\n## ")[0]
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = {
        name for code in re.findall(r"`([^`]+)`", part) for name in re.findall(r"(\w+)\(", code)
    }
    assert {"on_handshake", "send", "broadcast", "publish", "join", "websocket_info"} <= names
    assert [name for name in sorted(names) if name not in reference] == []


#: What stands in the README's table, and the row of docs/benchmarks.md that it comes from.
COMPARED = {
    "processor time to echo 32 bytes, µs": "text, 32 B, 100, 1",
    "processor time for each of 1,000 clients of a broadcast, µs": "plain, 128 B, 1000",
    "memory of an idle connection, KiB": "memory of an idle connection, KiB",
}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the first row its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[[c.strip() for c in row.split("|")[1:-1]] for row in t.splitlines()] for t in found]


def test_figures_are_those_of_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    [[head, _, *rows]] = [table for table in tables(README) if "Flask-Sock" in table[0]]
    assert [row[0] for row in rows] == list(COMPARED)
    for name, *figures in rows:
        their_head, their_row = next(
            (table[0], row)
            for table in tables(benchmarks)
            for row in table
            if row[0] == COMPARED[name]
        )
        for peer, figure in zip(head[1:], figures, strict=True):
            titles = {peer, f"{peer} + gevent", peer.replace(" on ", " + ")}
            [column] = [i for i, title in enumerate(their_head) if title in titles]
            assert their_row[column] == figure, (name, peer)


def test_settings_are_the_table() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert markdown_table() in page


def test_test_command_is_what_continuous_integration_runs() -> None:
    [tests] = [each for each in COMMANDS if each.endswith("tox")]
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


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
