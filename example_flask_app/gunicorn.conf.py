"""Read by gunicorn when it is started in this folder: `gunicorn -k geventwebsocket app:app`."""

import os
from pathlib import Path

import wsmiddleware.gunicorn  # noqa: F401  teaches gunicorn the worker's short name


def when_ready(server):
    """Writes down where it listens: the image's health check asks there."""
    if file := os.environ.get("URL_FILE"):
        Path(file).write_text(str(server.LISTENERS[0]), encoding="utf-8")
