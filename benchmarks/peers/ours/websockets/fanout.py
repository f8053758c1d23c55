from wsmiddleware import WebSocketListener


class Fanout(WebSocketListener):
    def on_message(self, wsclient, message):
        wsclient.broadcast(message)
