"""Faults of a real Redis and of the way to it: with a history nothing is lost, or it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
import trustme
from gevent.server import StreamServer

from support import wait_until
from support.backplane import SUBJECT, Follower, Producer, message
from support.nginx import free_port
from support.redis import RedisServer, redis_server, sentinel
from wsmiddleware.backplane import supervisor
from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import History, Link, Publication, ReadRequest, Status
from wsmiddleware.backplane.keys import Keys
from wsmiddleware.backplane.redis import RedisEngine

pytestmark = pytest.mark.once

KEPT = History(10_000, 300)
NAMES = Keys("wsmiddleware", 0).subject(SUBJECT)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """For what leaves it as it was."""
    shared.cli("FLUSHALL")
    return shared


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """For what breaks it."""
    with redis_server() as server:
        yield server


@contextlib.contextmanager
def following(url: str, history: History | None = KEPT) -> Iterator[tuple[RedisEngine, Follower]]:
    """An engine with a follower that is live."""
    engine, follower = RedisEngine(Address.parse(url)), Follower(history)
    follower.follow(engine)
    try:
        assert follower.live.wait(10) and engine.wait(10), engine.trouble
        yield engine, follower
    finally:
        engine.close()
        follower.end()


def texts(count: int, start: int = 0) -> list[str]:
    return [str(n) for n in range(start, start + count)]


def has_arrived(follower: Follower, expected: list[str], timeout: float = 20) -> None:
    wait_until(
        lambda: len(follower.texts) >= len(expected),
        lambda: f"{len(follower.texts)} of {len(expected)} came, {follower.links}",
        timeout,
    )
    assert follower.texts == expected and not follower.resets


# -- links are cut ---------------------------------------------------------------------------------


def test_links_cut_twenty_times_in_5000_publications(server: RedisServer) -> None:
    with following(server.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        for round_ in range(20):
            producer.publish(*texts(125, 250 * round_))
            cutter = gevent.spawn(server.kill_clients, "pubsub" if round_ % 2 else "normal")
            for n in range(125):
                producer.publish(str(250 * round_ + 125 + n))
                gevent.sleep(0.001)
            cutter.get()
        has_arrived(follower, texts(5000))
        assert engine.reconnects >= 10


def test_links_cut_without_history_lose_what_is_told(server: RedisServer) -> None:
    with following(server.url, None) as (engine, follower):
        published = []
        for n in range(2000):
            if n % 200 == 100:
                gevent.sleep(0.2)
                server.kill_clients("normal")
            [outcome] = engine.publish([Publication(SUBJECT, message(str(n)))])
            if outcome.status is Status.PUBLISHED:
                published.append(str(n))
            else:
                engine.wait(5)
        wait_until(lambda: follower.texts[-1:] == published[-1:])
        # The reading link was never cut: all that was answered came, once, in order.
        assert [text for text in follower.texts if text in {*published}] == published
        assert len(follower.texts) == len(set(follower.texts))


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_one_link_cut_leaves_the_other(server: RedisServer, kind: str) -> None:
    link, other = Link.READING, Link.WRITING
    if kind == "normal":
        link, other = other, link
    with following(server.url) as (engine, follower):
        Producer(engine, KEPT).publish("a")
        server.kill_clients(kind)
        wait_until(lambda: ("lost", link) in follower.links)
        Producer(engine, KEPT).publish("b")
        has_arrived(follower, ["a", "b"])
        wait_until(lambda: follower.links.count(("opened", link)) == 2)
        assert follower.links.count(("opened", other)) == 1


def test_server_that_ends_idle_links_loses_nothing(own: RedisServer) -> None:
    with following(own.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        own.cli("CONFIG", "SET", "timeout", "3")
        producer.publish("a")
        gevent.sleep(4.5)
        assert engine.reconnects == 0  # the link is kept warm
        own.cli("CONFIG", "SET", "timeout", "1")
        producer.publish("b")
        wait_until(lambda: ("lost", Link.WRITING) in follower.links)
        producer.publish("c")
        has_arrived(follower, ["a", "b", "c"])


def test_giant_of_another_tool_costs_the_link_and_no_message(own: RedisServer) -> None:
    own.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")
    with following(own.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        producer.publish("before")
        has_arrived(follower, ["before"])
        own.cli("PUBLISH", NAMES.channel, "x" * 8_000_000)
        producer.publish("after")
        wait_until(lambda: ("lost", Link.READING) in follower.links)
        has_arrived(follower, ["before", "after"])


# -- Redis goes, hangs, comes back -----------------------------------------------------------------


def test_killed_and_started_empty_begins_a_new_epoch(own: RedisServer) -> None:
    with following(own.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        producer.publish("a", "b")
        has_arrived(follower, ["a", "b"])
        own.stop()
        begun = time.monotonic()
        [outcome] = engine.publish([Publication(SUBJECT, message("x"), KEPT, "x", 1)])
        assert outcome.status in (Status.AGAIN, Status.UNKNOWN)
        assert time.monotonic() - begun < 1  # nobody waits for what is known to be down
        own.start()
        producer.publish("c")
        wait_until(lambda: bool(follower.resets))
        producer.publish("d")
        wait_until(lambda: follower.texts[-1] == "d")
        assert follower.resets == ["had 2, shares -1"]


def test_killed_and_started_from_its_log_loses_nothing(own: RedisServer) -> None:
    own.cli("CONFIG", "SET", "appendonly", "yes")
    own.cli("CONFIG", "SET", "appendfsync", "always")
    with following(own.url) as (engine, follower):
        wait_until(lambda: "aof_rewrite_in_progress:0" in own.cli("INFO", "persistence"))
        producer = Producer(engine, KEPT)
        producer.publish(*texts(20))
        own.stop()
        own.start("--appendonly", "yes")
        producer.publish(*texts(20, 20))
        has_arrived(follower, texts(40))
        [reading] = engine.read([ReadRequest(SUBJECT, KEPT)])
        assert len(reading.forks) == 1  # another line, which shares all of the old one


def test_started_from_an_old_snapshot_is_noticed(own: RedisServer) -> None:
    with following(own.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        producer.publish(*texts(5))
        assert own.cli("SAVE") == "OK"
        producer.publish(*texts(5, 5))
        has_arrived(follower, texts(10))
        own.stop()
        own.start()
        wait_until(lambda: bool(follower.resets))
        assert follower.resets == ["had 10, shares 5"]
        producer.publish("after")
        wait_until(lambda: follower.texts[-1] == "after")


def test_stopped_and_continued_loses_nothing(own: RedisServer) -> None:
    with following(own.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        producer.publish(*texts(10))
        own.freeze()
        waker = gevent.spawn_later(7, own.thaw)
        # It is sent once and hangs; what is sent when Redis goes on may be carried out late.
        producer.publish(*texts(10, 10))
        waker.get()
        assert Status.UNKNOWN in {outcome.status for outcome in producer.failures}
        has_arrived(follower, texts(20))


def test_stopped_server_is_noticed_by_both_links_within_ten_seconds(own: RedisServer) -> None:
    with following(own.url) as (engine, follower):
        own.freeze()
        begun = time.monotonic()
        wait_until(lambda: {("lost", link) for link in Link} <= {*follower.links}, timeout=20)
        assert time.monotonic() - begun < 12
        own.thaw()
        begun = time.monotonic()
        wait_until(lambda: engine.is_connected, timeout=20)
        assert time.monotonic() - begun < 7
        assert engine.lag is None


def test_quiet_link_is_probed_and_kept(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "QUIET_AFTER", 0.5)
    with following(server.url) as (engine, _):
        wait_until(lambda: engine.lag is not None)
        assert engine.lag is not None and 0 < engine.lag < 5
        assert engine.reconnects == 0


# -- the way to it ---------------------------------------------------------------------------------


def test_refused_then_hanging_then_back() -> None:
    with redis_server(start=False) as server:
        engine = RedisEngine(Address.parse(server.url))
        follower = Follower(KEPT)
        follower.follow(engine)
        try:
            wait_until(lambda: engine.trouble is not None)  # refused
            with socket.create_server(("127.0.0.1", server.port)):
                gevent.sleep(1.0)  # accepts, and says nothing
                assert not engine.is_connected
            server.start()
            begun = time.monotonic()
            wait_until(lambda: engine.is_connected, timeout=20)
            assert time.monotonic() - begun < 7
            assert follower.live.wait(10)
            Producer(engine, KEPT).publish("a")
            has_arrived(follower, ["a"])
        finally:
            engine.close()
            follower.end()


def test_name_that_does_not_resolve_for_a_while(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the thing that is tested: the network's names.
    resolve, is_known = socket.getaddrinfo, threading.Event()

    def lookup(host: str, *arguments: object, **options: object) -> object:
        if host == "redis.test" and not is_known.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1" if host == "redis.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    engine = RedisEngine(Address.parse(server.url.replace("127.0.0.1", "redis.test")))
    follower = Follower(KEPT)
    follower.follow(engine)
    try:
        gevent.sleep(2)
        assert "name resolution" in str(engine.trouble)
        begun = time.monotonic()
        [outcome] = engine.publish([Publication(SUBJECT, message("x"), KEPT, "x", 1)])
        assert outcome.status is Status.AGAIN and time.monotonic() - begun < 1
        is_known.set()
        assert follower.live.wait(10)
        Producer(engine, KEPT).publish("a")
        has_arrived(follower, ["a"])
    finally:
        engine.close()
        follower.end()


class Proxy:
    """Between us and Redis; can let go of what is on its way in one direction."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.mute = False
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.server_port}/0"

    def _serve(self, ours: socket.socket, _: object) -> None:
        with socket.create_connection(("127.0.0.1", self._to)) as theirs:
            back = gevent.spawn(self._pump, theirs, ours, True)
            self._pump(ours, theirs, False)
            back.kill()

    def _pump(self, source: socket.socket, target: socket.socket, is_back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (self.mute and is_back and b"message" in data):
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._server.stop()


def test_link_that_hears_no_publications_is_deaf(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "QUIET_AFTER", 0.5)
    monkeypatch.setattr(supervisor, "DEAF_AFTER", 1.0)
    # Redis answers every PING, but what is published does not come: a proxy's or a cluster's fault.
    proxy = Proxy(server.port)
    with following(proxy.url) as (engine, follower):
        proxy.mute = True
        Producer(engine, KEPT).publish("a")
        wait_until(lambda: ("lost", Link.READING) in follower.links, timeout=20)
        has_arrived(follower, ["a"])  # read when it was opened again
        proxy.mute = False
    proxy.stop()


# -- what an operator has to mend ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acl", "user", "told"),
    [
        ([], "joe:wrong", "AuthenticationError"),
        (["~*", "&*", "+@all", "-evalsha", "-script"], "joe:x", "NOPERM"),
        (["~*", "&*", "+@all", "-subscribe"], "joe:x", "NOPERM"),
        (["~*", "resetchannels", "+@all"], "joe:x", "NOPERM"),
    ],
)
def test_what_is_not_allowed_is_one_loud_line(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    acl: list[str],
    user: str,
    told: str,
) -> None:
    server.cli("ACL", "SETUSER", "joe", "on", ">x", *acl)
    engine = RedisEngine(Address.parse(server.url.replace("//", f"//{user}@")))
    follower = Follower()
    follower.follow(engine)
    try:
        wait_until(lambda: any(one.levelname == "ERROR" for one in caplog.records))
        lines = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
        assert told in lines[0] and user not in lines[0] and "joe" not in lines[0].split("user")[0]
        assert len({*lines}) == len(lines) <= 2  # one a link
        assert engine.trouble is not None and engine.trouble.is_loud
    finally:
        engine.close()
        follower.end()
        server.cli("ACL", "DELUSER", "joe")


