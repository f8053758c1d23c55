"""What mends an error that newcomers meet, for the log behind the error itself."""

from __future__ import annotations

from wsmiddleware.exceptions import text_of

__all__ = ["hint_for"]

_OUTSIDE = ("outside of request context", "outside of application context")


def hint_for(error: BaseException, name: str, *, has_context: bool) -> str:
    """A line that says what to do, with its line break in front; ``""`` where nobody knows.

    `name` is the callback that raised `error`, `has_context` whether those of a connection run in
    an application's context.
    """
    if not _is_outside(error):
        return ""
    if name in ("on_first_open", "on_last_close"):
        return (
            f"\n{name} belongs to the channel and to no request: write `with app.app_context():` "
            "in it, and take what is a request's in on_open"
        )
    if has_context:
        return ""
    return (
        "\nCallbacks run in a request's context when the middleware makes one: "
        "WebSocketMiddleware(app.wsgi_app, request_context=app.request_context)"
    )


def _is_outside(error: BaseException) -> bool:
    """True for Flask's error, and one that was raised because of it."""
    each: BaseException | None = error
    for _ in range(10):
        if each is None:
            return False
        if isinstance(each, RuntimeError) and any(part in text_of(each) for part in _OUTSIDE):
            return True
        each = each.__cause__ or each.__context__
    return False
