"""A bare WSGI function: `python -m wsmiddleware run bare_app:app`."""

from urllib.parse import parse_qs

from wsmiddleware import WebSocketMiddleware, publish


def pages(environ, start_response):
    if (environ["REQUEST_METHOD"], environ["PATH_INFO"]) != ("POST", "/push"):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no such page\n"]
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
    publish("news", parse_qs(body)["text"][0])
    start_response("204 No Content", [])
    return []


app = WebSocketMiddleware(pages)