def test_redis_cluster_is_refused_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server("--cluster-enabled", "yes") as server:
        engine = RedisEngine(Address.parse(server.url))
        try:
            assert not engine.wait(0.3)
            wait_until(lambda: engine.trouble is not None)
            assert engine.trouble is not None and engine.trouble.is_loud
            assert "Cluster" in caplog.text
        finally:
            engine.close()


# -- replicas and Sentinels ------------------------------------------------------------------------


def test_replica_is_no_place_to_write(own: RedisServer) -> None:
    with redis_server() as master, following(own.url) as (engine, follower):
        Producer(engine, KEPT).publish("a")
        has_arrived(follower, ["a"])
        own.follow(master)
        [outcome] = engine.publish([Publication(SUBJECT, message("x"), KEPT, "x", 1)])
        assert outcome.status is Status.AGAIN and "READONLY" in outcome.reason
        wait_until(lambda: engine.trouble is not None)
        assert "no master" in str(engine.trouble)
        own.cli("REPLICAOF", "NO", "ONE")
        Producer(engine, KEPT).publish("b")
        wait_until(lambda: follower.texts[-1] == "b" or follower.resets)


def test_sentinels_lead_to_the_replica_that_lagged(own: RedisServer) -> None:
    with contextlib.ExitStack() as stack:
        replica = stack.enter_context(redis_server())
        replica.follow(own)  # a Sentinel that starts later sees it at once
        watcher = stack.enter_context(sentinel(own))
        wait_until(lambda: "slaves=1" in watcher.cli("INFO", "sentinel"), timeout=20)
        url = f"redis+sentinel://127.0.0.1:{watcher.port}/0/chat"
        with following(url) as (engine, follower):
            producer = Producer(engine, KEPT)
            producer.publish(*texts(5))
            has_arrived(follower, texts(5))
            wait_until(lambda: replica.cli("HGET", NAMES.meta, "top") == "5")
            assert replica.cli("SAVE") == "OK"
            replica.stop()
            producer.publish(*texts(5, 5))
            has_arrived(follower, texts(10))
            own.stop()
            replica.start("--replicaof", "127.0.0.1", str(own.port))
            producer.publish("after", patience=40)
            wait_until(lambda: follower.texts[-1] == "after" or follower.resets, timeout=20)
            # The tail never reached the new master: those who had it are told.
            assert follower.resets == ["had 10, shares 5"]


