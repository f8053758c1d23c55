"""The source distribution: what a clone has is in it, and tests run from it."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support import ROOT, unmeasured
from support.servers import environment

pytestmark = pytest.mark.once

#: A part that reads the example, the documents, tests/support/ and a folder below tests/.
PART = ["tests/protocol/test_frames.py", "tests/test_readme.py", "tests/test_settings.py"]


def tracked() -> list[str]:
    """What a clone has."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git clone")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [name for name in names.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked. It is made of a copy: setuptools writes beside what it reads."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "clone" / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools.build_meta import build_sdist as b; b({str(folder / 'dist')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "clone", check=True)
    [archive] = (folder / "dist").iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    [root] = (folder / "unpacked").iterdir()
    return root


def test_what_a_clone_has_is_in_it(sdist: Path) -> None:
    assert [name for name in tracked() if not (sdist / name).is_file()] == []


def test_nothing_else_is_in_it(sdist: Path) -> None:
    made = {"PKG-INFO"} | {f"wsmiddleware.egg-info/{name}" for name in EGG_INFO}
    files = {str(file.relative_to(sdist)) for file in sdist.rglob("*") if file.is_file()}
    assert files - set(tracked()) <= made


EGG_INFO = ["PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt"]
EGG_INFO += ["requires.txt", "top_level.txt"]


def test_metadata_says_where_to_look(sdist: Path) -> None:
    urls = dict(re.findall(r"^Project-URL: (\w+), (https://\S+)$", info(sdist), re.MULTILINE))
    assert {"Changelog", "Documentation", "Issues", "Source"} <= set(urls)


def info(sdist: Path) -> str:
    return (sdist / "PKG-INFO").read_text(encoding="utf-8")


def test_its_tests_run(sdist: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Measured, it would be a second copy of the package.
    env = unmeasured(environment(tmp_path)) | {"PYTHONPATH": str(sdist)}
    result = subprocess.run(
        [*command, *PART], cwd=sdist, env=env, capture_output=True, text=True, timeout=240
    )
    assert re.search(r"\d+ passed", result.stdout), result.stdout + result.stderr
    assert result.returncode == 0, result.stdout
