"""What the pages of docs/ quote is what there is: log lines, code, commands and files."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import wsmiddleware
from support import ROOT, Server
from wsmiddleware import WebSocketMiddleware
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


def test_every_page_is_in_the_table_of_contents() -> None:
    pages = {file.stem for file in DOCS.glob("*.md")} - {"index"}
    contents = read("index").split(":maxdepth: 1")[1].split("```")[0].split()
    assert sorted(contents) == sorted(pages)


def test_systemd_starts_what_the_readme_starts() -> None:
    unit = (DOCS / "deployment" / "live.service").read_text(encoding="utf-8")
    assert "gunicorn -k wsmiddleware.gunicorn.GeventWebSocketWorker" in unit
