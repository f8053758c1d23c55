"""Django's database connections: each greenlet that asks for one gets its own, and has to close it.

Django closes a view's when its response has been sent; a callback has no response. And what a
greenlet keeps is dropped unclosed when it ends, as after a callback: the database would hold a
connection for each callback that ever asked for one, until the garbage collector has come by.
"""

from __future__ import annotations

import sys

from wsmiddleware.log import log as _log

__all__ = ["close_connections"]


def close_connections() -> None:
    """Close those of the calling greenlet, where the process runs Django. May block.

    All of them, whatever ``CONN_MAX_AGE`` says: no later callback would find one again. With
    Django's own pool (``OPTIONS["pool"]``) they go back to it. What that raises is logged.
    """
    # Found, not imported: an application without Django does not pay for it.
    database, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or conf is None or not conf.settings.configured:
        return
    try:
        database.connections.close_all()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # a driver's own, or a time-out that the callback left behind
        _log.error("closing Django's database connections raised %r", exc, exc_info=exc)
