"""Everybody speaks at once, and who stays gets all of it: once, whole, in each sender's order."""

from __future__ import annotations

import itertools
import struct
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from typing import Any

import gevent
import pytest
from gevent import monkey

from support import wait_until
from support.figures import longer, record
from support.room import MakeRoom, hold_up_thread
from support.threads import in_thread
from support.wire import CLOSE, TEXT, Peer, close_frame, frame, peer_of
from wsmiddleware import ConnectionClosed, WebSocketListener
from wsmiddleware.exceptions import SlowConsumerError

_start_thread = monkey.get_original("_thread", "start_new_thread")


class Ledger:
    """What one staying client got: sender to numbers, all checked as they come."""

    def __init__(self) -> None:
        self.next: dict[str, int] = defaultdict(int)
        self.count = 0

    def take(self, text: str) -> None:
        sender, number, filler = text.split(" ")
        assert int(number) == self.next[sender], f"{sender}: {number}, not {self.next[sender]}"
        assert filler == "x" * len(filler)
        self.next[sender] += 1
        self.count += 1


def filler(number: int) -> str:
    """Mostly short, sometimes longer than a TCP segment, sometimes compressed."""
    return "x" * (5000 if number % 50 == 0 else number % 300 + 1)


@pytest.mark.parametrize("extensions", [None, "permessage-deflate"], ids=["plain", "deflate"])
def test_those_who_stay_get_everything_once_and_in_order(
    room: MakeRoom, extensions: str | None
) -> None:
    count = longer(300, 3000)
    stay = 8

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> Any:
            if message == "stay":
                wsclient.join("stay")
                return None
            # A callback's own broadcasts, and a reply behind them.
            number = int(message)
            wsclient.broadcast(f"callback-{wsclient.id} {number} {filler(number)}", group="stay")
            return None

    served = room(Test, send_queue_size=64 * 2**20)
    clients = served.wsclients
    stayers = clients.group("stay")
    done: list[str] = []

    def by_greenlet(name: str) -> None:
        for number in range(count):
            stayers.broadcast(f"{name} {number} {filler(number)}")
            gevent.sleep(0.001 if number % 10 == 0 else 0)
        done.append(name)

    def to_each(text: str) -> None:
        for client in stayers.get_clients():
            # A visitor may have gone since it was listed, which a thread is told.
            with suppress(ConnectionClosed):
                client.send(text)

    def one_by_one(name: str) -> None:
        for number in range(count):
            to_each(f"{name} {number} {filler(number)}")
            gevent.sleep(0)
        done.append(name)

    def by_thread(name: str) -> None:
        for number in range(count):
            stayers.broadcast(f"{name} {number} {filler(number)}")
            if number % 20 == 0:
                hold_up_thread(0.002)
        done.append(name)

    def one_by_one_by_thread(name: str) -> None:
        for number in range(count):
            to_each(f"{name} {number} {filler(number)}")
            if number % 20 == 0:
                hold_up_thread(0.002)
        done.append(name)

    def churn(seed: int) -> None:
        """Come, hear a little or nothing, and go in one of three ways."""
        for turn in itertools.count(seed):
            if len(done) == len(senders):
                return
            with peer_of(served.server) as peer:
                if turn % 2:
                    peer.send(frame(TEXT, "stay"))
                    gevent.sleep(0.003)  # its time among them, not a wait
                if turn % 3 == 0:
                    peer.reset()
                elif turn % 3 == 1:
                    peer.send(close_frame(1000))
                    while peer.read()[0] != CLOSE:
                        pass

    ledgers = [Ledger() for _ in range(stay)]
    broadcasts = [f"callback-{number}" for number in range(stay)]
    senders = {
        "greenlet": by_greenlet,
        "other-greenlet": by_greenlet,
        "one-by-one": one_by_one,
        "thread": by_thread,
        "other-thread": by_thread,
        "thread-one-by-one": one_by_one_by_thread,
    }
    expected = count * (len(senders) + len(broadcasts))

    def read(connection: Any, ledger: Ledger) -> None:
        while ledger.count < expected:
            ledger.take(connection.recv(20))

    def speak(connection: Any) -> None:
        for number in range(count):
            connection.send(f"{number}")
            gevent.sleep(0)

    started = time.monotonic()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(
                served.connect(compression="deflate" if extensions else None, max_size=None)
            )
            for _ in ledgers
        ]
        for connection in connections:
            connection.send("stay")
        wait_until(lambda: stayers.size() == stay)
        readers = [
            gevent.spawn(read, connection, ledger)
            for connection, ledger in zip(connections, ledgers, strict=True)
        ]
        for name, sender in senders.items():
            if "thread" in name:
                _start_thread(sender, (name,))
            else:
                gevent.spawn(sender, name)
        speakers = [gevent.spawn(speak, connection) for connection in connections]
        churners = [gevent.spawn(churn, seed) for seed in range(6)]
        gevent.joinall([*speakers, *readers, *churners], raise_error=True, timeout=120)
        assert all(reader.ready() for reader in readers), [ledger.count for ledger in ledgers]
    assert {ledger.count for ledger in ledgers} == {expected}
    assert all(set(ledger.next.values()) == {count} for ledger in ledgers)
    wait_until(lambda: not served.channel.unfinished)
    seconds = time.monotonic() - started
    visits = served.middleware.metrics.opened["test"] - stay
    record(
        f"{stay} clients stay, {len(senders)} senders and all clients speak at once, "
        f"{'compressed' if extensions else 'plain'}",
        bound="none lost, doubled, torn or out of its sender's order",
        measured=f"{expected * stay:,} messages, {visits:,} other visits, {seconds:.1f} s",
    )


