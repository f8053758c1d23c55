"""The order of the rooms: imports point downwards only, and each optional package has one door."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support import ROOT
from support.twins import twin_of
from wsmiddleware import speedups
from wsmiddleware.listeners.invoke import Member
from wsmiddleware.net.connection import Connection
from wsmiddleware.net.outbox import Outbox
from wsmiddleware.net.pool import Worker, WorkerPool
from wsmiddleware.net.reactor import Reactor
from wsmiddleware.protocol.prepared import PreparedMessage

PACKAGE = ROOT / "wsmiddleware"
FILES = sorted(PACKAGE.rglob("*.py"))
EXTENSION = PACKAGE / "_extension"

#: From the lowest to the highest; "" is the package itself. A new module is given its place here.
ORDER = """
    _speedups exceptions values log django flask speedups settings config metrics
    protocol net backplane node v1 listeners
    publisher registry policy upgrade info admission middleware options upkeep client
    "" body reading bounds console handler reloader server forwarding gunicorn
    connect application sockets cli __main__
""".replace('""', "_").split()

#: Who alone may import it.
DOORS = {
    "django": "django",
    "flask": "flask",
    "gunicorn": "gunicorn",
    "geventwebsocket": "handler",
    "redis": "backplane.line",
    "hiredis": "backplane.line",
}

#: What the engine must not know of: sockets, clocks, threads.
NOT_IN_PROTOCOL = {
    "asyncio",
    "datetime",
    "select",
    "selectors",
    "socket",
    "ssl",
    "threading",
    "time",
}


def name_of(file: Path) -> str:
    """`protocol.engine` for wsmiddleware/protocol/engine.py, `protocol.` for its __init__.py."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")


def imports_of(file: Path, *, has_types: bool = False) -> Iterator[str]:
    """The absolute names that a file imports at run time, wherever in it the import stands.

    With `has_types` those too that only a type checker sees.
    """
    package = ["wsmiddleware", *name_of(file).split(".")[:-1]]
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_for_types and not has_types:
            waiting.extend(node.orelse)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def own_imports_of(file: Path, *, has_types: bool = False) -> set[str]:
    """The modules of this package that a file imports."""
    found = set()
    # The C extension has no file of Python; it imports nothing of ours.
    known = {name_of(other).rstrip(".") for other in FILES} | {"_speedups"}
    for name in imports_of(file, has_types=has_types):
        if name.split(".")[0] == "wsmiddleware":
            inner = name.removeprefix("wsmiddleware").removeprefix(".")
            found.add(inner if inner in known else inner.rpartition(".")[0])
    return found


def rank(module: str) -> int:
    """How high the module's room lies."""
    room = module.split(".")[0] or "_"
    assert room in ORDER, f"give {module} its place in ORDER"
    return ORDER.index(room)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_downwards(file: Path) -> None:
    above = {name for name in own_imports_of(file) if rank(name) > rank(name_of(file))}
    assert not above, f"{name_of(file)} imports {above}, which lies above it"


def test_order_names_no_room_that_is_not_there() -> None:
    rooms = {name_of(file).split(".")[0] or "_" for file in FILES}
    assert set(ORDER) == rooms | {"_speedups"}


def test_c_extension_imports_nothing() -> None:
    # What it needs of a module is handed to it: an import in C is one that no test here would see.
    text = "".join(file.read_text(encoding="utf-8") for file in EXTENSION.glob("*.[ch]"))
    assert "PyImport" not in text


#: Whose methods the C code calls, by the names in stream.h.
METHODS: dict[str, tuple[type, ...]] = {
    "_run_ready": (Reactor,),
    "answer": (Member,),
    "broken": (Connection,),
    "encode": (Connection,),
    "enqueue": (Connection, Outbox),
    "failed": (Member,),
    "flush": (Outbox,),
    "flush_soon": (Connection,),
    "forget_locals": (Worker,),
    "lost": (Connection,),
    "pause_if_needed": (Connection,),
    "read": (Connection,),
    "reply_lost": (Connection,),
    "submit": (WorkerPool,),
    "take": (Connection,),
    "try_send": (Connection,),
    "wire": (PreparedMessage,),
    "work": (Connection,),
    "write": (Outbox,),
}

#: Whose slots it takes from where they lie.
SLOTS: dict[str, tuple[type, ...]] = {
    "connection": (Member,),
    "deadline": (Worker,),
    "greenlet": (Worker,),
    "is_busy": (Outbox,),
    "is_fresh": (Worker,),
    "links": (Worker,),
    "size": (Outbox,),
}


def listed_in_c(macro: str) -> set[str]:
    """The names in a list of stream.h."""
    text = (EXTENSION / "stream.h").read_text(encoding="utf-8")
    found = re.search(rf"#define {macro}\(X\) ((?:.*\\\n)*.*)", text)
    assert found
    return set(re.findall(r'X\(\w+, "(\w+)"\)', found[1]))


def test_each_method_that_c_calls_is_there() -> None:
    assert set(METHODS) == listed_in_c("FOR_EACH_NAME"), "say in METHODS whose it is"
    without = METHODS if speedups.Ready is not None else METHODS.keys() - {"_run_ready"}
    for name in without:
        for cls in METHODS[name]:
            found = getattr(cls, name, None)
            assert callable(found) or inspect.ismemberdescriptor(found), f"{cls.__name__}.{name}"


