"""JSON both ways: what is sent of a value, and `decode = "json"`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import logging
import uuid
from types import SimpleNamespace
from typing import Any

import flask
import msgspec
import pytest

from support import wait_until
from support.room import MakeRoom
from wsmiddleware import ConfigError, ListenerError, WebSocketListener, publish
from wsmiddleware.config import load_settings
from wsmiddleware.listeners.convert import reader, sender


@dataclasses.dataclass
class Point:
    x: int
    when: dt.date


@dataclasses.dataclass(frozen=True)
class Cell:
    value: decimal.Decimal


class Colour(enum.Enum):
    RED = "red"
    NONE = None


class Level(enum.IntEnum):
    HIGH = 3


class Kind(str, enum.Enum):
    NEW = "new"


ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
DAY = dt.date(2026, 2, 3)
UTC = dt.timezone.utc
NOON = dt.datetime(2026, 2, 3, 12, 0, 0, 5, tzinfo=UTC)

#: Values, and what JSON says of each.
VALUES: list[tuple[Any, Any]] = [
    (DAY, "2026-02-03"),
    (NOON, "2026-02-03T12:00:00.000005+00:00"),
    (dt.datetime(2026, 2, 3, 12), "2026-02-03T12:00:00"),
    (dt.time(23, 59, tzinfo=UTC), "23:59:00+00:00"),
    (decimal.Decimal("1.10"), "1.10"),
    (ID, str(ID)),
    (Point(1, DAY), {"x": 1, "when": "2026-02-03"}),
    (Cell(decimal.Decimal(7)), {"value": "7"}),
    (Colour.RED, "red"),
    (Colour.NONE, None),
    (Level.HIGH, 3),
]


# -- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value, said", VALUES)
@pytest.mark.parametrize(
    "put", [lambda v: v, lambda v: [v], lambda v: {"a": (v, [v])}, lambda v: Point(v, v)]
)
def test_value_is_sent(value: Any, said: Any, put: Any) -> None:
    assert json.loads(sender(None)(put(value))) == json.loads(
        json.dumps(put(said), default=lambda point: vars(point))
    )


@pytest.mark.parametrize(("value", "said"), [pair for pair in VALUES if type(pair[1]) is str])
def test_value_may_be_a_key(value: Any, said: str) -> None:
    sent = sender(None)({"in": [{value: 1, "day": DAY}], 1: ID})
    assert json.loads(sent) == {"in": [{said: 1, "day": "2026-02-03"}], "1": str(ID)}


@pytest.mark.parametrize(
    "value", [object(), Point, Colour, {1, 2}, [object()], {(1, 2): 3}, {object(): 1}, 1j, ...]
)
def test_what_json_cannot_hold_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"^cannot send {type(value).__name__}: "):
        sender(None)(value)


def test_enum_that_is_text_is_sent_as_text() -> None:
    assert sender(None)(Kind.NEW) == "new"
    assert json.loads(sender(None)([Kind.NEW, {Kind.NEW: 1}])) == ["new", {"new": 1}]


def test_values_go_every_way_that_messages_go(room: MakeRoom) -> None:
    class Giving(WebSocketListener):
        def on_open(self, wsclient: Any) -> Any:
            wsclient.send(NOON)
            self.wsclients.broadcast({"id": ID})
            publish("test", [Colour.RED])
            return Point(1, DAY)

    with room(Giving).connect() as ws:
        said = [json.loads(ws.recv(5)) for _ in range(4)]
    assert said == [NOON.isoformat(), {"id": str(ID)}, ["red"], {"x": 1, "when": "2026-02-03"}]


# -- the setting -----------------------------------------------------------------------------------


class Bytes:
    """As orjson is: bytes out, text in."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return b"B" + json.dumps(value).encode()

    @staticmethod
    def loads(text: Any) -> Any:
        return ["B", json.loads(text)]


def given(own: Any) -> Any:
    return load_settings(False, {"json": own}).json


@pytest.mark.parametrize("way", ["return", "send", "broadcast"])
def test_setting_replaces_ours(room: MakeRoom, way: str) -> None:
    class Echo(WebSocketListener):
        decode = "json"

        def on_message(self, wsclient: Any, message: Any) -> Any:
            if way == "send":
                wsclient.send(message)
            elif way == "broadcast":
                self.wsclients.broadcast(message)
            return message if way == "return" else None

    with room(Echo, json=Bytes()).connect() as ws:
        ws.send("1")
        assert ws.recv(5) == 'B["B", 1]'


