"""Django's database connections in callbacks, on a real PostgreSQL: none is left by any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support import Process, Server, wait_until
from support.postgres import postgresql
from support.servers import serve_by, write_app
from wsmiddleware.speedups import VARIABLE as SPEEDUPS_VARIABLE

#: Of which PostgreSQL keeps three for its superuser; the application is another one.
MAX_CONNECTIONS = 25

APP = """
import gevent
from django.conf import settings
from gevent.socket import wait_read, wait_write
from psycopg2.extensions import POLL_OK, POLL_READ, set_wait_callback

def wait(connection):  # as psycogreen does: a query lets others run
    while (state := connection.poll()) != POLL_OK:
        (wait_read if state == POLL_READ else wait_write)(connection.fileno())

set_wait_callback(wait)

DATABASE = {{
    "ENGINE": "django.db.backends.postgresql", "HOST": {host!r}, "NAME": "postgres",
    "USER": "app", "CONN_MAX_AGE": {max_age},
}}
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={{"default": DATABASE, "other": DATABASE}},
    ROOT_URLCONF=__name__,
    SECRET_KEY="test",
)

from django.core.wsgi import get_wsgi_application
from django.db import connections, transaction
from django.http import HttpResponse
from django.urls import path
from wsmiddleware import WebSocketListener, WebSocketMiddleware

def query(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.005)")

def view(request):
    query()
    query("other")
    return HttpResponse("ok")

urlpatterns = [path("view", view)]
app = WebSocketMiddleware(get_wsgi_application(){options})

@app.listener("db")
class Db(WebSocketListener):
    def on_message(self, wsclient, message):
        query()
        return message

    def on_error(self, wsclient, exception):
        return repr(exception)

@app.listener("every")
class Every(WebSocketListener):
    'Each of its callbacks leaves two connections behind, unless somebody closes them.'

    seen = []

    @classmethod
    def see(cls, name):
        query()
        query("other")
        cls.seen.append(name)

    @classmethod
    def on_handshake(cls, request):
        cls.see("on_handshake")
        return "refused" not in request.args

    @classmethod
    def on_first_open(cls, wsclients):
        cls.see("on_first_open")

    def on_open(self, wsclient):
        self.see("on_open")

    def on_open_async(self, wsclient):
        self.see("on_open_async")
        wsclient.send("ready")

    def on_message(self, wsclient, message):
        if message == "seen":
            return self.seen
        with transaction.atomic():
            self.see("on_message")
            if message == "raise":
                raise ValueError(message)
            if message == "hang":
                gevent.sleep(60)
        return message

    def on_binary_message(self, wsclient, data):
        self.see("on_binary_message")
        return "binary"

    def on_error(self, wsclient, exception):
        self.see("on_error")
        return type(exception).__name__

    def on_close(self, wsclient, reason_phrase):
        self.see("on_close")

    @classmethod
    def on_last_close(cls):
        cls.see("on_last_close")
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Path]:
    with postgresql(max_connections=MAX_CONNECTIONS) as host:
        ask(host, "CREATE ROLE app LOGIN")
        yield host


def ask(host: Path, query: str) -> Any:
    """What the superuser is told, through a connection of its own, in a thread of its own."""
    psycopg2 = pytest.importorskip("psycopg2")

    def run() -> Any:
        connection = psycopg2.connect(host=str(host), dbname="postgres", user="postgres")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else None
        finally:
            connection.close()

    return gevent.get_hub().threadpool.apply(run)


def count_connections(host: Path) -> int:
    """How many the application holds."""
    ((count,),) = ask(host, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'")
    return int(count)


@contextmanager
def serving(
    folder: Path, host: Path, *, way: str = "run", max_age: int | None = 0, options: str = ""
) -> Iterator[Process]:
    source = APP.format(host=str(host), max_age=max_age, options=options)
    with serve_by(way, write_app(folder, source)) as process:
        yield process
    wait_until(lambda: count_connections(host) == 0)  # of the next test none is this one's


class Way(NamedTuple):
    """How the application is served, and how long Django may keep a connection."""

    way: str
    max_age: int | None
    speedups: str = "on"


def talk(server: Server, count: int) -> list[tuple[str, str]]:
    """One client that sends so many messages; those with what came back, if it was another."""
    with server.connect("/ws/db") as ws:
        answers = []
        for number in range(count):
            ws.send(str(number))
            answers.append((str(number), str(ws.recv(20))))
    return [answer for answer in answers if answer[0] != answer[1]]


@pytest.mark.once
@pytest.mark.parametrize(
    "how",
    [Way("run", 0), Way("run", 600), Way("run", None, "off"), Way("worker", 600)],
    ids=str,
)
def test_many_clients_share_what_the_database_has(
    database: Path, tmp_path: Path, how: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEEDUPS_VARIABLE, how.speedups)
    with (
        serving(tmp_path, database, way=how.way, max_age=how.max_age) as process,
        process.server.connect("/ws/db") as idle,
    ):
        talkers = [gevent.spawn(talk, process.server, 20) for _ in range(8)]
        gevent.joinall(talkers, raise_error=True)
        assert [talker.value for talker in talkers] == [[]] * 8
        idle.send("and one that stays")
        assert idle.recv(20) == "and one that stays"
        wait_until(lambda: count_connections(database) == 0)


def go_through(server: Server, database: Path) -> set[str]:
    """Each callback of the channel ``every``, and no connection is left by any of them."""

    def is_clean() -> None:
        wait_until(lambda: count_connections(database) == 0, "connections are left open")

    for _ in range(3):
        refused = pytest.raises((InvalidStatus, ConnectionClosed))
        with refused, server.connect("/ws/every?refused") as ws:
            ws.recv(5)
        is_clean()
    with server.connect("/ws/every") as ws:
        assert ws.recv(5) == "ready"
        is_clean()
        for message, answer in {
            "text": "text",
            b"binary": "binary",
            "raise": "ValueError",
            "hang": "RequestTimeout",
        }.items():
            ws.send(message)
            assert ws.recv(10) == answer
            is_clean()
    is_clean()
    with server.connect("/ws/every") as ws:
        ws.send("seen")
        seen = ws.recv(5)
        while "on_handshake" not in seen:  # what on_open_async sends
            seen = ws.recv(5)
    return set(json.loads(seen))


@pytest.mark.once
@pytest.mark.parametrize(
    "how",
    [Way("run", 0), Way("run", 600, "off"), Way("worker", 600), Way("stock", 600)],
    ids=str,
)
def test_no_callback_leaves_a_connection(
    database: Path, tmp_path: Path, how: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEEDUPS_VARIABLE, how.speedups)
    options = ", request_timeout=1, ping_interval=1"
    with serving(tmp_path, database, way=how.way, max_age=how.max_age, options=options) as process:
        seen = go_through(process.server, database)
    assert seen == {
        *("on_handshake", "on_first_open", "on_open", "on_open_async", "on_message"),
        *("on_binary_message", "on_error", "on_close", "on_last_close"),
    }
    assert "Traceback" not in process.output


@pytest.mark.once
@pytest.mark.parametrize("max_age", [0, 600])
def test_view_leaves_no_connection_behind_its_own(
    database: Path, tmp_path: Path, max_age: int
) -> None:
    with serving(tmp_path, database, max_age=max_age) as process:
        for _ in range(5):
            assert process.server.get("/view").text == "ok"
        wait_until(lambda: count_connections(database) == 0)
