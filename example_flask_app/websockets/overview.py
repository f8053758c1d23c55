"""Who is connected, at /ws/overview: what websocket_info() shows, whenever it has changed."""

from __future__ import annotations

import gevent
from flask import session

from wsmiddleware import WebSocketListener, websocket_info


class Overview(WebSocketListener):
    @classmethod
    def on_handshake(cls, request):
        return session.get("name")

    @classmethod
    def on_first_open(cls, wsclients):
        cls.loop = gevent.spawn(cls.watch, wsclients)

    @classmethod
    def watch(cls, wsclients):
        shown = None
        while True:
            if (rows := list_connections()) != shown:
                wsclients.broadcast(rows)
                shown = rows
            gevent.sleep(0.5)

    def on_open(self, wsclient):
        return list_connections()

    @classmethod
    def on_last_close(cls):
        cls.loop.kill()


def list_connections():
    return [
        {
            "id": instance.session.id[:6],
            "path": instance.session.request_uri,
            "user": instance.session.user_principal,
            "roles": list(getattr(instance.component, "roles", [])),
            "since": instance.session.opened_at,
            "compressed": bool(instance.session.extensions),
        }
        for instance in websocket_info().instances
    ]
