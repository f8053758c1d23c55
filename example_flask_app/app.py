"""A Flask application that is live: a chat, a feed, and a push from a view to those with a role.

Its listeners are the files in `websockets/`. Run it here with `python -m wsmiddleware run app:app`.
"""

from __future__ import annotations

import os

from flask import Flask, Response, abort, redirect, render_template, request, session, url_for
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as Redirect

from wsmiddleware import WebSocketMiddleware, websocket_info

app = Flask(__name__)
# Who knows the key can sign in under any name: set SECRET_KEY wherever others can reach this.
app.secret_key = os.environ.get("SECRET_KEY", "only for development")
# Another site's form comes without the cookie, so as nobody: no request can be forged.
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
app.wsgi_app = WebSocketMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, request_context=app.request_context
)
if os.environ.get("BEHIND_PROXY"):  # one that ends TLS: it says what the browser asked for
    app.config["SESSION_COOKIE_SECURE"] = True
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]


@app.get("/")
def index() -> str:
    """The page: who has no name yet is asked for one."""
    return render_template("index.html", name=session.get("name"))


@app.post("/name")
def sign_in() -> Redirect:
    """Signs in under a name: a real application asks for a password here."""
    name = " ".join(request.form["name"].split())[:30]
    session["name"] = name or abort(400)
    return redirect(url_for("index", room=request.form.get("room") or None))


@app.post("/sign-out")
def sign_out() -> Redirect:
    """Forgets the name."""
    session.clear()
    return redirect(url_for("index"))


@app.post("/notify/<role>")
def notify(role: str) -> tuple[str, int]:
    """Pushes a text to those who hold the role: a real application asks here who may."""
    text = f"{session.get('name') or abort(403)}: {request.form['text'][:1000]}"
    for instance in websocket_info().instances:
        if instance.component.channel == "test" and instance.component.has_role(role):
            instance.component.send_message(text)
    return "", 204


@app.get("/health")
def health() -> dict[str, int]:
    """What a load balancer or a container's engine asks."""
    return {"connections": len(websocket_info().instances)}


@app.after_request
def secure(response: Response) -> Response:
    """Allows the page its own files and sockets, and nothing else."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    return response
