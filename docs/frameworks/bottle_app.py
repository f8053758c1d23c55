"""Bottle: `python -m wsmiddleware run bottle_app:app`."""

from bottle import Bottle, request, response

from wsmiddleware import WebSocketMiddleware, publish

pages = Bottle()


@pages.post("/push")
def push():
    publish("news", request.forms.text)
    response.status = 204


app = WebSocketMiddleware(pages)
