from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsmiddleware.exceptions import ListenerError
from wsmiddleware.listeners.base import WebSocketListener
from wsmiddleware.listeners.loader import listener_files, load_file

HEAD = "from wsmiddleware.listeners.base import WebSocketListener\n"
CHAT = HEAD + "class Chat(WebSocketListener): pass\n"


@pytest.fixture(autouse=True)
def unchanged_import_state() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("wsmiddleware_listeners"):
            del sys.modules[name]


def write(directory: Path, name: str, source: str = CHAT) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source, "utf-8")
    return file


def failure(file: Path) -> str:
    with pytest.raises(ListenerError) as info:
        load_file(file)
    return str(info.value).removeprefix(f"{file}")


def stems(directory: Path) -> list[str]:
    return [file.stem for file in listener_files(str(directory))]


# Which class


def test_the_one_subclass_is_the_listener_whatever_its_name(tmp_path: Path) -> None:
    cls = load_file(write(tmp_path, "room.py"))
    assert cls.__name__ == "Chat"
    assert issubclass(cls, WebSocketListener)


def test_imported_listeners_and_other_classes_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, "_common.py", HEAD + "class Base(WebSocketListener): pass\n")
    source = "from ._common import Base\nclass Helper: pass\nclass Room(Base): pass\n"
    assert load_file(write(tmp_path, "chat.py", source)).__name__ == "Room"


def test_alias_of_the_listener_is_no_second_one(tmp_path: Path) -> None:
    assert load_file(write(tmp_path, "x.py", CHAT + "Alias = Chat\n")).__name__ == "Chat"


def test_values_that_only_look_like_classes_are_left_alone(tmp_path: Path) -> None:
    source = CHAT + (
        "Numbers = list[int]\n"
        "class _Proxy:\n"
        "    @property\n"
        "    def __class__(self): raise RuntimeError('working outside of context')\n"
        "proxy = _Proxy()\n"
    )
    assert load_file(write(tmp_path, "x.py", source)).__name__ == "Chat"


@pytest.mark.parametrize("stem", ["chat_room", "chatroom", "ChatRoom", "CHAT_ROOM_"])
def test_of_several_the_one_called_like_the_file_is_taken(tmp_path: Path, stem: str) -> None:
    source = CHAT + "class ChatRoom(Chat): pass\n"
    assert load_file(write(tmp_path, f"{stem}.py", source)).__name__ == "ChatRoom"


def test_several_with_none_called_like_the_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "lobby.py", CHAT + "class Room(Chat): pass\n")
    assert failure(file) == (
        ": defines several listeners, none called like the file: Chat, Room"
    )  # fmt: skip


def test_several_called_like_the_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "chat.py", CHAT + "class CHAT(Chat): pass\n")
    assert failure(file) == (
        ": defines several listeners, more than one called like the file: Chat, CHAT"
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", "no class"),
        ("class A: pass\nclass B: pass\n", "A, B"),
        (HEAD, "no class"),
        (HEAD + "from ._common import Base\n", "no class; imported: Base"),
    ],
)
def test_file_without_a_listener_is_refused_with_what_it_has(
    tmp_path: Path, source: str, found: str
) -> None:
    write(tmp_path, "_common.py", HEAD + "class Base(WebSocketListener): pass\n")
    file = write(tmp_path, "chat.py", source)
    assert failure(file) == f": defines no subclass of WebSocketListener (found: {found})"


# How a file is loaded


def test_module_has_a_private_name_where_pickle_finds_it(tmp_path: Path) -> None:
    cls = load_file(write(tmp_path, "chat.py"))
    package, _, channel = cls.__module__.rpartition(".")
    assert package.startswith("wsmiddleware_listeners.d") and channel == "chat"
    assert sys.modules[cls.__module__].__file__ == str(tmp_path / "chat.py")
    assert type(pickle.loads(pickle.dumps(cls()))) is cls
    assert pickle._loads(pickle._dumps(cls)) is cls  # type: ignore[attr-defined]


def test_equal_names_in_two_directories_are_two_modules(tmp_path: Path) -> None:
    one = load_file(write(tmp_path / "a", "chat.py"))
    two = load_file(write(tmp_path / "b", "chat.py"))
    assert one.__module__ != two.__module__


def test_file_is_run_anew_each_time_and_leaves_no_cache(tmp_path: Path) -> None:
    file = write(tmp_path, "chat.py", CHAT + "VERSION = 1\n")
    first = load_file(file)
    stat = file.stat()
    write(tmp_path, "chat.py", CHAT + "VERSION = 2\n")
    # As a second save within the same second, at the same size: stale bytecode would say 1.
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load_file(file)
    assert first is not second
    assert sys.modules[second.__module__].VERSION == 2
    assert os.listdir(tmp_path) == ["chat.py"]


def test_dataclass_and_annotations_find_their_module(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\n"
        "import dataclasses, typing\n" + CHAT + "@dataclasses.dataclass(slots=True)\n"
        "class Point:\n    x: typing.ClassVar[Chat]\n    y: int\n"
        "HINTS = typing.get_type_hints(Point)\n"
    )
    cls = load_file(write(tmp_path, "chat.py", source))
    assert sys.modules[cls.__module__].HINTS["y"] is int


def test_directory_called_websockets_hides_no_distribution(tmp_path: Path) -> None:
    source = "import websockets\n" + CHAT + "WHERE = websockets.__file__\n"
    cls = load_file(write(tmp_path / "websockets", "chat.py", source))
    assert not sys.modules[cls.__module__].WHERE.startswith(str(tmp_path))


