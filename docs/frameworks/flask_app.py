"""Flask: `python -m wsmiddleware run flask_app:app`."""

from flask import Flask, request

from wsmiddleware import WebSocketMiddleware, publish

app = Flask(__name__)
app.wsgi_app = WebSocketMiddleware(app.wsgi_app, request_context=app.request_context)


@app.post("/push")
def push():
    publish("news", request.form["text"])
    return "", 204
