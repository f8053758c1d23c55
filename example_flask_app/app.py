"""A Flask application with live messages: a chat, and a push from a view to those with a role.

Its listeners are the files in `websockets/`. Run it here with `python -m wsmiddleware run app:app`.
"""

from __future__ import annotations

import os

from flask import Flask, Response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as Redirect

from wsmiddleware import WebSocketMiddleware, websocket_info

app = Flask(__name__)
# Who knows the key can sign in under any name: set SECRET_KEY wherever others can reach this.
app.secret_key = os.environ.get("SECRET_KEY", "only for development")
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
app.wsgi_app = WebSocketMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, request_context=app.request_context
)


@app.get("/")
def index() -> str:
    """The page. Its script opens the chat once there is a name."""
    return render_template("index.html", name=session.get("name", ""))


@app.post("/name")
def sign_in() -> Redirect:
    """Signs in under a name: a real application asks for a password here."""
    session["name"] = request.form["name"].strip()[:30]
    return redirect(url_for("index", room=request.form.get("room") or None))


@app.post("/notify/<role>")
def notify(role: str) -> tuple[str, int]:
    """Pushes a text to those who hold the role: a real application asks here who may."""
    text = request.form.get("text", "hello")
    for instance in websocket_info().instances:
        if instance.component.channel == "test" and instance.component.has_role(role):
            instance.component.send_message(text)
    return "", 204


@app.after_request
def secure(response: Response) -> Response:
    """Allows the page its own files and sockets, and nothing else."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
