"""Django: `python -m wsmiddleware run django_app:app`.

In a project of several files the last lines stand in its `wsgi.py`, and `settings` in its own file.
"""

import os
from importlib import import_module

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from wsmiddleware import WebSocketListener, WebSocketMiddleware, publish

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for development"),
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)


def push(request):
    publish("news", request.POST["text"])
    return HttpResponse(status=204)


def sign_in(request):
    request.session["name"] = request.POST["name"]
    return HttpResponse(status=204)


urlpatterns = [path("push", push), path("name", sign_in)]
app = WebSocketMiddleware(get_wsgi_application())


@app.listener("private")
class Private(WebSocketListener):
    """A channel from code, for those whom Django's session knows."""

    @classmethod
    def on_handshake(cls, request):
        session = import_module(settings.SESSION_ENGINE).SessionStore
        key = request.cookies.get(settings.SESSION_COOKIE_NAME)
        return session(key).get("name")  # None is refused (403)

    def on_open(self, wsclient):
        return f"Welcome, {self.session.user_principal}"
