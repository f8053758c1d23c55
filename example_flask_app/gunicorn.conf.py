"""Read by gunicorn when it is started in this folder: `gunicorn -k geventwebsocket app:app`."""

import os
import sys
from pathlib import Path

import wsmiddleware.gunicorn  # noqa: F401  teaches gunicorn the worker's short name

HERE = {"127.0.0.1", "::1", "localhost"}


def on_starting(server):
    """Others shall not reach it with the key that everybody knows."""
    hosts = {address[0] for address in server.address if isinstance(address, tuple)}
    if hosts - HERE and not os.environ.get("SECRET_KEY"):
        sys.exit("SECRET_KEY is not set: set it to what `openssl rand -hex 32` prints")


def when_ready(server):
    """Writes down where it listens: the image's health check asks there."""
    if file := os.environ.get("URL_FILE"):
        Path(file).write_text(str(server.LISTENERS[0]), encoding="utf-8")
