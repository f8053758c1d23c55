"""What one publication does in Redis, and what is read of it: a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from support import wait_until
from support.backplane import SUBJECT, Follower, Producer, message, redis_engine
from support.redis import RedisServer, redis_server
from wsmiddleware.backplane.engine import (
    MAX_FORKS,
    Announcement,
    Entry,
    Fork,
    History,
    Link,
    LinkDown,
    Outcome,
    Position,
    Publication,
    Reading,
    ReadRequest,
    Status,
    Subject,
)
from wsmiddleware.backplane.envelope import decode, stamp
from wsmiddleware.backplane.keys import Keys
from wsmiddleware.backplane.redis import RedisEngine

pytestmark = pytest.mark.once

KEPT = History(3, 60)
KEYS = Keys("wsmiddleware", 0)
NAMES = KEYS.subject(SUBJECT)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def engine(server: RedisServer) -> Iterator[RedisEngine]:
    server.cli("FLUSHALL")
    with redis_engine(server.url) as engine:
        yield engine


def publication(number: int, history: History = KEPT, producer: str = "p") -> Publication:
    return Publication(SUBJECT, message(f"m{number}"), history, producer, number)


def read(engine: RedisEngine, since: int | None = 0, history: History = KEPT) -> Reading:
    [reading] = engine.read([ReadRequest(SUBJECT, history, since)])
    return reading


def offsets(reading: Reading) -> list[int]:
    return [entry.offset for entry in reading.entries]


def statuses(outcomes: list[Outcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


# -- one entry, in one order -----------------------------------------------------------------------


def test_entry_is_the_envelope_with_its_place(engine: RedisEngine) -> None:
    [outcome] = engine.publish([publication(1)])
    reading = read(engine)
    assert outcome.position == reading.position == Position(reading.epoch, 1)
    assert reading.entries == (Entry(1, stamp(message("m1"), reading.position)),)


def test_offsets_past_32_bits_are_stamped(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    for top in (2**32 - 1, 2**53 - 3):
        server.cli("HSET", NAMES.meta, "top", str(top))
        [outcome] = engine.publish([publication(top % 1000 + 2)])
        assert outcome.position is not None and outcome.position.offset == top + 1
        [entry] = read(engine, top).entries
        assert entry.offset == top + 1 and decode(entry.data).position == outcome.position
        server.cli("DEL", KEYS.subject(SUBJECT).sequence[0] + b"p" + NAMES.sequence[1])


def test_repetition_is_published_once(engine: RedisEngine) -> None:
    batch = [publication(1), publication(2)]
    engine.publish(batch)
    assert engine.publish(batch) == [Outcome(Status.PUBLISHED)] * 2
    assert read(engine).top == 2


def test_call_that_runs_late_changes_nothing(engine: RedisEngine) -> None:
    # It was given up, tried again, and what came behind it was published; now it arrives.
    engine.publish([publication(1), publication(2)])
    engine.publish([publication(1)])
    assert [decode(entry.data).payload for entry in read(engine).entries] == [b"m1", b"m2"]


def test_numbers_are_each_producers_and_each_subjects(engine: RedisEngine) -> None:
    other = Subject("chat", "other")
    batch = [
        publication(5),
        publication(1, producer="q"),
        Publication(other, message("m", other), KEPT, "p", 1),
    ]
    assert all(outcome.position for outcome in engine.publish(batch))


def test_numbers_are_kept_for_a_minute(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    assert 58_000 < int(server.cli("PTTL", b"p".join(NAMES.sequence))) <= 60_000


def test_what_follows_one_that_was_refused_waits(engine: RedisEngine, server: RedisServer) -> None:
    # The one in the middle fails for want of memory; Redis could take the last one.
    engine.publish([publication(1)])
    commands = [
        engine._scripts.publish(publication(3), publication(2), compare=False),
        engine._scripts.publish(publication(3), publication(1), compare=False),
    ]
    assert engine._writer.call(commands)[0] == -1
    assert read(engine).top == 2


def test_no_memory_fails_whole_and_recovers(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    before = read(engine)
    server.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        outcomes = engine.publish([publication(2), publication(3)])
        assert statuses(outcomes)[0] is Status.FAILED
        assert Status.PUBLISHED not in statuses(outcomes)
        assert "OOM" in outcomes[0].reason
    finally:
        server.cli("CONFIG", "SET", "maxmemory", "0")
    assert read(engine) == before
    assert statuses(engine.publish([publication(4)])) == [Status.PUBLISHED]


def test_too_few_replicas_fail_a_publication(engine: RedisEngine, server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        [outcome] = engine.publish([publication(1)])
    finally:
        server.cli("CONFIG", "SET", "min-replicas-to-write", "0")
    assert outcome.status is Status.FAILED and "NOREPLICAS" in outcome.reason
    assert server.cli("KEYS", "*") == ""


def test_scripts_are_loaded_again_in_order(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    server.cli("SCRIPT", "FLUSH")
    assert all(o.position for o in engine.publish([publication(n) for n in (2, 3, 4)]))
    server.cli("SCRIPT", "FLUSH")
    assert [decode(entry.data).payload for entry in read(engine).entries] == [b"m2", b"m3", b"m4"]


def test_four_engines_at_once_have_one_order(server: RedisServer) -> None:
    server.cli("FLUSHALL")
    history = History(1000, 60)

    def publish(name: str) -> None:
        with redis_engine(server.url) as engine:
            producer = Producer(engine, history)
            for n in range(50):
                producer.publish(f"{name}{n}")

    with redis_engine(server.url) as engine:
        follower = Follower(history)
        follower.follow(engine)
        assert follower.live.wait(10)
        threads = [threading.Thread(target=publish, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        wait_until(lambda: len(follower.texts) >= 200)
        entries = [
            decode(entry.data).payload.decode() for entry in read(engine, 0, history).entries
        ]
        assert follower.texts == entries
        for name in "abcd":
            assert [t for t in entries if t[0] == name] == [f"{name}{n}" for n in range(50)]
        follower.end()


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 10])
def test_exactly_so_many_are_kept(engine: RedisEngine, count: int) -> None:
    history = History(count, 60)
    engine.publish([publication(n, history) for n in range(1, 251)])
    assert offsets(read(engine, 0, history)) == list(range(251 - count, 251))


def test_none_is_older_than_its_time(engine: RedisEngine, server: RedisServer) -> None:
    history = History(100, 0.4)
    engine.publish([publication(n, history) for n in range(1, 21)])
    first_is_old = threading.Event()
    first_is_old.wait(0.25)
    engine.publish([publication(21, history)])
    first_is_old.wait(0.25)
    # Redis's own clock has moved by more than 0.4 s since the first, by less since the last.
    assert offsets(read(engine, 0, history)) in ([21], [])
    engine.publish([publication(22, history)])
    assert int(server.cli("XLEN", NAMES.stream)) <= 2


def test_stream_that_expired_leaves_its_top(engine: RedisEngine, server: RedisServer) -> None:
    history = History(3, 0.1)
    engine.publish([publication(1, history)])
    wait_until(lambda: server.cli("EXISTS", NAMES.stream) == "0")
    reading = read(engine, 1, history)
    assert (reading.top, reading.entries) == (1, ())
    [outcome] = engine.publish([publication(2, history)])
    assert outcome.position == Position(reading.epoch, 2)


def test_every_key_expires_and_meta_last(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    engine.announce(Announcement(b"node0001", {"chat": KEPT}))
    keys = server.cli("KEYS", "*").split("\n")
    assert len(keys) == 4
    left = {key: int(server.cli("TTL", key)) for key in keys}
    assert min(left.values()) > 0
    assert left[NAMES.meta.decode()] > 86_000 > 61 > left[NAMES.stream.decode()]


def test_reading_renews_the_meta(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    server.cli("EXPIRE", NAMES.meta, "10")
    read(engine)
    assert int(server.cli("TTL", NAMES.meta)) > 86_000


def test_history_made_shorter_is_trimmed(engine: RedisEngine) -> None:
    engine.publish([publication(n, History(100, 60)) for n in range(1, 101)])
    engine.publish([publication(101, History(2, 60))])
    assert offsets(read(engine)) == [100, 101]


# -- reading ---------------------------------------------------------------------------------------


def test_stream_that_is_not_there_begins(engine: RedisEngine) -> None:
    reading = read(engine)
    assert (reading.top, reading.forks, reading.entries) == (0, (), ())
    [outcome] = engine.publish([publication(1)])
    assert outcome.position == Position(reading.epoch, 1)


def test_reading_gives_the_first_ones_after(engine: RedisEngine) -> None:
    history = History(100, 60)
    engine.publish([publication(n, history) for n in range(1, 101)])
    [reading] = engine.read([ReadRequest(SUBJECT, history, 40, 25)])
    assert reading.top == 100 and offsets(reading) == list(range(41, 66))
    assert offsets(read(engine, 100, history)) == offsets(read(engine, 500, history)) == []
    assert offsets(read(engine, None, history)) == []


def test_reading_of_large_entries_is_bounded(engine: RedisEngine) -> None:
    history = History(100, 60)
    large = "x" * 1_000_000
    engine.publish([Publication(SUBJECT, message(large), history, "p", n) for n in range(1, 31)])
    reading = read(engine, 0, history)
    assert offsets(reading) == list(range(1, len(reading.entries) + 1))
    assert 1 < len(reading.entries) < 10 and reading.top == 30


def test_many_are_read_at_once(engine: RedisEngine) -> None:
    subjects = [Subject("chat", str(n)) for n in range(1200)]
    readings = engine.read([ReadRequest(subject, KEPT) for subject in subjects])
    assert len({reading.epoch for reading in readings}) == 1200


# -- epochs and forks ------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [NAMES.meta, b""])
def test_without_meta_all_begins_anew(
    engine: RedisEngine, server: RedisServer, lost: bytes
) -> None:
    engine.publish([publication(n) for n in (1, 2)])
    before = read(engine)
    server.cli(*(("DEL", lost) if lost else ("FLUSHALL",)))
    [outcome] = engine.publish([publication(3)])
    after = read(engine)
    assert outcome.position == after.position == Position(after.epoch, 1)
    assert after.epoch != before.epoch and after.forks == () and len(after.entries) == 1


def test_failing_over_and_back_with_a_lost_tail_is_noticed(server: RedisServer) -> None:
    history = History(100, 60)
    server.cli("FLUSHALL")
    with redis_server() as replica, redis_engine(server.url) as engine:
        engine.publish([publication(n, history) for n in range(1, 6)])
        replica.follow(server)
        wait_until(lambda: replica.cli("EXISTS", NAMES.meta) == "1")
        replica.cli("REPLICAOF", "NO", "ONE")  # it lags from here on
        engine.publish([publication(n, history) for n in range(6, 11)])
        before = read(engine, 0, history)
        # The other one is the master now, for a moment, and this one its replica again.
        server.cli("REPLICAOF", "127.0.0.1", str(replica.port))
        server.caught_up()
        server.cli("REPLICAOF", "NO", "ONE")
    with redis_engine(server.url) as engine:
        after = read(engine, 0, history)
        assert before.top == 10 and after.top == 5
        assert after.epoch != before.epoch and after.forks == (Fork(before.epoch, 5),)
        [outcome] = engine.publish([publication(6, history, "q")])
        assert outcome.position == Position(after.epoch, 6)


def test_forks_are_kept_oldest_first_and_eight(engine: RedisEngine, server: RedisServer) -> None:
    epochs = []
    for number in range(1, 13):
        engine.publish([publication(number)])
        epochs.append(read(engine, None).epoch)
        server.cli("HSET", NAMES.meta, "line", "f" * 40)  # another master's
    reading = read(engine, None)
    assert len(set(epochs)) == 12
    # Each epoch was found to have ended at the look behind the next publication.
    shared = [Fork(epoch, min(offset + 1, 12)) for offset, epoch in enumerate(epochs, 1)]
    assert reading.forks == tuple(shared[-MAX_FORKS:])


def test_line_is_compared_at_first_use_and_when_looked_at(
    engine: RedisEngine, server: RedisServer
) -> None:
    engine.publish([publication(1)])
    first = read(engine, None).epoch
    server.cli("HSET", NAMES.meta, "line", "f" * 40)
    [outcome] = engine.publish([publication(2)])
    assert outcome.position == Position(first, 2)  # not at every publication
    with redis_engine(server.url) as other:
        [outcome] = other.publish([publication(3)])
        assert outcome.position is not None and outcome.position.epoch != first


def test_without_info_nothing_is_compared_and_all_else_works(server: RedisServer) -> None:
    server.cli("FLUSHALL")
    server.cli("ACL", "SETUSER", "joe", "on", ">x", "~*", "&*", "+@all", "-info")
    try:
        with redis_engine(server.url.replace("//", "//joe:x@")) as engine:
            engine.publish([publication(1)])
            first = read(engine, None)
            server.cli("HSET", NAMES.meta, "line", "f" * 40)
            assert read(engine, None).epoch == first.epoch
            assert statuses(engine.publish([publication(2)])) == [Status.PUBLISHED]
    finally:
        server.cli("ACL", "DELUSER", "joe")


# -- what other tools do ---------------------------------------------------------------------------


@pytest.mark.parametrize("entry_id", ["*", "2-0", "2-5", "900-0"])
def test_foreign_entry_ends_the_epoch(
    engine: RedisEngine, server: RedisServer, entry_id: str
) -> None:
    engine.publish([publication(1)])
    before = read(engine)
    server.cli("XADD", NAMES.stream, entry_id, "field", "value")
    assert read(engine) == before  # it is behind the top
    outcomes = engine.publish([publication(2), publication(3)])
    after = read(engine)
    assert statuses(outcomes) == [Status.PUBLISHED] * 2
    # No subscriber believes that nothing is between: a new epoch, or a hole.
    assert after.epoch != before.epoch
    assert offsets(after) == [1, 2] and after.forks == ()


def test_foreign_entry_in_an_expired_stream_is_a_hole(
    engine: RedisEngine, server: RedisServer
) -> None:
    engine.publish([publication(n) for n in (1, 2, 3)])
    server.cli("DEL", NAMES.stream)
    server.cli("XADD", NAMES.stream, "2-0", "a", "b")
    server.cli("XADD", NAMES.stream, "2-1", "t", "1", "d", "x")
    server.cli("XADD", NAMES.stream, "3-0", "t", "99999999999999", "x", "y")
    # Nothing of what they hold is taken for an envelope.
    assert read(engine).entries == (Entry(2, b""), Entry(3, b""))


def test_stream_of_another_type_is_replaced(engine: RedisEngine, server: RedisServer) -> None:
    engine.publish([publication(1)])
    server.cli("SET", NAMES.stream, "x")
    assert statuses(engine.publish([publication(2)])) == [Status.PUBLISHED]


def test_foreign_payload_arrives_as_it_is(engine: RedisEngine, server: RedisServer) -> None:
    follower = Follower()
    follower.follow(engine)
    assert follower.live.wait(10)
    server.cli("PUBLISH", NAMES.channel, "hello")
    for channel in (KEYS.everybody, KEYS.inboxes + b"00"):
        for payload in ("", "A", "P", "x" * 100, "A" * 17):
            server.cli("PUBLISH", channel, payload)
    Producer(engine, None).publish("after")
    wait_until(lambda: follower.texts == ["after"])
    assert follower.foreign == [b"hello"]
    assert ("lost", Link.READING) not in follower.links
    follower.end()


# -- subscriptions, announcements, questions -------------------------------------------------------


def test_what_is_dropped_arrives_no_more(engine: RedisEngine) -> None:
    follower = Follower()
    follower.follow(engine)
    assert follower.live.wait(10)
    producer = Producer(engine, None)
    engine.subscribe([], [SUBJECT])
    producer.publish("unheard")
    follower.live.clear()
    engine.subscribe([SUBJECT])
    assert follower.live.wait(10)
    producer.publish("heard")
    wait_until(lambda: follower.texts == ["heard"])
    follower.end()


def test_ten_thousand_subjects_are_subscribed_at_once(
    engine: RedisEngine, server: RedisServer
) -> None:
    follower = Follower()
    follower.follow(engine)
    assert follower.live.wait(10)
    subjects = [Subject("chat", str(n)) for n in range(10_000)]

    def listening() -> int:
        return len(server.cli("PUBSUB", "CHANNELS", "*:chat:*").split())

    engine.subscribe(subjects)
    wait_until(lambda: listening() == 10_001)
    engine.subscribe([], subjects)
    wait_until(lambda: listening() == 1)
    assert len(engine._reader._subjects) == 1  # nothing stays
    follower.end()


def test_announcement_is_found_by_who_serves_nobody(engine: RedisEngine) -> None:
    engine.announce(Announcement(b"node0001", {"chat": History(7, 0.5), "news": None}))
    assert engine.announced("chat") == History(7, 0.5)
    assert engine.announced("news") is None
    with pytest.raises(LookupError, match="nowhere"):
        engine.announced("nowhere")


def test_every_node_answers_and_the_silent_are_named(server: RedisServer) -> None:
    nodes = [b"node000%d" % n for n in range(3)]
    with redis_engine(server.url) as one, redis_engine(server.url) as two:
        followers = [Follower(), Follower()]
        for follower, engine, node in zip(followers, (one, two), nodes, strict=False):
            follower.follow(engine, node)
            assert follower.live.wait(10)
        answers = one.ask(b"how many?", 5)
        assert answers.answers == dict.fromkeys(nodes[:2], b"answer to how many?")
        assert not answers.missing
        assert one.ask(b"?", 0.2).missing == {*nodes[:2]}
        for follower in followers:
            follower.end()


def test_two_prefixes_and_two_databases_hear_nothing_of_each_other(server: RedisServer) -> None:
    server.cli("FLUSHALL")
    other_database = server.url.removesuffix("0") + "1"
    with (
        redis_engine(server.url) as one,
        redis_engine(server.url, "other") as two,
        redis_engine(other_database) as three,
    ):
        followers = [Follower(), Follower(), Follower()]
        for n, (follower, engine) in enumerate(zip(followers, (one, two, three), strict=True)):
            follower.follow(engine, b"node000%d" % n)
            assert follower.live.wait(10)
        for name, engine in zip("abc", (one, two, three), strict=True):
            Producer(engine, None).publish(name)
            assert len(engine.ask(b"who?", 5).answers) == 1
            assert engine.publish([publication(1)])[0].position is not None
        wait_until(lambda: [len(f.texts) for f in followers] == [2, 2, 2])
        assert [f.texts[0] for f in followers] == ["a", "b", "c"]
        for follower in followers:
            follower.end()


def test_engine_that_was_not_opened_cannot_subscribe(engine: RedisEngine) -> None:
    with pytest.raises(LinkDown):
        engine.subscribe([SUBJECT])


def test_user_of_the_prefix_alone_can_do_everything(server: RedisServer) -> None:
    server.cli("FLUSHALL")
    rights = "~wsmiddleware:* &wsmiddleware:* +@all -@dangerous +info"  # as the page says
    server.cli("ACL", "SETUSER", "joe", "on", ">x", *rights.split())
    try:
        with redis_engine(server.url.replace("//", "//joe:x@")) as engine:
            follower = Follower(KEPT)
            follower.follow(engine, b"node0001")
            assert follower.live.wait(10)
            Producer(engine, KEPT).publish("a")
            wait_until(lambda: follower.texts == ["a"])
            engine.announce(Announcement(b"node0001", {"chat": KEPT}))
            assert engine.announced("chat") == KEPT
            assert engine.ask(b"who?", 5).answers
            server.cli("HSET", NAMES.meta, "line", "f" * 40)
            assert len(read(engine, None).forks) == 1  # it may ask whose history it is
            follower.end()
    finally:
        server.cli("ACL", "DELUSER", "joe")
