"""What the pages of docs/ quote is what there is: log lines, code, commands and files."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wsmiddleware
from support import ROOT, Server, running
from support.servers import WAYS, environment, serve_by, write_app
from wsmiddleware import WebSocketListener, WebSocketMiddleware
from wsmiddleware.listeners.clients import WsClient, WsClients
from wsmiddleware.listeners.session import Session

DOCS = ROOT / "docs"
SOURCE = "".join(file.read_text("utf-8") for file in sorted((ROOT / "wsmiddleware").rglob("*.py")))
#: What the code says to the log: literals that stand one after the other are one.
SAID = re.sub(r'"\s+f?"', "", SOURCE)


def read(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(page), re.DOTALL)


def log_lines() -> list[str]:
    return re.findall(r"^`(.*)`\n: ", read("troubleshooting"), re.MULTILINE)


@pytest.mark.parametrize("line", log_lines())
def test_log_line_is_one_that_the_code_writes(line: str) -> None:
    fragments = [part.strip() for part in re.split(r"[…:'\d]+", line)]
    found = [part for part in fragments if len(part) > 5]
    assert found
    for part in found:
        assert part in SAID, part


def test_there_are_log_lines() -> None:
    assert len(log_lines()) > 15


def test_echo_of_those_who_move_echoes(
    tmp_path: Path, serve: Callable[..., Server], listener_dir: Callable[..., Path]
) -> None:
    [echo] = [block for block in blocks("moving", "python") if "websockets/echo.py" in block]
    server = serve(
        WebSocketMiddleware(lambda *_: [], config=False, listeners=listener_dir(echo=echo))
    )
    with server.connect("/ws/echo") as ws:
        ws.send("hi")
        assert ws.recv(5) == "hi"


def test_application_of_those_who_move_ends_as_wsgi_wants() -> None:
    [old] = [
        block for block in blocks("moving", "python") if "environ[" in block and "def app" in block
    ]
    names: dict[str, Any] = {}
    exec(old, names)
    heard: list[str] = []
    socket = SimpleNamespace(receive=iter(["hi", None]).__next__, send=heard.append)
    assert list(names["app"]({"wsgi.websocket": socket}, None)) == []
    assert heard == ["hi"]


def write_blocks(page: str, part: str, folder: Path) -> Path:
    """The files of a part of a page: what a block of Python says in its first line that it is."""
    text = read(page).split(f"### {part}\n")[1].split("\n## ")[0]
    for name, block in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(block, encoding="utf-8")
    return folder


@pytest.mark.once
def test_application_of_several_files_shares_what_it_should(tmp_path: Path) -> None:
    folder = write_blocks("frameworks", "An application of several files", tmp_path)
    with serve_by("run", folder, app="app:create_app()") as process:
        with process.server.connect("/ws/notes") as ws:
            ws.send("milk")
            assert ws.recv(5) == "app: milk"
        assert json.loads(process.server.get("/notes").text) == ["milk"]


@pytest.mark.once
def test_what_the_page_warns_of_ends_the_start_as_it_says(tmp_path: Path) -> None:
    app = """
        from wsmiddleware import WebSocketMiddleware
        app = WebSocketMiddleware(lambda environ, start_response: [])
        db = object()
    """
    write_app(tmp_path, app, notes="from app import db\nclass Notes(WebSocketListener): ...")
    command = [sys.executable, "-m", "wsmiddleware", "check", "app:app"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    [quoted] = re.findall(r'"(cannot import name .*?)"', read("frameworks"))
    assert quoted in result.stdout + result.stderr


@pytest.mark.once
def test_django_serves_static_files(tmp_path: Path) -> None:
    folder = write_blocks("frameworks", "Static files", tmp_path)
    settings = """
        from django.conf import settings
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="key",
            INSTALLED_APPS=["django.contrib.staticfiles"], STATIC_URL="static/",
            STATICFILES_DIRS=["files"],
        )
        urlpatterns = []
    """
    (folder / "files").mkdir()
    (folder / "files" / "admin.css").write_text("body {}", encoding="utf-8")
    file = folder / "wsgi.py"
    file.write_text(textwrap.dedent(settings) + file.read_text("utf-8"), encoding="utf-8")
    with serve_by("run", folder, app="wsgi:app") as process:
        assert process.server.get("/static/admin.css").text == "body {}"


@pytest.mark.once
def test_environment_of_the_unit_is_what_the_example_reads(tmp_path: Path) -> None:
    lines = (DOCS / "deployment" / "live.env").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert values["SECRET_KEY"] == ""  # refused, until it is filled in
    env = {**environment(tmp_path), **values, "SECRET_KEY": "given"}
    folder = shutil.copytree(ROOT / "example_flask_app", tmp_path / "example")
    host = {"Host": "live", "X-Forwarded-Host": "example.com", "X-Forwarded-Proto": "https"}
    form = {**host, "Content-Type": "application/x-www-form-urlencoded"}
    with running([*WAYS["run"], "app:app"], cwd=folder, env=env) as process:
        answer = process.server.request("POST", "/name", "name=Ann", form)
        assert "; Secure;" in answer.headers["Set-Cookie"]
        names = {name for name in values if not name.startswith("WSMIDDLEWARE_")}
        assert [name for name in names if name not in (folder / "app.py").read_text("utf-8")] == []
        assert handshake_status(process.server, host, "https://example.com") == 101
        assert handshake_status(process.server, host, "https://other.example") == 403


def handshake_status(server: Server, headers: dict[str, str], origin: str) -> int:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\n{key}Origin: {origin}\r\n\r\n"
    with server.socket() as sock:
        sock.sendall(f"GET /ws/test HTTP/1.1\r\n{lines}{upgrade}".encode())
        return int(sock.recv(1024).split()[1])


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("chat", True), ("_chat", False), (".chat", False), ("my-chat", False), ("sub/chat", False)],
)
def test_what_the_reference_says_is_no_channel_is_none(
    tmp_path: Path, name: str, is_one: bool
) -> None:
    file = tmp_path / "websockets" / f"{name}.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from wsmiddleware import WebSocketListener\nclass Chat(WebSocketListener): ...\n"
    )
    middleware = WebSocketMiddleware(lambda *_: [], config=False, listeners=tmp_path / "websockets")
    assert bool(middleware.registry.channels) == is_one


@pytest.mark.parametrize("page", sorted(file.stem for file in DOCS.glob("*.md")))
def test_code_can_be_compiled(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", sorted(file.stem for file in DOCS.glob("*.md")))
def test_links_and_files_lead_somewhere(page: str) -> None:
    text = read(page)
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (DOCS / target).exists(), target
    for target in re.findall(r"\{literalinclude\} (\S+)", text):
        assert (DOCS / target).exists(), target


def members(heading: str) -> set[str]:
    """What the reference names in the first column of that part's table, arguments aside."""
    part = read("api").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\|(.*?)\|", part, re.MULTILINE)
    return {re.split(r"[( ]", code)[0] for row in rows for code in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize(
    ("heading", "cls", "others"),
    [
        ("`wsclient`", WsClient, {"get_session"}),
        ("`wsclients`", WsClients, {"len"}),
        ("`session`", Session, {"attach", "environ", "to_dict"}),
    ],
)
def test_reference_names_what_there_is(heading: str, cls: type, others: set[str]) -> None:
    made = set(re.findall(r"^ +self\.([a-z]\w*)\b.* = ", inspect.getsource(cls), re.MULTILINE))
    there = {name for name in vars(cls) if not name.startswith("_")} | made
    assert members(heading) - others == there - others


def test_reference_names_every_public_name() -> None:
    assert [name for name in wsmiddleware.__all__ if f"`{name}" not in read("api")] == []


def imports() -> set[tuple[str, str]]:
    """Module and name of what the pages import of this package."""
    found = set()
    for page in sorted(DOCS.glob("*.md")):
        for block in blocks(page.stem, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsm"):
                    found |= {(node.module or "", alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize(("module", "name"), sorted(imports()))
def test_what_the_pages_import_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", re.findall(r"Its class is `(\w+)`", read("api")))
def test_class_that_the_reference_names_is_a_public_name(name: str) -> None:
    assert name in wsmiddleware.__all__
    assert inspect.isclass(getattr(wsmiddleware, name))


def test_names_that_are_imported_from_elsewhere_are_there() -> None:
    part = read("api").split("## The server\n")[1]
    names = re.findall(r"^\| `(\w+)\(", part, re.MULTILINE)
    assert names == ["WSGIServer", "serve"]
    assert set(names) <= set(importlib.import_module("wsmiddleware.server").__all__)


def test_reference_names_the_methods_of_a_middleware() -> None:
    part = read("api").split("## The middleware\n")[1].split("\n## ")[0]
    made = {name for name, value in vars(WebSocketMiddleware).items() if inspect.isroutine(value)}
    public = {name for name in made if not name.startswith("_")} - {"shutdown"}
    assert {name for name in public if f"middleware.{name}" not in part} == set()


def test_reference_names_the_attributes_of_a_listener() -> None:
    part = read("api").split("## A listener\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", part.split("| attribute of the class | is |")[1]))
    attributes = {name for name in vars(WebSocketListener) if not name.startswith("_")}
    assert attributes <= named
    assert set(WebSocketListener.__annotations__) - attributes == {
        name for name in ("channel", "session", "wsclient", "wsclients") if f"`self.{name}`" in part
    }


def test_every_page_is_in_the_table_of_contents() -> None:
    pages = {file.stem for file in DOCS.glob("*.md")} - {"index"}
    contents = read("index").split(":maxdepth: 1")[1].split("```")[0].split()
    assert sorted(contents) == sorted(pages)


def test_systemd_starts_what_the_readme_starts() -> None:
    unit = (DOCS / "deployment" / "live.service").read_text(encoding="utf-8")
    assert "gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker" in unit
