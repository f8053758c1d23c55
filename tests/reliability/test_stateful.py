"""Clients come, speak, join, leave, close and break off in any order, over a real server.

hypothesis looks for an order in which a callback runs twice, too early or not at all, an edge of
the channel is missed or doubled, a message is lost or swapped, or something is left at the end.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gevent
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule

from support import serving, wait_until
from support.figures import longer, record
from support.room import hello
from support.wire import CLOSE, TEXT, Peer, close_frame, frame, peer_of
from wsmiddleware import ConnectionClosed, WebSocketListener, WebSocketMiddleware

_tried = {"runs": 0, "steps": 0, "connections": 0, "callbacks": 0}

groups = st.sampled_from(["red", "blue"])


class Client:
    """One peer, and what the test knows of it."""

    def __init__(self, stack: ExitStack, peer: Peer, number: int) -> None:
        self.stack = stack
        self.peer = peer
        self.number = number
        self.sent = 0
        #: It has not been told to close by anybody, and has not gone.
        self.stays = True


def listener(machine: Traffic) -> type[WebSocketListener]:
    class Test(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients: Any) -> None:
            machine.edges.append("first")
            gevent.sleep(0)

        @classmethod
        def on_last_close(cls) -> None:
            gevent.sleep(0)
            machine.edges.append("last")

        def on_open(self, wsclient: Any) -> str:
            self.number = int(self.session.query_string)
            self.log = machine.logs.setdefault(self.number, [])
            self.log.append("open")
            gevent.sleep(0)
            self.log.append("opened")
            return "open"

        def on_message(self, wsclient: Any, message: str) -> str | None:
            self.log.append(message)
            _, word, *rest = message.split()
            if word == "slow":
                gevent.sleep(0.001)
            elif word == "join":
                wsclient.join(*rest)
            elif word == "leave":
                wsclient.leave(*rest)
            elif word == "close":
                wsclient.close(4001)
                return None
            elif word == "raise":
                raise ConnectionClosed(1006, "on purpose")
            return message

        def on_error(self, wsclient: Any, exception: Exception) -> str:
            return self.log[-1]

        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            self.log.append("closing")
            gevent.sleep(0)
            self.log.append("closed")

    return Test


class Traffic(RuleBasedStateMachine):
    """The model: what each client has sent, what everybody was sent, the channel's size."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[int, list[str]] = {}
        self.edges: list[str] = []
        self.expected_edges: list[str] = []
        self.all: list[Client] = []
        self.casts = 0
        self.middleware = WebSocketMiddleware(hello, config=False, close_timeout=0.5)
        self.middleware.register("test", listener(self))
        self.channel: Any = self.middleware.registry.channels["test"]
        self._watch_size()
        self.stack = ExitStack()
        self.server = self.stack.enter_context(serving(self.middleware))
        _tried["runs"] += 1

    def _watch_size(self) -> None:
        """An edge is due exactly when the channel's size leaves nought or comes back to it."""
        add, remove = self.channel.add, self.channel.remove

        def count_add(*args: Any) -> Any:
            edge = add(*args)
            if self.channel.size() == 1:
                self.expected_edges.append("first")
            return edge

        def count_remove(*args: Any) -> None:
            remove(*args)
            if not self.channel.size():
                self.expected_edges.append("last")

        self.channel.add, self.channel.remove = count_add, count_remove

    def say(self, client: Client, words: str) -> bytes:
        wire = frame(TEXT, f"{client.sent} {words}")
        client.sent += 1
        _tried["steps"] += 1
        return wire

    @rule(target=clients, count=st.integers(1, 3))
    def connect(self, count: int) -> Any:
        new = []
        for _ in range(count):
            stack, number = ExitStack(), len(self.all)
            client = Client(
                stack, stack.enter_context(peer_of(self.server, f"/ws/test?{number}")), number
            )
            self.all.append(client)
            new.append(client)
        return multiple(*new)

    @rule(client=clients, words=st.lists(st.sampled_from(["hello", "slow", "raise"]), min_size=1))
    def speak(self, client: Client, words: list[str]) -> None:
        client.peer.send(*[self.say(client, word) for word in words])

    @rule(client=clients, group=groups, word=st.sampled_from(["join", "leave"]))
    def group(self, client: Client, group: str, word: str) -> None:
        client.peer.send(self.say(client, f"{word} {group}"))

    @rule()
    def broadcast(self) -> None:
        self.channel.broadcast(f"all {self.casts}")
        self.casts += 1

    @rule(group=groups)
    def broadcast_to_group(self, group: str) -> None:
        self.channel.broadcast(f"group {self.casts}", group)
        self.casts += 1

    @rule(client=consumes(clients), is_behind=st.booleans())
    def close(self, client: Client, is_behind: bool) -> None:
        client.stays = False
        wire = self.say(client, "hello") if is_behind else b""
        client.peer.send(wire + close_frame(1000))

    @rule(client=consumes(clients))
    def be_closed(self, client: Client) -> None:
        client.stays = False
        client.peer.send(self.say(client, "close"))

    @rule(client=consumes(clients), is_reset=st.booleans())
    def go(self, client: Client, is_reset: bool) -> None:
        client.stays = False
        if is_reset:
            client.peer.reset()
        else:
            client.peer.sock.close()

    @rule()
    def close_all(self) -> None:
        """The server closes whoever it knows of; some may be on their way still."""
        for client in self.all:
            client.stays = False
        self.channel.wsclients.close(4002)

    @rule(turns=st.integers(1, 5))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            gevent.sleep(0)

    @rule()
    def settle(self) -> None:
        gevent.sleep(0.005)

    # -- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            for client in self.all:
                if client.stays:
                    self.farewell(client)
            for client in self.all:
                client.stack.close()
            wait_until(lambda: self.channel.is_settled)
            self.check()
        finally:
            for client in self.all:
                client.stack.close()
            self.stack.close()

    def farewell(self, client: Client) -> None:
        """Who stayed gets every reply in order, and every broadcast from its first one on."""
        client.peer.send(self.say(client, "hello"), close_frame(1000))
        texts = []
        while True:
            opcode, payload = client.peer.read()
            if opcode == CLOSE:
                break
            texts.append(payload.decode())
        replies = [int(text.split()[0]) for text in texts if text[0].isdigit()]
        assert replies == list(range(client.sent))
        casts = [int(text.split()[1]) for text in texts if text.startswith(("all", "group"))]
        assert casts == sorted(set(casts))

    def check(self) -> None:
        for number, log in self.logs.items():
            assert log[:2] == ["open", "opened"], log
            assert log[-2:] == ["closing", "closed"], log
            said = [int(line.split()[0]) for line in log[2:-2]]
            assert said == list(range(len(said))), log
            assert len(said) <= self.all[number].sent
        assert self.edges == self.expected_edges
        assert self.edges == ["first", "last"] * (len(self.edges) // 2)
        assert not self.channel.clients() and not self.channel._groups
        assert self.middleware.registry.unfinished == 0
        _tried["connections"] += len(self.logs)
        _tried["callbacks"] += sum(map(len, self.logs.values())) + len(self.edges)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=longer(40, 600),
    stateful_step_count=longer(25, 40),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_traffic_was_tried() -> None:
    if _tried["runs"]:
        record(
            "random visits to a channel over a real server",
            bound="callbacks in order, on_close once, edges exact, nothing left",
            measured=f"{_tried['runs']:,} runs, {_tried['connections']:,} connections, "
            f"{_tried['callbacks']:,} callbacks",
        )
        # What is drawn differs widely; this many are always among it.
        assert _tried["connections"] > _tried["runs"] / 3
