"""What the backplane on Redis costs, beside redis-py's own publish and reader, in one run.

    python benchmarks/backplane.py [--seconds 2] [--rounds 3] [--url redis://…]

Starts a redis-server of its own where no URL is given. P is redis-py's `publish`, called one at a
time. Each row is measured in turn with what it is compared with; the medians are shown.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import contextlib
import functools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gevent
import redis
from gevent.event import Event

from wsmiddleware.backplane.address import Address
from wsmiddleware.backplane.engine import History, Subject
from wsmiddleware.backplane.envelope import Envelope, Kind, decode_head, encode
from wsmiddleware.backplane.redis import RedisEngine
from wsmiddleware.node.node import Node, Task

SUBJECT = Subject("chat", "lobby")
PAYLOAD = b"x" * 200
DATA = encode(Envelope(SUBJECT, Kind.TEXT, PAYLOAD))
KEPT = History(100, 300)
#: Messages of a reader's round, and how many publications a second latency is measured at.
MESSAGES, PACE = 20_000, 1000


class Greenlets:
    """Runs a node's work: a greenlet for each task."""

    def __init__(self, url: str, down: Callable[..., None]) -> None:
        self._wake = {task: Event() for task in Task}
        engine = RedisEngine(Address.parse(url))
        self.node = Node(
            engine, down, clock=time.monotonic, on_work=lambda task: self._wake[task].set()
        )
        works = {
            Task.SEND: self.node.send,
            Task.TEND: self.node.tend,
            Task.DELIVER: self.node.deliver,
        }
        self._greenlets = [gevent.spawn(self._run, self._wake[t], works[t]) for t in Task]
        self.node.open()
        while not self.node.is_connected:
            gevent.sleep(0.01)

    def _run(self, wake: Event, work: Callable[[], float | None]) -> None:
        while True:
            wake.clear()
            pause = work()
            if pause == 0.0:
                gevent.sleep(0)
            else:
                wake.wait(pause)

    def publish(self, history: History | None) -> None:
        """With history it waits for the position; without, for room."""
        ticket = self.node.publish(SUBJECT, Kind.TEXT, PAYLOAD, history=history)
        if history is not None and ticket.outcome is None:
            done = Event()
            ticket.on_settled = done.set
            done.wait(5)
        while history is None and self.node._outgoing._plain._count > 500:
            gevent.sleep(0)

    def close(self) -> None:
        self.node.close()
        gevent.killall(self._greenlets)


class Reader:
    """A receiver that parses the fixed head and queues."""

    def __init__(self) -> None:
        self.is_live, self.count, self.queue = Event(), 0, [b""]

    def opened(self, link: object) -> None: ...
    def lost(self, link: object, reason: str) -> None: ...
    def asked(self, question: bytes) -> None: ...

    def subscribed(self, subject: Subject) -> None:
        self.is_live.set()

    def arrived(self, subject: Subject, data: bytes) -> None:
        decode_head(data)
        self.queue.append(data)
        self.count += 1


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """A URL; of a process of its own where none is given."""
    if url:
        yield url
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Rate(NamedTuple):
    """Publications, by a second of the clock and by one of this process's processor time."""

    by_clock: float
    by_cpu: float


def measured(seconds: float, publish: Callable[[], object], greenlets: int) -> Rate:
    """Called in a loop by so many greenlets; each lets others run now and then."""
    clock, cpu, count = time.perf_counter(), time.process_time(), [0]

    def run() -> None:
        while time.perf_counter() - clock < seconds:
            for _ in range(10):
                publish()
            count[0] += 10
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(run) for _ in range(greenlets)])
    return Rate(count[0] / (time.perf_counter() - clock), count[0] / (time.process_time() - cpu))


