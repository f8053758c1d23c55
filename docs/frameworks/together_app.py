"""Flask-SocketIO, code for flask-sockets, and channels of ours: all in one process, on one port.

`python -m wsmiddleware run together_app:app`
"""

from flask import Flask, request
from flask_socketio import SocketIO

from wsmiddleware import WebSocketMiddleware, publish

app = Flask(__name__)
sockets = SocketIO(app, async_mode="gevent")  # keeps /socket.io/ for itself


@sockets.on("shout")
def shout(text):
    return text.upper()


@app.route("/echo", websocket=True)  # without it werkzeug's routing answers an upgrade with 400
def echo():
    websocket = request.environ["wsgi.websocket"]  # what gevent-websocket and flask-sockets give
    while (message := websocket.receive()) is not None:
        websocket.send(message[::-1])
    return ""


@app.post("/push")
def push():
    publish("news", request.form["text"])
    return "", 204


app.wsgi_app = WebSocketMiddleware(app.wsgi_app, request_context=app.request_context)
