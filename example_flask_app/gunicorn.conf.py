"""Read by gunicorn when it is started in this folder: `gunicorn -k geventwebsocket app:app`."""

import wsmiddleware.gunicorn  # noqa: F401  teaches gunicorn the worker's short name
