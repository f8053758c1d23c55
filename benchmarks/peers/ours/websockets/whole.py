from wsmiddleware import WebSocketListener


class Whole(WebSocketListener):
    def on_open_async(self, wsclient):
        pass

    def on_message(self, wsclient, message):
        return message

    def on_error(self, wsclient, exception):
        pass