# Broken files


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef f(:\n", ", line 2: SyntaxError: invalid syntax"),
        ("x = 1\n\ny = missing\n", ", line 3: NameError: name 'missing' is not defined"),
        ("def f():\n    raise KeyError('k')\nf()\n", ", line 2: KeyError: 'k'"),
        ("import nowhere_to_be_found", ", line 1: ModuleNotFoundError: No module named 'nowhere"),
        ("raise SystemExit", ", line 1: SystemExit"),
        ("raise SyntaxError('mine')", ", line 1: SyntaxError: mine"),
        ("raise ValueError", ", line 1: ValueError"),
        ("x = '\\ud800'.encode()", ", line 1: UnicodeEncodeError: "),
        (
            "class E(Exception):\n    def __str__(self): 1/0\nraise E\n",
            ".E: <exception str() failed>",
        ),
    ],
)
def test_broken_file_shows_line_and_cause(tmp_path: Path, source: str, message: str) -> None:
    file = write(tmp_path, "chat.py", source)
    assert message in failure(file)


def test_error_in_an_imported_file_shows_both_places(tmp_path: Path) -> None:
    helper = write(tmp_path, "_helper.py", "\n1 / 0\n")
    file = write(tmp_path, "chat.py", "\n\nfrom . import _helper\n")
    expected = f", line 3: ZeroDivisionError: division by zero (in {helper}, line 2)"
    assert failure(file) == expected


def test_syntax_error_in_an_imported_file_shows_both_places(tmp_path: Path) -> None:
    helper = write(tmp_path, "_helper.py", "\nif\n")
    file = write(tmp_path, "chat.py", "from . import _helper\n")
    assert failure(file) == f", line 1: SyntaxError: invalid syntax (in {helper}, line 2)"


def test_unreadable_and_undecodable_files_are_shown(tmp_path: Path) -> None:
    assert "FileNotFoundError" in failure(tmp_path / "gone.py")
    file = tmp_path / "chat.py"
    file.write_bytes(b"x = '\xff'\n")
    assert "SyntaxError" in failure(file)
    file.write_bytes(b"x = '\0'\n")
    assert "null byte" in failure(file)


def test_cause_is_chained_logged_and_no_module_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "websocket")
    before = set(sys.modules)
    with pytest.raises(ListenerError) as info:
        load_file(write(tmp_path, "chat.py", "1 / 0"))
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert "Traceback" in caplog.text
    assert not [name for name in set(sys.modules) - before if name.endswith(".chat")]


def test_failed_second_load_leaves_the_first_module(tmp_path: Path) -> None:
    cls = load_file(write(tmp_path, "chat.py"))
    module = sys.modules[cls.__module__]
    failure(write(tmp_path, "chat.py", "1 / 0"))
    assert sys.modules[cls.__module__] is module


def test_interrupt_while_loading_goes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_file(write(tmp_path, "chat.py", "raise KeyboardInterrupt"))


# Directories


def test_directory_gives_files_by_name(tmp_path: Path) -> None:
    for name in ("zoo.py", "chat.py", "Room2.py"):
        write(tmp_path, name)
    assert stems(tmp_path) == ["Room2", "chat", "zoo"]


def test_names_that_are_no_channels_are_not_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boom = "raise AssertionError('was run')"
    for name in ("_private.py", "__init__.py", ".hidden.py", "a-b.py", "1st.py", "x.txt", "y.pyc"):
        write(tmp_path, name, boom)
    (tmp_path / "folder.py").mkdir()
    write(tmp_path, "package/__init__.py", boom)
    assert listener_files(tmp_path) == []
    messages = [record.getMessage() for record in caplog.records]
    reason = "no channel, its name is not a Python identifier"
    assert messages == [f"{tmp_path}/{name}: {reason}" for name in ("1st.py", "a-b.py")]


def test_symlink_that_leaves_the_directory_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = write(tmp_path / "outside", "evil.py", "raise AssertionError('was run')")
    # A sibling whose name merely starts like the directory's is outside too.
    sibling = write(tmp_path / "inside2", "evil.py", "raise AssertionError('was run')")
    inside = tmp_path / "inside"
    write(inside, "chat.py")
    for name, target in [("a", outside), ("b", sibling), ("c", tmp_path / "gone.py")]:
        (inside / f"{name}.py").symlink_to(target)
    assert stems(inside) == ["chat"]
    messages = [record.getMessage() for record in caplog.records]
    reason = "no channel, it is a link that leaves the directory"
    assert messages == [f"{inside}/{name}.py: {reason}" for name in "abc"]


def test_symlinks_within_the_directory_are_channels(tmp_path: Path) -> None:
    # As Kubernetes mounts a ConfigMap: chat.py -> ..data/chat.py, ..data -> ..2024
    write(tmp_path / "mount" / "..2024", "chat.py")
    (tmp_path / "mount" / "..data").symlink_to("..2024")
    (tmp_path / "mount" / "chat.py").symlink_to("..data/chat.py")
    (tmp_path / "mount" / "other.py").symlink_to("chat.py")
    (tmp_path / "link").symlink_to("mount")
    chat, other = listener_files(tmp_path / "link")
    assert (chat.stem, other.stem) == ("chat", "other")
    assert load_file(chat) is not load_file(other)


def test_symlink_loop_is_no_channel(tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to("loop.py")
    assert listener_files(tmp_path) == []


def test_missing_directory_holds_no_channels(tmp_path: Path) -> None:
    assert listener_files(tmp_path / "gone") == []


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "chat.py")
    with pytest.raises(ListenerError, match=r"chat\.py: cannot be read: Not a directory"):
        listener_files(file)
