"""The pages for contributors name what there is: every path, and every class and function."""

from __future__ import annotations

import re

import pytest

from support import ROOT

PAGES = ["CONTRIBUTING.md", "docs/architecture.md"]
SOURCE = "".join(
    file.read_text("utf-8")
    for pattern in ("*.py", "*.c", "*.h")
    for file in sorted((ROOT / "wsmiddleware").rglob(pattern))
)
#: Words in code style that are the language's, the reader's or another package's.
OTHERS = {"tox", "Protocol", "Context", "Enum", "recv", "str", "bytes", "ORDER"}


def words(page: str) -> set[str]:
    """What stands in code style outside of blocks."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", text))


def is_path(word: str) -> bool:
    return re.fullmatch(r"[\w./-]+(/|\.(py|c|h|md|cfg|ini|toml))", word) is not None


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    paths = [word for word in words(page) if is_path(word)]
    assert len(paths) > 10
    for path in paths:
        # Beside the text that names its room a file stands without it.
        places = (
            ROOT / path,
            ROOT / "wsmiddleware" / path,
            ROOT / "wsmiddleware/_extension" / path,
        )
        assert any(place.exists() for place in places), path


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page: str) -> None:
    names = [word for word in words(page) if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", word)]
    names = [word for word in names if not is_path(word) and word not in OTHERS]
    assert names
    for name in names:
        for part in name.removesuffix("()").split("."):
            assert re.search(rf"\b{part}\b", SOURCE), name


@pytest.mark.parametrize("page", PAGES)
def test_environments_exist(page: str) -> None:
    tox = (ROOT / "tox.ini").read_text("utf-8")
    for name in re.findall(r"tox -e (\w+)", (ROOT / page).read_text("utf-8")):
        assert f"[testenv:{name}]" in tox, name


def test_rooms_of_the_picture_are_those_of_the_package() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    [picture] = re.findall(r"^```\n(.*?)^```", page, flags=re.M | re.S)
    package = ROOT / "wsmiddleware"
    modules = {file.stem for file in package.glob("*.py")}
    rooms = {folder.parent.name for folder in package.glob("*/__init__.py")}
    assert modules | rooms <= set(re.findall(r"\w+", picture))
