"""From messages through the listener's callbacks to their replies.

Over the stream in C and over its twin in Python.
"""

from __future__ import annotations

import gc
import math
import weakref
from contextvars import Context, ContextVar
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from support.room import hold_up_thread
from support.twins import Link, frames, masked
from support.wire import CLOSE
from wsmiddleware.net.receiver import TIME_SLICE
from wsmiddleware.protocol.engine import Engine


class Listener:
    """An echo, but for some words."""

    def on_text(self, client: str, message: str) -> object:
        if message == "odd":
            return {message}
        if message == "lone":
            return "\ud800"
        if message == "wrong":
            raise LookupError(message)
        return message if message else None

    def on_data(self, client: str, message: bytes) -> bytes:
        return message * 1000


class Blocking(Listener):
    """An echo that blocks at "block" until it is let go."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_free = Event()

    def on_text(self, client: str, message: str) -> object:
        self.seen.append(message)
        if message == "block":
            assert self.is_free.wait(10)
        return message


# -- replies --------------------------------------------------------------------------------------


def test_replies_in_order(link: Link) -> None:
    link.serve(Listener(), "a", "", b"bc", "odd", "d", "wrong", "lone", "e")
    assert link.get_all() == frames("a", b"bc" * 1000, "{'odd'}", "d", "e")
    assert link.member.calls == [
        ("answer", {"odd"}, "on_text"),
        ("failed", LookupError, "on_text"),
        ("failed", UnicodeEncodeError, "on_text"),
    ]
    assert (link.metrics.messages_received, link.metrics.messages_sent) == (8, 5)


def test_empty_name_is_no_callback(link: Link) -> None:
    arguments = (link.member, Listener(), "client", Context(), "on_text", "", 30.0)
    link.connection.serve_for(*arguments)
    link.member.is_serving = True
    link.come("a", b"b", "c")
    link.settle()
    assert link.get_all() == frames("a", "c")


def test_callbacks_run_in_their_context(link: Link) -> None:
    variable: ContextVar[list[str]] = ContextVar("variable")
    context = Context()

    class Keeping:
        def on_text(self, client: str, message: str) -> str:
            variable.set([*variable.get([]), message])
            return client

    link.member.serve(Keeping(), context)
    link.come("a", "b")
    link.settle()
    assert context[variable] == ["a", "b"]
    assert variable.get(None) is None
    assert link.get_all() == frames("client", "client")


def test_reply_is_sent_before_the_next_callback_blocks(link: Link) -> None:
    listener = Blocking()
    link.member.serve(listener)
    link.come("a", "block", "c")
    assert link.get(3) == frames("a")
    assert listener.seen == ["a", "block"]
    listener.is_free.set()
    assert link.get(10) == frames("block", "c")


def test_what_a_callback_sends_comes_between_replies(link: Link) -> None:
    class Sending(Listener):
        def on_text(self, client: str, message: str) -> object:
            link.connection.send(frames(f"{message} is coming"))
            return message

    link.serve(Sending(), "a", "b")
    assert link.get_all() == frames("a is coming", "a", "b is coming", "b")


# -- any other day --------------------------------------------------------------------------------


def test_callback_closes_the_connection(link: Link) -> None:
    class Closing(Listener):
        def on_text(self, client: str, message: str) -> object:
            link.connection.close(4001, message)
            return message

    link.serve(Closing(), "a", "b")
    assert link.get_all() == b"\x88\x03\x0f\xa1a"
    assert link.told("reply_lost") == [[]]
    assert (link.connection.inbox, link.connection.due) == ([], [])


def test_close_frame_behind_messages_is_answered_behind_their_replies(link: Link) -> None:
    link.member.serve(Listener())
    link.send(*(Engine(is_client=True).encode(text) for text in "ab"), masked(CLOSE, b"\x03\xe8"))
    link.settle()
    assert link.get_all() == frames("a", "b") + b"\x88\x02\x03\xe8"
    assert link.member.calls == [("closed",)]


def test_reading_pauses_behind_a_callback_that_blocks_and_goes_on_behind_it(link: Link) -> None:
    listener = Blocking()
    link.member.serve(listener)
    link.come("block")
    while not listener.seen:
        link.reactor.wait_for_turn()
    texts = [str(number) for number in range(300)]
    link.come(*texts[:256])
    assert link.connection.is_paused
    link.send(*map(Engine(is_client=True).encode, texts[256:]))
    assert listener.seen == ["block"]
    listener.is_free.set()
    expected = frames("block", *texts)
    assert link.get(len(expected)) == expected
    assert not link.connection.is_paused


def test_others_get_their_turn(make_link: Any) -> None:
    first = make_link()
    second = make_link(reactor=first.reactor)
    seen = []

    class Slow:
        def on_text(self, client: str, message: str) -> None:
            seen.append(message)
            hold_up_thread(1.2 * TIME_SLICE)

    first.member.serve(Slow())
    second.member.serve(Slow())
    first.come("a", "b", "c")
    second.come("x")
    first.settle()
    assert seen == ["a", "x", "b", "c"]


def test_callbacks_of_others_run_while_one_blocks(make_link: Any) -> None:
    first = make_link()
    links = [first, *(make_link(reactor=first.reactor) for _ in range(2))]
    listeners = [Blocking() for _ in links]
    for link, listener in zip(links, listeners, strict=True):
        link.member.serve(listener)
    for link, text in zip(links, ["block", "block", "x"], strict=True):
        link.come(text)
    assert links[2].get(3) == frames("x")
    assert [listener.seen for listener in listeners] == [["block"], ["block"], ["x"]]
    for listener in listeners:
        listener.is_free.set()
    assert [link.get(7) for link in links[:2]] == [frames("block")] * 2


def test_messages_for_a_worker_that_is_busy_wait_for_it(link: Link) -> None:
    listener = Blocking()
    link.member.serve(listener)
    link.come("block")
    while not listener.seen:
        link.reactor.wait_for_turn()
    link.come("b", "c")
    link.reactor.wait_for_turn()
    assert listener.seen == ["block"]
    listener.is_free.set()
    assert link.get(13) == frames("block", "b", "c")


def test_ctrl_c_in_a_callback_goes_to_the_main_greenlet(link: Link) -> None:
    class Interrupted(Listener):
        def on_text(self, client: str, message: str) -> object:
            if message == "stop":
                raise KeyboardInterrupt
            return message

    link.member.serve(Interrupted())
    link.come("a", "stop", "b")
    with pytest.raises(KeyboardInterrupt):
        link.settle()
    # The connection is as good as ever: the server may close it in good order.
    assert link.told("broken") == []
    assert link.connection.worker is None
    expected = frames("a", "b")
    assert link.get(len(expected)) == expected


def test_stop_is_no_callbacks_end(link: Link) -> None:
    class Stopped(Listener):
        def on_text(self, client: str, message: str) -> object:
            raise SystemExit

    link.serve(Stopped(), "a", "b")
    assert link.member.calls == [("failed", SystemExit, "on_text")] * 2


# -- what a callback is given, and leaves ---------------------------------------------------------


def test_callback_has_its_time(link: Link) -> None:
    workers, deadlines = [], []

    class Looking(Listener):
        def on_text(self, client: str, message: str) -> None:
            workers.append(link.connection.worker)
            deadlines.append(workers[-1].deadline - link.reactor.now)

    link.serve(Looking(), "a", "b")
    assert deadlines == [30.0, 30.0]
    assert workers[0].deadline == math.inf
    assert link.connection.worker is None


def test_callback_finds_nothing_of_the_one_before_it(link: Link) -> None:
    found, linked = [], []

    class Leaving(Listener):
        def on_text(self, client: str, message: str) -> None:
            greenlet: Any = gevent.getcurrent()
            found.append(vars(greenlet).copy())
            greenlet.local = message
            greenlet.rawlink(lambda ended: linked.append(message))

    link.serve(Leaving(), "a", "b", "c")
    assert found == [{}, {}, {}]
    assert linked == ["a", "b", "c"]


def test_worker_whose_greenlet_a_callback_keeps_runs_no_other_one(link: Link) -> None:
    kept = []

    class Keeping(Listener):
        def on_text(self, client: str, message: str) -> None:
            kept.append(gevent.getcurrent())

    link.serve(Keeping(), "a", "b", "c")
    assert len(set(kept)) == 3


# -- what holds whom ------------------------------------------------------------------------------


def test_stopped_stream_holds_nobody(link: Link) -> None:
    listener = Listener()
    kept = weakref.ref(listener)
    link.serve(listener, "a")
    del listener
    gc.disable()
    try:
        assert kept() is not None
        link.connection.stop()
        assert kept() is None
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match=r"serve\(\) before serve_for\(\)"):
        link.connection.serve(None)


def test_stream_that_nobody_stops_is_garbage(twin: SimpleNamespace) -> None:
    class Owner:
        """Who has a stream that leads back to it, by way of each of its parts."""

        def __init__(self) -> None:
            self.pool = self.outbox = self
            self.stream = twin.Stream(twin.Ready(self), self, twin.Metrics(), -1, 1, 1, 1.0, 0)
            self.stream.serve_for(self, self, self, Context(), "a", "b", 1.0)
            self.stream.inbox.append(self)
            self.stream.due.append(self)

    owner = weakref.ref(Owner())
    gc.collect()
    assert owner() is None


def test_connection_that_has_ended_is_freed_without_the_collector(twin: SimpleNamespace) -> None:
    link = Link(twin)
    connection = weakref.ref(link.connection)
    link.serve(Listener(), "a", "wrong")
    gc.collect()
    gc.disable()
    try:
        link.close()
        assert connection() is not None
        del link
        assert connection() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["close", "abort"])
def test_finalizer_ends_the_connection_while_the_hub_is_asked_to_flush(
    link: Link, way: str
) -> None:
    connection = link.connection
    ways = {"close": lambda: connection.close(1000, ""), "abort": connection.abort}
    connection.hooks["flush_soon"] = ways[way]
    link.serve(Listener(), "a", "b", "c")
    assert link.told("broken") == []
    got = link.get_all()
    assert got == (frames("a") + b"\x88\x02\x03\xe8" if way == "close" else b"")
