"""Flask-Sock under gunicorn's gevent worker, one of the servers that its documentation names."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock

MEMBERS: set[Any] = set()

app = Flask(__name__)
sock = Sock(app)


@sock.route("/ws/<any(echo, whole):channel>")
def echo(ws: Any, channel: str) -> None:
    while True:
        ws.send(ws.receive())


@sock.route("/ws/fanout")
def fanout(ws: Any) -> None:
    MEMBERS.add(ws)
    try:
        while True:
            message = ws.receive()
            for member in tuple(MEMBERS):
                member.send(message)
    finally:
        MEMBERS.discard(ws)
