"""`channel()`: a channel from anywhere, and the second copy of its file that it stands in for."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import wsmiddleware
from support import Server, wait_until
from support.apps import App, wrap
from support.room import MakeRoom
from support.threads import in_thread
from wsmiddleware import WebSocketListener, WebSocketMiddleware

CHAT = """
class Chat(WebSocketListener):
    spoken = 0

    @classmethod
    def count(cls, by):
        cls.spoken += by
        return cls.spoken
"""


class Telling(WebSocketListener):
    def on_open(self, wsclient: Any) -> int:
        return len(self.wsclients)

    def on_message(self, wsclient: Any, message: str) -> None:
        self.wsclients.broadcast(message, exclude=wsclient)


# -- channel(name) ---------------------------------------------------------------------------------


def test_channel_gives_the_very_class_that_serves_it(listener_dir: Callable[..., Path]) -> None:
    middleware = WebSocketMiddleware(App(), config=False, listeners=listener_dir(chat=CHAT))
    listener: Any = wsmiddleware.channel("chat").listener
    assert listener is middleware.registry.channels["chat"].listener_class
    assert (listener.count(2), listener.count(3)) == (2, 5)


@pytest.mark.parametrize("call", [lambda function: function(), in_thread])
def test_channel_gives_who_is_connected(room: MakeRoom, call: Callable[..., Any]) -> None:
    served = room(Telling)
    with ExitStack() as stack:
        clients = served.connect_many(stack, 3)
        assert [ws.recv(5) for ws in clients] == ["1", "2", "3"]
        wsclients = call(lambda: wsmiddleware.channel("test").wsclients)
        assert len(wsclients) == 3
        assert call(lambda: wsclients.broadcast({"a": 1})) is True
        assert [ws.recv(5) for ws in clients] == ['{"a": 1}'] * 3
    wait_until(lambda: len(wsclients) == 0)


def test_unknown_channel_is_a_lookup_error_that_names_those_there_are() -> None:
    middleware = wrap()
    with pytest.raises(LookupError, match=r"no channel 'ecco'; there are: .*echo"):
        wsmiddleware.channel("ecco")
    assert middleware is not None


def test_channel_of_several_middlewares_is_all_of_them(serve: Callable[..., Server]) -> None:
    class Older(Telling): ...

    class Newer(Telling): ...

    first, second = (serve(wrap(listener=listener)) for listener in (Older, Newer))
    with first.connect("/ws/echo") as one, second.connect("/ws/echo") as two:
        assert (one.recv(5), two.recv(5)) == ("1", "1")
        found = wsmiddleware.channel("echo")
        assert found.listener is Newer
        assert found.wsclients.size() == 2
        assert len(list(found.wsclients)) == len(found.wsclients.find(None)) == 2
        found.wsclients.broadcast("all")
        assert (one.recv(5), two.recv(5)) == ("all", "all")
        found.wsclients.group("nobody").broadcast("none")
        found.wsclients.close(4000, "both")
    assert (one.close_code, two.close_code) == (4000, 4000)


def test_listener_finds_who_is_connected_without_storing_it(room: MakeRoom) -> None:
    served = room(Telling)
    with ExitStack() as stack:
        one, two = served.connect_many(stack, 2)
        assert (one.recv(5), two.recv(5)) == ("1", "2")
        one.send("hi")
        assert two.recv(5) == "hi"
        with pytest.raises(TimeoutError):
            one.recv(0.05)


# -- the second copy -------------------------------------------------------------------------------


@pytest.fixture
def importable(
    listener_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of listeners, importable by its name as it is beside an application."""
    directory = listener_dir(talk=CHAT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(directory)
    for name in ("websockets.talk", "talk"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return directory


def load(directory: Path) -> WebSocketMiddleware:
    return WebSocketMiddleware(App(), config=False, listeners=directory)


def imported(directory: Path, how: str) -> None:
    if how == "folder":  # what `from websockets.talk import Talk` does without the distribution
        spec = importlib.util.spec_from_file_location("websockets.talk", directory / "talk.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["websockets.talk"] = module
        spec.loader.exec_module(module)
    else:
        importlib.import_module("talk")


@pytest.mark.parametrize("how", ["folder", "file"])
@pytest.mark.parametrize("is_first", [True, False])
def test_second_copy_of_a_listeners_file_is_a_warning(
    importable: Path, caplog: pytest.LogCaptureFixture, how: str, is_first: bool
) -> None:
    with caplog.at_level(logging.WARNING, "websocket"):
        if is_first:
            imported(importable, how)
            assert not caplog.records
        middleware = load(importable)
        if not is_first:
            assert not caplog.records
            imported(importable, how)
    [told] = [record.getMessage() for record in caplog.records]
    assert str(importable / "talk.py") in told
    assert 'channel("talk").listener' in told
    assert middleware is not None


def test_files_of_the_folder_and_classes_from_code_are_no_copies(
    listener_dir: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    base = "class Base(WebSocketListener): pass\n"
    directory = listener_dir(
        _base=base, one="from ._base import Base\nclass One(Base): pass\n", two=CHAT
    )
    with caplog.at_level(logging.WARNING, "websocket"):
        middlewares = load(directory), load(directory)
        type("Here", (WebSocketListener,), {})
        exec("class Nowhere(Base): pass", {"Base": WebSocketListener})
    assert not caplog.records
    assert len(middlewares) == 2


def test_file_that_a_sibling_imports_is_there_once(listener_dir: Callable[..., Path]) -> None:
    directory = listener_dir(
        aloud="from .chat import Chat\nclass Aloud(WebSocketListener): other = Chat\n", chat=CHAT
    )
    channels = load(directory).registry.channels
    aloud: Any = channels["aloud"].listener_class
    assert aloud.other is channels["chat"].listener_class
