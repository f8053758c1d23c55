"""The channel news, at /ws/news: what one client says, all hear. It knows of no framework."""

from wsmiddleware import WebSocketListener


class News(WebSocketListener):
    def on_open(self, wsclient):
        return "Welcome"

    def on_message(self, wsclient, message):
        wsclient.broadcast(message)