def test_flasks_provider_and_msgspec_are_such_objects() -> None:
    app = flask.Flask(__name__)
    assert json.loads(sender(given(app.json))({"day": DAY}))["day"].startswith("Tue, 03 Feb 2026")
    assert reader(given(app.json))('{"a": 1}') == {"a": 1}
    assert sender(given(msgspec.json))({"day": DAY}) == '{"day":"2026-02-03"}'
    assert reader(given(msgspec.json))('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("own", ["orjson", 1, SimpleNamespace(dumps=json.dumps), [], "x", Bytes])
def test_setting_that_is_no_such_object_is_refused(own: Any) -> None:
    with pytest.raises(ConfigError, match=r"json is .*; valid is an object with dumps and loads"):
        given(own)


@pytest.mark.parametrize("text", [b"\xff", "\ud800"])
def test_what_the_setting_makes_is_text_that_can_be_sent(text: Any) -> None:
    own = SimpleNamespace(dumps=lambda value: text, loads=json.loads)
    with pytest.raises(TypeError, match="cannot send dict"):
        sender(given(own))({})


def test_setting_is_a_keyword_only(tmp_path: Any) -> None:
    file = tmp_path / "own.json"
    file.write_text('{"json": "orjson"}')
    with pytest.raises(ConfigError, match='"json" is unknown'):
        load_settings(file, environ={})
    with pytest.raises(ConfigError, match="WSMIDDLEWARE_JSON is unknown"):
        load_settings(False, environ={"WSMIDDLEWARE_JSON": "orjson"})
    shown = load_settings(False, {"json": json}).to_dict()["json"]
    assert shown == "json"


# -- decode = "json" -------------------------------------------------------------------------------

#: Texts that are no JSON, some of them only for who reads to the letter.
NO_JSON = [
    *("", " ", "no", "{", "[1,]", "'a'", "NaN", "[Infinity]", "-Infinity", "\ufeff1", "1 2"),
    *("9" * 5000, "[" * 100_000, '{"a": 1', "\x00"),
]


class Quiet(WebSocketListener):
    """Has nobody who is told."""

    decode = "json"

    def on_message(self, wsclient: Any, message: Any) -> Any:
        return [type(message).__name__, message if type(message) is not bytes else len(message)]


class Told(Quiet):
    def on_error(self, wsclient: Any, exception: BaseException) -> str:
        return f"told of {type(exception).__name__}"


@pytest.mark.parametrize("listener", [Quiet, Told])
@pytest.mark.parametrize("scoped", [False, True])
def test_message_is_decoded(room: MakeRoom, listener: Any, scoped: bool) -> None:
    context = flask.Flask(__name__).request_context if scoped else None
    with room(listener, request_context=context).connect() as ws:
        for text, said in [('{"a": [1]}', ["dict", {"a": [1]}]), ("null", ["NoneType", None]),
                           (' "text" ', ["str", "text"]), ("1.5", ["float", 1.5])]:  # fmt: skip
            ws.send(text)
            assert json.loads(ws.recv(5)) == said
        ws.send(b"1.5")
        assert json.loads(ws.recv(5)) == ["bytes", 3]


@pytest.mark.parametrize("text", NO_JSON)
def test_what_does_not_parse_closes_with_1007(
    room: MakeRoom, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    with caplog.at_level(logging.INFO, "websocket"), room(Quiet).connect() as ws:
        ws.send(text)
        with pytest.raises(Exception, match="1007"):
            ws.recv(5)
    assert (ws.close_code, ws.close_reason) == (1007, "no JSON")
    [told] = [record for record in caplog.records if "is no JSON" in record.getMessage()]
    assert told.exc_info is None and len(told.getMessage()) < 400


@pytest.mark.parametrize("text", NO_JSON)
def test_what_does_not_parse_is_on_errors(room: MakeRoom, text: str) -> None:
    with room(Told).connect() as ws:
        ws.send(text)
        assert ws.recv(5) in {f"told of {name}" for name in ("JSONDecodeError", "ValueError",
                                                            "RecursionError")}  # fmt: skip
        ws.send("1")
        assert json.loads(ws.recv(5)) == ["int", 1]


def test_callback_for_binary_gets_bytes(room: MakeRoom) -> None:
    class Both(Quiet):
        def on_binary_message(self, wsclient: Any, data: bytes) -> bytes:
            return data

    with room(Both).connect() as ws:
        ws.send(b"{")
        assert ws.recv(5) == b"{"
        ws.send("{}")
        assert json.loads(ws.recv(5)) == ["dict", {}]


def test_what_comes_behind_what_does_not_parse_is_for_nobody(room: MakeRoom) -> None:
    served = room(Quiet)
    with served.connect() as ws:
        for text in ("{", "1", "2"):
            ws.send(text)
        with pytest.raises(Exception, match="1007"):
            ws.recv(5)
    wait_until(lambda: served.channel.is_settled)


@pytest.mark.parametrize("value", ["JSON", "yaml", True, json])
def test_other_words_for_decode_are_refused(room: MakeRoom, value: Any) -> None:
    with pytest.raises(ListenerError, match=r'decode is .*; valid is "json" or None'):
        room(type("Made", (WebSocketListener,), {"decode": value}))


def test_listener_without_it_gets_text(room: MakeRoom) -> None:
    class Plain(WebSocketListener):
        def on_message(self, wsclient: Any, message: str) -> str:
            return message

    served = room(Plain)
    assert served.channel.loads is None
    with served.connect() as ws:
        ws.send("{")
        assert ws.recv(5) == "{"