def test_threads_that_speak_to_those_who_have_gone_are_told(room: MakeRoom) -> None:
    class Test(WebSocketListener):
        pass

    served = room(Test)
    outcomes: list[str] = []

    def speak() -> None:
        client = served.wsclients.get_clients()[0]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                client.send("x" * 100)
            except (ConnectionClosed, SlowConsumerError) as exc:
                outcomes.append(type(exc).__name__)
                return
            hold_up_thread(0.001)

    with peer_of(served.server) as peer:
        wait_until(lambda: served.wsclients.size() == 1)
        speaking = gevent.spawn(in_thread, speak)
        for _ in range(10):
            peer.read()
        peer.reset()
        speaking.get(timeout=10)
    assert outcomes == ["ConnectionClosed"]


def test_everybody_closes_everybody_at_once(room: MakeRoom) -> None:
    """Clients, callbacks, the channel and native threads close the same connections."""
    closes: list[str] = []

    class Test(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> None:
            wsclient.close(4001)

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            closes.append(wsclient.id)

    served = room(Test, close_timeout=1)
    for _ in range(longer(3, 30)):
        closes.clear()
        with ExitStack() as stack:
            peers: list[Peer] = [stack.enter_context(peer_of(served.server)) for _ in range(30)]
            wait_until(lambda: served.wsclients.size() == 30)
            ids = {client.id for client in served.wsclients}
            closing = gevent.spawn(in_thread, lambda: served.wsclients.close(4002))
            for number, peer in enumerate(peers):
                if number % 3 == 0:
                    peer.send(close_frame(4003))
                elif number % 3 == 1:
                    peer.send(frame(TEXT, "close"))
                else:
                    peer.sock.setsockopt(6, 1, 1)
            served.wsclients.close(4004)
            closing.get(timeout=10)
            for number, peer in enumerate(peers):
                code = peer.read_close()[0]
                assert code in (4001, 4002, 4003, 4004)
                if number % 3:
                    peer.send(frame(CLOSE, struct.pack("!H", code)))
        served.wait_until_settled()
        assert sorted(closes) == sorted(ids)
        assert served.wsclients.size() == 0
