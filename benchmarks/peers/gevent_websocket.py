"""gevent-websocket as its documentation shows it: a WSGI application under its handler."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler

MEMBERS: set[Any] = set()


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    ws = environ["wsgi.websocket"]
    is_fanout = environ["PATH_INFO"] == "/ws/fanout"
    if is_fanout:
        MEMBERS.add(ws)
    try:
        while (message := ws.receive()) is not None:
            for target in tuple(MEMBERS) if is_fanout else (ws,):
                # `binary` left out takes a bytearray, which is what it receives, for text.
                target.send(message, binary=not isinstance(message, str))
    except WebSocketError:
        pass
    finally:
        MEMBERS.discard(ws)
    return []


server = WSGIServer(
    ("127.0.0.1", int(sys.argv[1])), app, handler_class=WebSocketHandler, log=None, backlog=1024
)
server.serve_forever()
