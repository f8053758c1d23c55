"""Groups of a channel: joining, leaving, and sending to them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from support import wait_until
from support.room import MakeRoom, Room
from support.threads import in_thread
from wsmiddleware import WebSocketListener, publish


class Test(WebSocketListener):
    """Does what it is told to, and answers when it is done."""

    def on_message(self, wsclient: Any, message: str) -> Any:
        verb, _, group = message.partition(" ")
        if verb == "join":
            wsclient.join(group)
        elif verb == "leave":
            wsclient.leave(group)
        elif verb == "tell":
            wsclient.broadcast("for " + group, group=group)
        elif verb == "others":
            wsclient.broadcast("for others", exclude=wsclient)
        return sorted(wsclient.groups)


def tell(ws: Any, message: str) -> Any:
    ws.send(message)
    return ws.recv(5)


def test_client_joins_and_leaves(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect() as ws:
        assert tell(ws, "groups") == "[]"
        assert tell(ws, "join b") == '["b"]'
        assert tell(ws, "join a") == '["a", "b"]'
        assert tell(ws, "join a") == '["a", "b"]'
        assert served.wsclients.group("a").size() == 1
        assert tell(ws, "leave a") == '["b"]'
        assert tell(ws, "leave a") == '["b"]'
        assert tell(ws, "leave never") == '["b"]'
        assert served.wsclients.group("a").size() == 0
        assert served.wsclients.group("b").get_clients() == served.wsclients.get_clients()


def test_broadcast_to_a_group_reaches_its_members_only(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        one, two, outside = served.connect_many(stack, 3)
        tell(one, "join g"), tell(two, "join g")
        outside.send("tell g")  # one need not be in it to send to it
        assert outside.recv(5) == "[]"
        assert [one.recv(5), two.recv(5)] == ["for g", "for g"]
        assert served.wsclients.group("g").broadcast("by the view")
        assert served.wsclients.broadcast("by group=", group="g")
        assert publish("test", "by publish", group="g")
        for ws in (one, two):
            assert [ws.recv(5) for _ in range(3)] == ["by the view", "by group=", "by publish"]
        served.wsclients.broadcast("all")
        assert outside.recv(5) == "all"


def test_group_has_the_methods_of_wsclients(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        one, two = served.connect_many(stack, 2)
        tell(one, "join g")
        group = served.wsclients.group("g")
        (client,) = group.get_clients()
        client.session.user_principal = "ann"
        assert group.size() == len(group) == 1
        assert list(group) == group.find("ann") == [client]
        assert group.find("bob") == []
        assert group.broadcast(None) is False
        assert repr(group) == "<WsClients of channel 'test', group 'g': 1>"
        group.close(4000, "the group is over")
        with pytest.raises(Exception, match="4000"):
            one.recv(5)
        assert tell(two, "groups") == "[]"
        assert group.size() == 0


def test_group_that_nobody_is_in_is_empty_and_usable(room: MakeRoom) -> None:
    served = room(Test)
    group = served.wsclients.group("nobody")
    assert (group.size(), list(group), group.broadcast("x")) == (0, [], True)
    group.close()


def test_exclude_leaves_out_one_or_several(room: MakeRoom) -> None:
    served = room(Test)
    with ExitStack() as stack:
        one, two, three = served.connect_many(stack, 3)
        one.send("others")
        assert one.recv(5) == "[]"
        assert [two.recv(5), three.recv(5)] == ["for others"] * 2
        clients = {client.session.query_string: client for client in served.wsclients}
        tell(one, "join g"), tell(two, "join g")
        served.wsclients.broadcast("three", exclude=[clients["0"], clients["1"]])
        served.wsclients.broadcast("two", exclude={clients["0"], clients["2"]})
        served.wsclients.broadcast("one", group="g", exclude=clients["1"])
        served.wsclients.broadcast("end")
        assert [one.recv(5), one.recv(5)] == ["one", "end"]
        assert [two.recv(5), two.recv(5)] == ["two", "end"]
        assert [three.recv(5), three.recv(5)] == ["three", "end"]


def test_exclude_takes_clients_only(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect() as ws:
        assert tell(ws, "join g") == '["g"]'
        (client,) = served.wsclients
        for wrong in (client.id, [client.id], "", [client, None], 7):
            for target in (client, served.wsclients, served.wsclients.group("g")):
                with pytest.raises(TypeError):
                    target.broadcast("not for it", exclude=wrong)  # type: ignore[arg-type]
        for right in ([], (), served.wsclients.group("nobody")):
            served.wsclients.broadcast("for all", exclude=right)
        served.wsclients.broadcast("not for it", exclude=served.wsclients.group("g"))
        assert [ws.recv(5) for _ in range(3)] == ["for all"] * 3
        assert tell(ws, "groups") == '["g"]'


@pytest.mark.parametrize("way", ["client", "server", "abort"])
def test_leaving_is_automatic_when_a_connection_ends(room: MakeRoom, way: str) -> None:
    last: list[Any] = []

    class Leaving(Test):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            # To tell those who are left in the groups that it was in.
            last.append((sorted(wsclient.groups), served.wsclients.group("a").size()))
            wsclient.broadcast("it has left", group="b")
            wsclient.join("too late")

    served = room(Leaving)
    with served.connect() as staying, served.connect() as ws:
        tell(staying, "join b")
        tell(ws, "join a"), tell(ws, "join b")
        if way == "server":
            served.wsclients.group("a").close()
        elif way == "abort":
            for client in served.wsclients.group("a"):
                client._connection.abort()
        else:
            ws.close()
        assert staying.recv(5) == "it has left"
        assert last == [(["a", "b"], 0)]
        assert served.wsclients.group("b").size() == 1
        assert served.wsclients.group("too late").size() == 0
        assert set(served.channel._groups) == {"b"}  # no empty group stays behind


@pytest.mark.parametrize("group", [None, 7, b"bytes"])
def test_group_is_a_str(room: MakeRoom, group: Any) -> None:
    served = room(Test)
    with served.connect():
        wait_until(lambda: served.wsclients.size())
        (client,) = served.wsclients
        with pytest.raises(TypeError, match="a group is a str, not"):
            client.join(group)
        with pytest.raises(TypeError, match="a group is a str, not"):
            served.wsclients.group(group)
        assert client.groups == frozenset()


def test_groups_of_two_channels_are_two(room: MakeRoom) -> None:
    served = room(Test)
    served.middleware.register("other", Test)
    with served.connect() as ws, served.server.connect("/ws/other") as stranger:
        tell(ws, "join g"), tell(stranger, "join g")
        served.wsclients.group("g").broadcast("one channel")
        assert ws.recv(5) == "one channel"
        assert tell(stranger, "groups") == '["g"]'


def test_native_thread_joins_and_leaves(room: MakeRoom) -> None:
    served = room(Test)
    with served.connect() as ws:
        wait_until(lambda: served.wsclients.size())
        (client,) = served.wsclients
        in_thread(lambda: client.join("g"))
        assert tell(ws, "groups") == '["g"]'
        in_thread(lambda: served.wsclients.group("g").broadcast("from a thread"))
        assert ws.recv(5) == "from a thread"
        in_thread(lambda: client.leave("g"))
        assert tell(ws, "groups") == "[]"


def test_threads_that_join_and_leave_at_once_lose_nothing(room: MakeRoom) -> None:
    """Membership is held twice, by group and by client: the two never disagree."""
    served = room(Test)
    pool = ThreadPool(4)
    with ExitStack() as stack:
        served.connect_many(stack, 4)
        clients = served.wsclients.get_clients()

        def churn(number: int) -> None:
            for turn in range(2000):
                client = clients[(number + turn) % 4]
                client.join("shared")
                client.join(f"own {number}")
                client.leave("shared")

        gevent.joinall([pool.spawn(churn, number) for number in range(4)], raise_error=True)
        for client in clients:
            assert client.groups == {f"own {number}" for number in range(4)}
        check(served)
        for number in range(4):
            assert served.wsclients.group(f"own {number}").size() == 4
    wait_until(lambda: served.wsclients.size() == 0)
    assert served.channel._groups == {}
    pool.kill()


def test_threads_that_join_while_clients_close_leave_nobody_behind(room: MakeRoom) -> None:
    served = room(Test)
    pool = ThreadPool(2)
    is_over = False

    def join_all(number: int) -> None:
        while not is_over:
            for client in served.wsclients.get_clients():
                client.join(f"g{number}")
                client.join("shared")

    workers = [pool.spawn(join_all, number) for number in range(2)]
    try:
        for _ in range(20):
            with ExitStack() as stack:
                served.connect_many(stack, 5)
            wait_until(lambda: served.wsclients.size() == 0)
    finally:
        is_over = True
    gevent.joinall(workers, raise_error=True)
    assert served.channel._groups == {}
    pool.kill()


def check(served: Room) -> None:
    by_group = {
        (group, client) for group, members in served.channel._groups.items() for client in members
    }
    by_client = {(group, client) for client in served.wsclients for group in client.groups}
    assert by_group == by_client