def test_sentinel_that_knows_nothing_is_told(own: RedisServer) -> None:
    with sentinel(own) as watcher:
        engine = RedisEngine(
            Address.parse(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watcher.port}/0/other")
        )
        try:
            assert not engine.wait(0.3)
            wait_until(lambda: engine.trouble is not None)
            assert "knows no master 'other'" in str(engine.trouble)
            assert "127.0.0.1:1" in str(engine.trouble)
        finally:
            engine.close()


# -- other ways in ---------------------------------------------------------------------------------


def test_unix_socket_and_password() -> None:
    with redis_server("--requirepass", "s3cret", "--unixsocket", "redis.sock") as server:
        for url in (
            f"valkey://:s3cret@127.0.0.1:{server.port}",
            f"unix://:s3cret@{server.folder}/redis.sock?db=1",
        ):
            with following(url) as (engine, follower):
                Producer(engine, KEPT).publish("a")
                has_arrived(follower, ["a"])


def test_tls_with_a_certificate_that_is_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    port, own = free_port(), str(tmp_path / "own.pem")
    files = ("--tls-cert-file", own, "--tls-key-file", own)
    ca = ("--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no")
    with redis_server("--tls-port", str(port), *files, *ca):
        url = f"rediss://127.0.0.1:{port}/1?ssl_ca_certs={tmp_path}"
        with following(f"{url}/ca.pem") as (engine, follower):
            Producer(engine, KEPT).publish(*texts(500))
            has_arrived(follower, texts(500))
            gevent.sleep(0.3)  # idle: it is looked at before it is used
            Producer(engine, KEPT).publish("after")
            has_arrived(follower, [*texts(500), "after"])
            assert engine.reconnects == 0
        stranger = RedisEngine(Address.parse(f"{url}/other.pem"))
        try:
            assert not stranger.wait(0.3)
            wait_until(lambda: stranger.trouble is not None)
            assert "certificate" in str(stranger.trouble)
        finally:
            stranger.close()


def test_callers_stop_leaves_a_link_that_works(server: RedisServer) -> None:
    # A time-out of gevent's in the middle of a call: the reply must not be taken for the next's.
    with following(server.url) as (engine, follower):
        producer = Producer(engine, KEPT)
        producer.publish("a")
        server.freeze()
        with gevent.Timeout(0.1, False):
            engine.announced("chat")
        server.thaw()
        producer.publish("b")
        has_arrived(follower, ["a", "b"])


def test_engine_leaves_nothing(server: RedisServer) -> None:
    before = threading.active_count()
    with following(server.url) as (engine, _):
        assert threading.active_count() > before
        engine.close()
        begun = time.monotonic()
        engine.close()  # more than once is once
        assert time.monotonic() - begun < 1
        wait_until(lambda: "wsmiddleware" not in server.cli("CLIENT", "LIST"))
    wait_until(lambda: threading.active_count() == before)
