"""`Publisher`: for processes that serve nobody."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import gevent
import pytest

import wsmiddleware
from support import unmeasured, wait_until
from support.backplane import SUBJECT, Follower
from support.redis import RedisServer, redis_server
from wsmiddleware import ConfigError, Publisher
from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import Announcement, History, Position, ReadRequest, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind, decode
from wsmiddleware.backplane.keys import Keys
from wsmiddleware.backplane.redis import RedisEngine

KEPT = History(100, 60)
NAMES = Keys("wsmiddleware", 0).subject(SUBJECT)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.cli("FLUSHALL")
    return shared


class Listener(Follower):
    """Keeps the envelopes as they came."""

    def __init__(self, history: History | None, subject: Subject) -> None:
        super().__init__(history, subject)
        self.envelopes: list[Envelope] = []

    def arrived(self, subject: Subject, data: bytes) -> None:
        self.envelopes.append(decode(data))


@contextlib.contextmanager
def node(
    server: RedisServer, history: History | None = None, subject: Subject = SUBJECT
) -> Iterator[Listener]:
    """One that has announced the channel "chat", and listens."""
    engine, listener = RedisEngine(Address.parse(server.url)), Listener(history, subject)
    listener.follow(engine)
    try:
        assert engine.wait(10) and listener.live.wait(10)
        engine.announce(Announcement(b"node0001", {"chat": history}))
        yield listener
    finally:
        engine.close()
        listener.end()


def run(source: str, *arguments: str) -> str:
    """What a process without gevent prints."""
    command = [sys.executable, "-c", textwrap.dedent(source), *arguments]
    # Whoever measures coverage in it brings gevent.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=unmeasured())
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- without a Redis -------------------------------------------------------------------------------


def test_every_public_name_is_found_and_listed() -> None:
    for name in wsmiddleware.__all__:
        assert getattr(wsmiddleware, name).__name__ == name
        assert name in dir(wsmiddleware)
    with pytest.raises(AttributeError, match="publisch"):
        _ = wsmiddleware.publisch


def test_import_brings_no_gevent() -> None:
    modules = run(
        """
        import sys
        from wsmiddleware import ConfigError, Publisher
        Publisher("redis://127.0.0.1:1")
        print(*sys.modules)
        """
    ).split()
    assert "redis" in modules
    assert not [name for name in modules if name.split(".")[0] in ("gevent", "greenlet")]


@pytest.mark.parametrize("missing", ["redis", "hiredis"])
def test_without_redis_py_it_says_what_to_install(missing: str) -> None:
    printed = run(
        """
        import sys
        sys.modules[sys.argv[1]] = None
        from wsmiddleware import *
        try:
            Publisher("redis://127.0.0.1:1")
        except ImportError as exc:
            print(exc)
        """,
        missing,
    )
    assert "pip install 'wsmiddleware[redis]'" in printed


@pytest.mark.parametrize("url", ["http://x", "redis://:s3cret@host:x", "redis+cluster://a"])
def test_wrong_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Publisher(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("user", [None, ""])
def test_user_who_is_nobody_is_an_error_and_not_everybody(user: str | None) -> None:
    with pytest.raises(ValueError, match="nobody"):
        Publisher("redis://127.0.0.1:1").publish("chat", "x", user=user)


def test_wrong_arguments_are_told_before_anything_is_sent() -> None:
    publisher = Publisher("redis://127.0.0.1:1")
    with pytest.raises(ValueError, match="group"):
        publisher.publish("chat", "x", "")
    with pytest.raises(TypeError, match="group"):
        publisher.publish("chat", "x", 7)
    with pytest.raises(TypeError, match="JSON"):
        publisher.publish("chat", object())
    with pytest.raises(ValueError, match="1,048,576"):
        publisher.publish("chat", "x" * 1_048_577)
    assert publisher.publish("chat", None) is False
    publisher.close()


@pytest.mark.once
def test_without_redis_nothing_is_published_and_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Publisher("redis://:s3cret@127.0.0.1:1") as publisher:
        begun = time.monotonic()
        assert publisher.publish("chat", "x") is False
        assert publisher.position("chat") == ""
        assert time.monotonic() - begun < 4
    assert "is dropped" in caplog.text and "s3cret" not in caplog.text


# -- with one --------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    ("message", "kind", "payload"),
    [
        ("ä", Kind.TEXT, "ä".encode()),
        (b"\xff", Kind.BYTES, b"\xff"),
        (bytearray(b"x"), Kind.BYTES, b"x"),
        ({"ä": [1]}, Kind.JSON, '{"ä": [1]}'.encode()),
        (0, Kind.JSON, b"0"),
    ],
)
def test_message_goes_out_as_a_returned_value_does(
    server: RedisServer, message: object, kind: Kind, payload: bytes
) -> None:
    with node(server) as listener, Publisher(server.url) as publisher:
        assert publisher.publish("chat", message, "lobby", exclude="me", user=7) is True
        assert publisher.publish("chat", message, "lobby", exclude=["a", "b"]) is True
        wait_until(lambda: len(listener.envelopes) == 2)
    one, other = listener.envelopes
    assert (one.kind, one.payload, one.subject) == (kind, payload, SUBJECT)
    assert (one.user, one.excluded, one.position) == ("7", {"me"}, None)
    assert (other.user, other.excluded) == (None, {"a", "b"})


@pytest.mark.once
def test_history_is_the_channels_own(server: RedisServer) -> None:
    with node(server, KEPT) as listener, Publisher(server.url) as publisher:
        start = publisher.position("chat", "lobby")
        for n in range(3):
            assert publisher.publish("chat", str(n), "lobby")
        assert publisher.publish("chat", "for one", "lobby", user="joe")
        epoch, offset = publisher.position("chat", "lobby").split(":")
        assert (start, offset) == (f"{epoch}:0", "3")
        wait_until(lambda: len(listener.envelopes) == 4)
    assert [one.position for one in listener.envelopes] == [
        *(Position(epoch, n) for n in (1, 2, 3)),
        None,  # what is meant for one person is never stored
    ]


@pytest.mark.once
def test_position_without_history_is_none(server: RedisServer) -> None:
    with node(server), Publisher(server.url) as publisher:
        assert publisher.position("chat") == ""


@pytest.mark.once
def test_channel_that_nobody_announced_is_a_lookup_error(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        with pytest.raises(LookupError, match="nowhere"):
            publisher.publish("nowhere", "x")
        with pytest.raises(LookupError, match="nowhere"):
            publisher.position("nowhere")


@pytest.mark.once
def test_many_threads_publish_each_in_order(server: RedisServer) -> None:
    with node(server, KEPT), Publisher(server.url) as publisher:
        results: list[bool] = []

        def publish(name: str) -> None:
            for n in range(25):
                results.append(publisher.publish("chat", f"{name}{n}", "lobby"))

        threads = [threading.Thread(target=publish, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == [True] * 100
        with node(server, KEPT) as other:
            [reading] = other._engine.read([ReadRequest(SUBJECT, KEPT, 0)])
        texts = [decode(entry.data).payload.decode() for entry in reading.entries]
        for name in "abcd":
            assert [t for t in texts if t[0] == name] == [f"{name}{n}" for n in range(25)]


@pytest.mark.once
def test_what_hangs_is_not_yet_and_comes_once(server: RedisServer) -> None:
    with node(server, KEPT), Publisher(server.url) as publisher:
        assert publisher.publish("chat", "a", "lobby") is True
        server.freeze()
        begun = time.monotonic()
        assert publisher.publish("chat", "b", "lobby") is False
        assert 0.9 < time.monotonic() - begun < 3
        assert publisher.publish("chat", "c", "lobby", wait=False) is False
        thaw = gevent.spawn_later(0.5, server.thaw)
        publisher.close()  # what waits is published
        thaw.get()
        with Publisher(server.url) as other:
            assert other.position("chat", "lobby").endswith(":3")


@pytest.mark.once
def test_closed_one_says_so(server: RedisServer) -> None:
    publisher = Publisher(server.url)
    publisher.close()
    publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        publisher.publish("chat", "x")


@pytest.mark.once
def test_cluster_is_a_config_error() -> None:
    with (
        redis_server("--cluster-enabled", "yes") as server,
        Publisher(server.url) as publisher,
        pytest.raises(ConfigError, match="Cluster"),
    ):
        publisher.publish("chat", "x")


@pytest.mark.once
def test_child_of_a_fork_connects_by_itself(server: RedisServer) -> None:
    with node(server, KEPT) as listener:
        printed = run(
            """
            import os, sys, warnings
            from wsmiddleware import Publisher
            warnings.simplefilter("ignore")  # of forking with threads
            publisher = Publisher(sys.argv[1])
            assert publisher.publish("chat", "parent", "lobby")
            for n in range(3):
                if (child := os.fork()) == 0:
                    ok = publisher.publish("chat", f"child {n}", "lobby")
                    publisher.close()
                    os._exit(0 if ok else 1)
                assert os.waitpid(child, 0)[1] == 0
            assert publisher.publish("chat", "parent again", "lobby")
            publisher.close()
            print("gevent" in sys.modules)
            """,
            server.url,
        )
        assert printed == "False\n"
        wait_until(lambda: len(listener.envelopes) == 5)
    texts = [one.payload.decode() for one in listener.envelopes]
    assert texts == ["parent", "child 0", "child 1", "child 2", "parent again"]
