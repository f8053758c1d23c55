"""Behind Debian's nginx, which ends TLS: the configuration of the deployment page, in a process."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support import ROOT, Process, Server, wait_until
from support.nginx import free_port, running_nginx
from support.servers import Tls, serve_by

CONFIGURATION = (ROOT / "docs" / "deployment" / "nginx.conf").read_text(encoding="utf-8")

FORM = {"Content-Type": "application/x-www-form-urlencoded"}

WHERE = """
from wsmiddleware import WebSocketListener

class Where(WebSocketListener):
    def on_open(self, wsclient):
        session = self.session
        return [session.is_secure, session.request.url, session.remote_address, session.extensions]
"""


class Served(NamedTuple):
    """The application's own process, and nginx before it."""

    process: Process
    nginx: Server


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """The programs of docs/frameworks/, one listener more, and pings ten times a second."""
    ignored = shutil.ignore_patterns("websocket.json", "__pycache__")
    folder = shutil.copytree(ROOT / "docs" / "frameworks", tmp_path / "application", ignore=ignored)
    (folder / "websockets" / "where.py").write_text(WHERE, encoding="utf-8")
    (folder / "websocket.json").write_text('{"pingInterval": 0.1}', encoding="utf-8")
    return folder


@contextlib.contextmanager
def behind_nginx(folder: Path, app: str, *changes: tuple[str, str]) -> Iterator[Served]:
    """The application, and where nginx serves it; `changes` to the configuration."""
    tls = Tls(folder)
    with serve_by("run", folder, app=app) as process:
        port = free_port()
        text = changed(
            CONFIGURATION,
            ("127.0.0.1:8000", f"127.0.0.1:{process.server.port}"),
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/ssl/certs/live.pem", str(tls.certfile)),
            ("/etc/ssl/private/live.key", str(tls.keyfile)),
            *changes,
        )
        with running_nginx(folder, text, port):
            yield Served(process, Server(port, tls.client))


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each of the changes, which must apply."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def refused(server: Server, origin: str) -> int:
    with pytest.raises(InvalidStatus) as refusal, server.connect("/ws/where", origin=origin):
        pass
    return refusal.value.response.status_code


def test_application_sees_the_browsers_side(application: Path) -> None:
    with behind_nginx(application, "proxied_app:app") as (_, nginx):
        origin = nginx.url("")
        with nginx.connect("/ws/where", origin=origin) as ws:
            is_secure, url, address, extensions = json.loads(ws.recv(5))
        assert (is_secure, url, address) == (True, nginx.url("/ws/where"), "127.0.0.1")
        assert extensions.startswith("permessage-deflate")
        assert refused(nginx, "https://evil.example") == 403
        assert refused(nginx, origin.rpartition(":")[0]) == 403  # the port is part of it
        assert nginx.request("POST", "/push", "text=hi", FORM).status == 204


def test_pings_keep_an_idle_connection_and_close_codes_pass(application: Path) -> None:
    shorter = ("proxy_read_timeout 60s", "proxy_read_timeout 1s")
    with (
        behind_nginx(application, "proxied_app:app", shorter) as (process, nginx),
        nginx.connect("/ws/news") as ws,
    ):
        assert ws.recv(5) == "Welcome"
        with pytest.raises(TimeoutError):
            ws.recv(2.5)
        ws.send("still here")
        assert ws.recv(5) == "still here"
        process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            ws.recv(5)
        assert (ws.close_code, ws.close_reason) == (1001, "going away")


@pytest.mark.parametrize(("app", "status"), [("proxied_app:app", 101), ("flask_app:app", 403)])
def test_proxy_that_changes_the_host_needs_proxyfix(
    application: Path, app: str, status: int
) -> None:
    forgets = ("proxy_set_header Host $http_host;", "")
    with behind_nginx(application, app, forgets) as (process, nginx):
        if status == 101:
            with nginx.connect("/ws/news", origin=nginx.url("")) as ws:
                assert ws.recv(5) == "Welcome"
        else:
            assert refused(nginx, nginx.url("")) == status
            wait_until(lambda: "wrap the application in ProxyFix" in process.output)


@pytest.mark.parametrize(
    "lines",
    [
        ["proxy_set_header Upgrade $http_upgrade;"],
        ["proxy_set_header Connection $connection_upgrade;"],
        [
            "proxy_http_version 1.1;",
            "proxy_set_header Upgrade $http_upgrade;",
            "proxy_set_header Connection $connection_upgrade;",
        ],
    ],
)
def test_proxy_that_does_not_pass_the_upgrade_is_told_which_lines_it_lacks(
    application: Path, lines: list[str]
) -> None:
    forgets = [(line, "") for line in lines]
    with behind_nginx(application, "proxied_app:app", *forgets) as (process, nginx):
        with pytest.raises(InvalidStatus) as refusal, nginx.connect("/ws/where"):
            pass
        response = refusal.value.response
        wait_until(lambda: "refused '/ws/where'" in process.output)
        assert response.status_code == 426
        told = response.body.decode()
        for line in lines:
            missing = line.replace("$connection_upgrade", '"upgrade"')
            assert missing in told and missing in process.output