def test_each_slot_that_c_looks_into_is_one() -> None:
    assert set(SLOTS) == listed_in_c("FOR_EACH_SLOT"), "say in SLOTS whose it is"
    for name, classes in SLOTS.items():
        for cls in classes:
            found = inspect.getattr_static(cls, name, None)
            assert inspect.ismemberdescriptor(found), f"{cls.__name__}.{name} is no slot"


def public_names(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


if speedups.Stream is not None:

    @pytest.mark.parametrize("name", ["Stream", "Ready"])
    def test_stream_in_c_and_its_twin_have_the_same_names(name: str) -> None:
        in_c, in_python = (getattr(twin_of(each), name) for each in ("c", "python"))
        assert in_c.__module__ != in_python.__module__
        for each in public_names(in_c) | public_names(in_python):
            kinds = [callable(getattr(twin, each, None)) for twin in (in_c, in_python)]
            assert hasattr(in_c, each) == hasattr(in_python, each), f"{name}.{each} is in one alone"
            assert kinds[0] == kinds[1], f"{name}.{each} is a method in one alone"


@pytest.mark.parametrize("has_types", [False, True])
def test_no_module_imports_itself_in_a_circle(has_types: bool) -> None:
    # For a type of a room above, a `Protocol` of one's own says what is asked of it.
    graph = {name_of(file).rstrip("."): own_imports_of(file, has_types=has_types) for file in FILES}
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", DOORS)
def test_optional_package_is_imported_by_one_file(package: str) -> None:
    users = {
        name_of(file)
        for file in FILES
        if any(name.split(".")[0] == package for name in imports_of(file))
    }
    assert users <= {DOORS[package]}


def test_protocol_knows_bytes_only() -> None:
    found = set()
    for file in (PACKAGE / "protocol").glob("*.py"):
        found |= {name.split(".")[0] for name in imports_of(file)}
    assert found <= sys.stdlib_module_names | {"wsmiddleware"}
    assert not found & NOT_IN_PROTOCOL


#: What the rooms that know neither a connection nor a channel may know of this package.
CLUSTER = {
    "backplane": {"exceptions", "log", "backplane"},
    "node": {"exceptions", "log", "backplane", "node"},
    "v1": {"backplane", "node", "v1"},
}


@pytest.mark.parametrize("room", CLUSTER)
def test_room_of_the_cluster_knows_no_connection_and_no_channel(room: str) -> None:
    for file in (PACKAGE / room).glob("*.py"):
        assert {name.split(".")[0] for name in own_imports_of(file)} <= CLUSTER[room], file
        # Nor for a type: what it does not know it does not name.
        assert "TYPE_CHECKING" not in file.read_text(encoding="utf-8"), file


def test_backplane_imports_no_gevent() -> None:
    # A process that serves nobody publishes too, in threads of its own.
    for file in (PACKAGE / "backplane").glob("*.py"):
        assert not {"gevent", "greenlet"} & {name.split(".")[0] for name in imports_of(file)}, file


def test_middleware_and_handler_meet_only_in_the_environ() -> None:
    assert "middleware" not in own_imports_of(PACKAGE / "handler.py")
    assert "handler" not in own_imports_of(PACKAGE / "middleware.py")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_module_says_what_it_is_and_what_it_offers(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    code = [ast.unparse(node).split("=")[0].strip() for node in tree.body[1:]]
    if file.stem not in ("__init__", "__main__"):
        assert code[0] == "from __future__ import annotations"
        assert any(line.startswith("__all__") for line in code)


# -- what sees a peer's bytes ----------------------------------------------------------------------

#: Regular expressions and caches for settings, URLs and classes, which no peer writes.
NO_PEERS = {
    "backplane.address._HOST",
    "backplane.keys._PREFIX",
    "backplane.trouble._CODE",
    "config._NOT_OURS",
    "config._directory",
    "listeners.contract._URL",
    "log._USERINFO",
    "middleware._PREFIX",
    "net.dial._default_context",
    "net.reactor._keep_freed_memory",
    "protocol.opening._COOKIE_VALUE",
    "protocol.opening._TOKEN",
    "protocol.opening._VALUE",
    "protocol.uri._HOST",
    "protocol.uri._PORT",
    "protocol.uri._URL",
    "registry._shape",
    "registry.get_converter",
    "settings.key",
    "settings.markdown_table",
    "values._TOKEN",
    "values._read_number",
}

#: What of `re` and `functools` makes a pattern or a cache.
MAKERS = {
    "re": {"compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub"},
    "functools": {"cache", "lru_cache"},
}


def makers_in(tree: ast.AST, place: str = "") -> Iterator[str]:
    """The names at module level, or the functions, with which a pattern or a cache is made."""
    for node in ast.iter_child_nodes(tree):
        inner = place
        if isinstance(node, ast.FunctionDef):
            inner = node.name
        elif isinstance(node, ast.Assign) and not place:
            inner = ast.unparse(node.targets[0])
        elif isinstance(node, ast.Attribute):
            module = ast.unparse(node.value)
            if node.attr in MAKERS.get(module, ()):
                yield place
        yield from makers_in(node, inner)


def test_what_sees_a_peers_bytes_is_known_to_be_linear_or_bounded() -> None:
    made = {
        f"{name_of(file)}.{place}"
        for file in FILES
        for place in makers_in(ast.parse(file.read_text(encoding="utf-8")))
    }
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([a-z_.]+\.\w+)` \|", page, re.MULTILINE))
    assert made - told == NO_PEERS, (
        "a regular expression or a cache is new, or gone: say in docs/security.md why it is linear "
        "or bounded, or here that no peer's bytes reach it"
    )
    assert told <= made
