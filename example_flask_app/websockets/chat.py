"""The chat, at /ws/chat or /ws/chat/<room>: for those who have signed in on the page."""

from collections import Counter
from typing import ClassVar

from flask import session

from wsmiddleware import CloseCode, WebSocketListener


class Chat(WebSocketListener):
    path = "/<room>"
    idle_timeout = 3600  # people think before they write
    windows: ClassVar = Counter()  # how many someone has open on a room

    @classmethod
    def on_handshake(cls, request):
        return session.get("name")  # becomes user_principal; None, not signed in, is refused (403)

    @classmethod
    def on_first_open(cls, wsclients):
        cls.wsclients = wsclients

    def on_open(self, wsclient):
        self.room = self.session.path_parameters.get("room", "lobby")
        self.key = self.room, self.session.user_principal
        wsclient.join(self.room)
        self.windows[self.key] += 1
        return self.tell_the_others("came" if self.windows[self.key] == 1 else "is here")

    def on_message(self, wsclient, message):
        return self.tell_the_others("said", text=message[:1000])

    def on_binary_message(self, wsclient, data):
        wsclient.close(CloseCode.UNSUPPORTED_DATA, "text only")

    def on_close(self, wsclient, reason_phrase):
        self.windows[self.key] -= 1
        if not self.windows[self.key]:  # else there is a second window
            del self.windows[self.key]
            self.tell_the_others("left")

    def tell_the_others(self, event, **more):
        """Broadcasts to the room; a callback that returns the message sends it to its client."""
        here = self.wsclients.group(self.room)
        people = sorted({client.session.user_principal for client in here})
        message = {"event": event, "name": self.session.user_principal, "people": people, **more}
        here.broadcast(message, exclude=self.wsclient)
        return message
