from wsmiddleware import WebSocketListener


class Echo(WebSocketListener):
    def on_message(self, wsclient, message):
        return message
