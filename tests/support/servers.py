"""One application served in every way that the package promises, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import trustme

import wsmiddleware
from support import Process, running
from wsmiddleware.speedups import VARIABLE as SPEEDUPS_VARIABLE

__all__ = ["OURS", "UPGRADE", "WAYS", "Tls", "environment", "read_all", "serve_by", "write_app"]

#: How to start a server, by name; the application and further options follow.
WAYS: dict[str, list[str]] = {
    "run": ["wsmiddleware", "run", "--port", "0"],
    "alias": ["gunicorn", "-c", "python:wsmiddleware.gunicorn", "-k", "geventwebsocket"],
    "conf": ["gunicorn", "-k", "geventwebsocket"],
    "worker": ["gunicorn", "-k", "wsmiddleware.gunicorn.GeventWebSocketWorker"],
    "stock": ["gunicorn", "-k", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"],
}

#: Those under which all of the specification holds.
OURS = [way for way in WAYS if way != "stock"]

#: The rest of a valid handshake behind its request line (the key is RFC 6455's own).
UPGRADE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@contextlib.contextmanager
def serve_by(
    way: str, folder: Path, options: Sequence[str] = (), app: str = "app:app"
) -> Iterator[Process]:
    """The application in `folder` served in one of the `WAYS`, once it listens."""
    arguments = list(WAYS[way])
    if arguments[0] == "gunicorn":
        arguments += ["--bind", "127.0.0.1:0"]
        # A stock worker that is to drain would wait for it in vain.
        arguments += ["--graceful-timeout", "5"]
    if way == "conf":
        (folder / "gunicorn.conf.py").write_text("import wsmiddleware.gunicorn\n", encoding="utf-8")
    with running([*arguments, *options, app], cwd=folder, env=environment(folder)) as process:
        yield process


def environment(folder: Path) -> dict[str, str]:
    """What a server process inherits: the package under test, no settings, no home of its own."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name == SPEEDUPS_VARIABLE
        or (name != "XDG_RUNTIME_DIR" and not name.startswith("WSMIDDLEWARE_"))
    }
    # Where this process has it from: the checkout, or what was installed, with its C extension.
    package = Path(wsmiddleware.__file__).parents[1]
    path = os.pathsep.join([str(package), *filter(None, [inherited.get("PYTHONPATH")])])
    # gunicorn puts a control socket into the home directory.
    return {**inherited, "PYTHONPATH": path, "HOME": str(folder)}


def write_app(folder: Path, source: str, **listeners: str) -> Path:
    """``app.py`` and listener files for one of the `WAYS`; gives the folder."""
    (folder / "app.py").write_text(textwrap.dedent(source), encoding="utf-8")
    for channel, listener in listeners.items():
        (folder / "websockets").mkdir(exist_ok=True)
        text = "from wsmiddleware import WebSocketListener\n" + textwrap.dedent(listener)
        (folder / "websockets" / f"{channel}.py").write_text(text, encoding="utf-8")
    return folder


class Tls:
    """A certificate for 127.0.0.1 of an authority that only this test knows."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        self.certfile, self.keyfile = folder / "certificate.pem", folder / "key.pem"
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(self.certfile, append=number > 0)
        certificate.private_key_pem.write_to_path(self.keyfile)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(self.certfile, self.keyfile)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


def read_all(sock: socket.socket) -> bytes:
    """All that comes until the peer closes."""
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)
