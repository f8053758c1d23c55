"""A feed, at /ws/feed: one loop pushes to all who look, and runs only while somebody does."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import ClassVar

import gevent
from flask import session

from wsmiddleware import WebSocketListener


class Feed(WebSocketListener):
    """A sensor's temperature. The sensor is imagined; the loop is what yours would look like."""

    recent: ClassVar = deque([20.0], maxlen=60)

    @classmethod
    def on_handshake(cls, request):
        return session.get("name") or True  # everyone may look, with a name or without

    @classmethod
    def on_first_open(cls, wsclients):
        cls.loop = gevent.spawn(cls.push, wsclients)

    @classmethod
    def push(cls, wsclients):
        for number in itertools.count(1):
            cls.recent.append(round(cls.recent[-1] + random.gauss(0, 0.3), 1))
            message = {"number": number, "looking": wsclients.size(), "value": cls.recent[-1]}
            wsclients.broadcast(message)
            gevent.sleep(1)

    def on_open(self, wsclient):
        return {"recent": list(self.recent)}

    @classmethod
    def on_last_close(cls):
        cls.loop.kill()
