"""A PostgreSQL of Debian's for one test module: on a Unix socket only, gone with the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["postgresql"]

#: Debian keeps them out of the path, a folder for each version.
_BINARIES = Path("/usr/lib/postgresql")


@contextlib.contextmanager
def postgresql(**settings: object) -> Iterator[Path]:
    """The folder of its socket, its superuser being ``postgres``; `settings` are the server's.

    It refuses to run as root: there it runs as the user that Debian's package has made.
    """
    versions = sorted(_BINARIES.glob("*/bin"), key=lambda path: float(path.parent.name))
    if not versions:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    # Not below pytest's folders, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="wsmiddleware-postgresql-"))
    become: list[str] = []
    if os.getuid() == 0:
        become = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")

    def call(program: str, *arguments: str) -> None:
        command = [*become, str(versions[-1] / program), "-D", str(folder / "data"), *arguments]
        # Not a pipe: the server would hold it open.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            subprocess.run(command, check=True, cwd=folder, stdout=nowhere)

    options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
    arguments = [f"-c {name}='{value}'" for name, value in {**options, **settings}.items()]
    try:
        call("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8")
        log = str(folder / "log")
        call("pg_ctl", "start", "--wait", "--silent", "--log", log, "-o", " ".join(arguments))
        try:
            yield folder
        finally:
            call("pg_ctl", "stop", "--wait", "--silent", "--mode=immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
