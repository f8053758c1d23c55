"""Who signs out loses his sockets too: `python -m wsmiddleware run sign_out:app`."""

import os

from flask import Flask, request, session

from wsmiddleware import CloseCode, WebSocketListener, WebSocketMiddleware, websocket_info

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "only for development")
middleware = WebSocketMiddleware(app.wsgi_app, request_context=app.request_context)
app.wsgi_app = middleware


@middleware.listener("inbox")
class Inbox(WebSocketListener):
    @classmethod
    def on_handshake(cls, request):
        return session.get("name")  # who has none gets a 403

    def on_message(self, wsclient, message):
        return f"{session['name']}: {message}"


@app.post("/sign-in")
def sign_in():
    session["name"] = request.form["name"]  # a real application asks for a password here
    return "", 204


@app.post("/sign-out")
def sign_out():
    name = session.pop("name", None)
    for instance in websocket_info().instances:
        if instance.session.user_principal == name:
            instance.component.wsclient.close(CloseCode.POLICY_VIOLATION, "signed out")
    return "", 204