def flood(url: str, channel: bytes) -> None:
    """`MESSAGES` to a channel, as fast as Redis takes them."""
    client = redis.Redis.from_url(url)
    for _ in range(MESSAGES // 500):
        pipeline = client.pipeline(transaction=False)
        for _ in range(500):
            pipeline.execute_command("PUBLISH", channel, DATA)
        pipeline.execute()
    client.close()


def their_reader(url: str) -> float:
    """CPU of this process for a message, in µs, read by redis-py."""
    client = redis.Redis.from_url(url)
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe("bench")
    pubsub.get_message(timeout=1)
    process = subprocess.Popen([sys.executable, __file__, "--flood", url, "bench"])
    count, queue = 0, []
    begun = time.process_time()
    while count < MESSAGES:
        message = pubsub.get_message(timeout=5)
        if message is not None:
            queue.append(message["data"])
            count += 1
    used = time.process_time() - begun
    process.wait()
    pubsub.close()
    client.close()
    return used / MESSAGES * 1e6


def our_reader(url: str) -> float:
    """The same by the engine, the fixed head of each envelope parsed."""
    engine, reader = RedisEngine(Address.parse(url)), Reader()
    engine.open(os.urandom(8), reader)
    while not engine.is_connected:
        gevent.sleep(0.01)
    engine.subscribe([SUBJECT])
    reader.is_live.wait()
    channel = engine._keys.subject(SUBJECT).channel.decode()
    process = subprocess.Popen([sys.executable, __file__, "--flood", url, channel])
    begun = time.process_time()
    while reader.count < MESSAGES:
        gevent.sleep(0.01)
    used = time.process_time() - begun
    process.wait()
    engine.close()
    return used / MESSAGES * 1e6


def paced(seconds: float, send: Callable[[str], object]) -> None:
    """`PACE` a second, each with its time."""
    begun = time.perf_counter()
    for number in range(int(seconds * PACE)):
        send(repr(time.perf_counter()))
        gevent.sleep(max(0.0, begun + (number + 1) / PACE - time.perf_counter()))


def quantiles(delays: list[float]) -> tuple[float, float]:
    """p50 and p99 in ms."""
    cuts = statistics.quantiles(delays, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3


def their_latency(url: str, seconds: float) -> tuple[float, float]:
    """From redis-py's publish to its reader, in ms."""
    client, delays = redis.Redis.from_url(url), []
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe("bench")
    pubsub.get_message(timeout=1)

    def read() -> None:
        while True:
            message = pubsub.get_message(timeout=5)
            if message is not None:
                delays.append(time.perf_counter() - float(message["data"]))

    reader = gevent.spawn(read)
    paced(seconds, lambda text: client.publish("bench", text))
    gevent.sleep(0.1)
    reader.kill()
    pubsub.close()
    client.close()
    return quantiles(delays)


def our_latency(url: str, seconds: float, history: History | None) -> tuple[float, float]:
    """From a node's publish to another node's `down`, in ms."""
    delays: list[float] = []

    def down(subject: Subject, event: object) -> None:
        if isinstance(event, Envelope):
            delays.append(time.perf_counter() - float(event.payload))

    sender, receiver = Greenlets(url, lambda *_: None), Greenlets(url, down)
    receiver.node.join(SUBJECT, history)
    gevent.sleep(0.3)
    paced(
        seconds,
        lambda text: sender.node.publish(SUBJECT, Kind.TEXT, text.encode(), history=history),
    )
    gevent.sleep(0.2)
    sender.close()
    receiver.close()
    return quantiles(delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        flood(options.flood[0], options.flood[1].encode())
        return
    with server(options.url) as url:
        report(url, options.seconds, options.rounds)


def report(url: str, seconds: float, rounds: int) -> None:
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in (*publishing(url, seconds), *reading(url), *latencies(url, seconds)):
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        low, high = min(values), max(values)
        print(f"{name:56} {statistics.median(values):9.2f}   {low:.2f} to {high:.2f}")


def publishing(url: str, seconds: float) -> Iterator[tuple[str, float]]:
    client, nodes = redis.Redis.from_url(url), Greenlets(url, lambda *_: None)
    base = measured(seconds, lambda: client.publish("bench", PAYLOAD), 1)
    yield "P: redis-py's publish, one at a time, a second", base.by_clock
    for kind, history in (("without history", None), ("with history", KEPT)):
        for greenlets in (1, 100):
            rate = measured(seconds, functools.partial(nodes.publish, history), greenlets)
            name = f"publish, {kind}, {greenlets} greenlets"
            yield f"{name}: times P", rate.by_clock / base.by_clock
            yield f"{name}: times P, by processor time", rate.by_cpu / base.by_cpu
    assert not nodes.node.dropped, nodes.node.dropped
    nodes.close()
    client.close()


def reading(url: str) -> Iterator[tuple[str, float]]:
    theirs, ours = their_reader(url), our_reader(url)
    yield "reader, redis-py's: us of processor time a message", theirs
    yield "reader, ours: us", ours
    yield "reader: times redis-py's", theirs / ours


def latencies(url: str, seconds: float) -> Iterator[tuple[str, float]]:
    found = {
        "redis-py's pub/sub": their_latency(url, seconds),
        "without history": our_latency(url, seconds, None),
        "with history": our_latency(url, seconds, KEPT),
    }
    for kind, cuts in found.items():
        for name, value in zip(("p50", "p99"), cuts, strict=True):
            yield f"latency at {PACE:,}/s, {kind}, {name}, ms", value


if __name__ == "__main__":
    main()
