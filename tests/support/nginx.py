"""Debian's nginx, as a process of a test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import PATIENCE, wait_until

__all__ = ["free_port", "running_nginx"]

SURROUNDINGS = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{configuration}
}}
"""


@contextlib.contextmanager
def running_nginx(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """nginx with what stands within ``http``, which has it listen on `port`; once it does."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    file = folder / "nginx.conf"
    file.write_text(SURROUNDINGS.format(folder=folder, configuration=configuration), "utf-8")
    command = [program, "-e", "stderr", "-p", str(folder), "-c", str(file)]
    with open(folder / "nginx.log", "w+") as log:
        nginx = subprocess.Popen(command, stderr=log)
    try:
        wait_until(lambda: accepts(port), lambda: (folder / "nginx.log").read_text())
        yield
    finally:
        nginx.terminate()
        nginx.wait(PATIENCE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
