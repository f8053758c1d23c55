"""An echo that a view can push to, at /ws/test and, with a role, at /ws/test?role=editor."""

from __future__ import annotations

from flask import session

from wsmiddleware import WebSocketError, WebSocketListener


class Test(WebSocketListener):
    idle_timeout = 0  # never: it waits for a push, and pings find the dead
    roles = ()

    @classmethod
    def on_handshake(cls, request):
        return session.get("name") or True  # everyone, with a name or without

    def on_open(self, wsclient):
        # A real application asks its database which roles the user has.
        self.roles = self.session.request_parameter_map.get("role", [])
        return "Welcome"

    def on_message(self, wsclient, message):
        return "ECHO:" + message

    def on_binary_message(self, wsclient, data):
        return data

    def has_role(self, role):
        return role in self.roles

    def send_message(self, text):
        """Gives whether it was taken."""
        try:
            return self.wsclient.send(text, wait=False)
        except WebSocketError:  # it has gone since it was listed
            return False
