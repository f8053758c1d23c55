"""A Flask application that is live: a chat, a feed, and a push from a view to those with a role.

Its listeners are the files in `websockets/`. Run it here with `python -m wsmiddleware run app:app`.
"""

from __future__ import annotations

import os

from flask import Flask, Response, abort, redirect, render_template, request, session, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as WSGIResponse

from wsmiddleware import WebSocketMiddleware, websocket_info

app = Flask(__name__)
# Who knows the key can sign in under any name: set SECRET_KEY wherever others can reach this.
app.secret_key = os.environ.get("SECRET_KEY", "only for development")
if not app.secret_key:
    raise RuntimeError("SECRET_KEY is empty: set it to what `openssl rand -hex 32` prints")
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
    # A room's name is one part of a path: no slash, and neither "." nor "..".
    room = "-".join(request.args.get("room", "").replace("/", " ").split())[:40].strip(".")
    return render_template("index.html", name=session.get("name"), room=room or "lobby")


@app.post("/name")
def sign_in() -> WSGIResponse:
    """Signs in under a name: a real application asks for a password here."""
    name = " ".join(request.form["name"].split())[:30] or abort(400, "A name is not only spaces.")
    hang_up(session.get("name"))
    session["name"] = name
    return redirect(url_for("index", room=request.form.get("room") or None))


@app.post("/sign-out")
def sign_out() -> WSGIResponse:
    """Forgets the name."""
    hang_up(session.pop("name", None))
    return redirect(url_for("index"))


def hang_up(name: str | None) -> None:
    """Closes what is open under a name: the handshake let it in, and is over."""
    for instance in websocket_info().instances:
        if name and instance.session.user_principal == name:
            instance.component.wsclient.close(4001, "signed out")


@app.post("/notify/<role>")
def notify(role: str) -> dict[str, int]:
    """Pushes a text to those who hold the role: a real application asks here who may."""
    text = f"{session.get('name') or abort(403)}: {request.form['text'][:1000]}"
    reached = 0
    for instance in websocket_info().instances:
        if instance.component.channel == "test" and instance.component.has_role(role):
            reached += instance.component.send_message(text)
    return {"reached": reached}


@app.get("/health")
def health() -> dict[str, int]:
    """What a load balancer or a container's engine asks."""
    return {"connections": len(websocket_info().instances)}


@app.errorhandler(HTTPException)
def refuse(error: HTTPException) -> WSGIResponse:
    """An error has a page too, which leads back."""
    response = error.get_response()  # with its status and headers
    response.data = render_template("index.html", error=error)
    return response


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
