"""What a listener class says of its channel: a mistake in it is told when the class is made known.

The same check serves the listeners of clients.
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsmiddleware import (
    HandshakeError,
    ListenerError,
    WebSocketListener,
    WebSocketMiddleware,
    create_websocket_client,
)
from wsmiddleware.listeners.callbacks import CLIENT, SERVER

#: Nobody listens there: who gets so far has not been stopped.
NOWHERE = "ws://127.0.0.1:1/"


def register(cls: type[WebSocketListener]) -> None:
    WebSocketMiddleware(lambda environ, start: [], config=False).register("test", cls)


def made(**body: Any) -> type[WebSocketListener]:
    return type("Made", (WebSocketListener,), body)


def refusal(cls: type[WebSocketListener]) -> str:
    with pytest.raises(ListenerError) as caught:
        register(cls)
    return str(caught.value)


def camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), name)


def slips(name: str) -> set[str]:
    """A name with one slip of the finger in it, behind its first word."""
    start = name.index("_") + 1
    spots = range(start, len(name))
    found = {name[:i] + name[i + 1 :] for i in spots}  # a letter left out
    found |= {name[:i] + name[i] + name[i:] for i in spots}  # or twice
    found |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in spots[:-1]}  # swapped
    found |= {
        camel(name),
        camel(name).capitalize(),
        name.upper(),
        name.replace("_", ""),
        name + "_",
    }
    return found - {name, "on_pen", "on_lose", "on_pin", "on_png"}  # words of their own


def anything(*args: Any) -> None: ...


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER)
def test_misspelt_callback_is_refused_with_the_name_that_is_meant(name: str) -> None:
    value: Any = classmethod(anything) if SERVER[name].is_of_class else anything
    for slip in slips(name):
        assert f"Made: {slip} is no callback of a listener (did you mean {name}?)" in refusal(
            made(**{slip: value})
        )


@pytest.mark.parametrize("name", CLIENT)
def test_misspelt_callback_of_a_client_is_refused(name: str) -> None:
    for slip in slips(name):
        for listener in (type("Made", (), {slip: anything}), type("Made", (), {slip: anything})()):
            with pytest.raises(ListenerError, match=rf": {slip} is no callback .*mean {name}\?"):
                create_websocket_client(NOWHERE, listener)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("idle_timout", 60, "idle_timeout"),
        ("idle_timeuot", 0, "idle_timeout"),
        ("idleTimeout", 0.5, "idle_timeout"),
        ("IDLE_TIMEOUT", 5, "idle_timeout"),
        ("sub_protocols", ["v1"], "subprotocols"),
        ("subProtocols", ("v1",), "subprotocols"),
        ("subprotocol", "v1", "subprotocols"),
        ("paht", "/room/<int:id>", "path"),
        ("Path", "/room/<int:id>", "path"),
    ],
)
def test_misspelt_attribute_is_refused(name: str, value: Any, meant: str) -> None:
    told = refusal(made(**{name: value}))
    assert f"Made: {name} is no attribute of a listener (did you mean {meant}?)" in told


class Free(WebSocketListener):
    """Everything here is somebody's own, and passes."""

    paths: tuple[str, ...] = ("/a",)
    idle_timeouts: dict[str, int] = {}  # noqa: RUF012
    timeout = 5
    idle = 60
    subprotocol = None
    on_message_count = 0
    onMessageType = "chat"
    on_opened_at = 0.0
    _on_mesage = staticmethod(anything)

    class OnMessage:
        pass

    def onboarding(self) -> None: ...
    def once(self) -> None: ...
    def on_message_received(self) -> None: ...
    def on_message_ok(self, data: Any) -> None: ...
    def on_user_joined(self, user: Any) -> None: ...
    def on_pen(self, stroke: Any) -> None: ...
    def on_lose(self) -> None: ...
    def on_choose(self) -> None: ...
    def on_clone(self) -> None: ...
    def on_ping(self) -> None: ...
    def on_binary_image(self) -> None: ...
    def do_handshake(self) -> None: ...
    def no_error(self) -> None: ...
    def to_message(self) -> None: ...
    def message(self) -> None: ...
    def open(self) -> None: ...
    def close(self) -> None: ...

    @property
    def on_errors(self) -> list[str]:
        return []


def test_names_of_ones_own_are_free() -> None:
    register(Free)


def test_names_of_a_client_listeners_own_are_free() -> None:
    class Own:
        on_closed_at = 0.0

        def on_message_received(self) -> None: ...
        def on_user_joined(self, user: Any) -> None: ...
        def on_pin(self) -> None: ...
        def on_song(self, song: Any) -> None: ...
        def onboarding(self) -> None: ...

    with pytest.raises(HandshakeError):  # it got so far as to dial
        create_websocket_client(NOWHERE, Own())


def test_helper_beside_the_right_name_is_free() -> None:
    class Helped(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> None:
            self.on_messages([message])

        def on_messages(self, messages: list[Any]) -> None: ...

        onMessage = on_message

    class Mixin:
        def on_closed(self) -> None: ...

    class Below(Mixin, WebSocketListener):
        def on_close(self, wsclient: Any, reason_phrase: str) -> None:
            self.on_closed()

    register(Helped)
    register(Below)
    register(type("Inherits", (Helped,), {}))


def test_misspelt_override_of_an_inherited_callback_is_refused() -> None:
    class Base(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> None: ...

    class Chat(Base):
        def on_mesage(self, wsclient: Any, message: Any) -> None: ...

    assert "Chat: on_mesage is no callback of a listener (did you mean on_message?)" in refusal(
        Chat
    )


@pytest.mark.parametrize(
    ("mixin", "where"),
    [
        ("def on_mesage(self, wsclient, message): pass", "line 3, class Mixin: on_mesage"),
        ("@staticmethod\n    def on_close(self): pass", "line 4, class Mixin: on_close"),
    ],
)
def test_mistake_of_a_base_class_names_its_file(
    mixin: str, where: str, listener_dir: Callable[..., Path]
) -> None:
    directory = listener_dir(
        _base=f"class Mixin:\n    {mixin}\nclass Base(WebSocketListener): pass\n",
        hall="from ._base import Base, Mixin\nclass Chat(Mixin, Base): pass\n",
    )
    with pytest.raises(ListenerError, match=re.escape(f"{directory / '_base.py'}, {where}")):
        WebSocketMiddleware(lambda environ, start: [], config=False, listeners=directory)


# -- signatures ------------------------------------------------------------------------------------


def parameters(count: int, kind: str = "{}") -> str:
    return ", ".join(kind.format(f"a{number}") for number in range(count))


def compiled(name: str, signature: str, decorator: str = "") -> Any:
    names: dict[str, Any] = {"functools": functools}
    exec(f"class Body:\n    {decorator}\n    def {name}({signature}): pass", names)
    return vars(names["Body"])[name]


@pytest.mark.parametrize("name", SERVER)
def test_callback_that_takes_another_number_of_arguments_is_refused(name: str) -> None:
    takes, of_class = len(SERVER[name].takes) + 1, SERVER[name].is_of_class
    decorator = "@classmethod" if of_class else ""
    wrong = [parameters(n) for n in range(5) if n != takes]
    wrong += [f"{parameters(takes)}, *, user", f"{parameters(max(1, takes - 1))}, *, a9"]
    for signature in wrong:
        if of_class and not signature:
            continue  # a classmethod without cls
        told = refusal(made(**{name: compiled(name, signature, decorator)}))
        assert f"Made: {name} takes ({signature})" in told
        assert f"write {SERVER[name].written(name)}" in told


@pytest.mark.parametrize("name", SERVER)
def test_callback_that_takes_what_comes_passes_however_it_is_written(name: str) -> None:
    takes, of_class = len(SERVER[name].takes) + 1, SERVER[name].is_of_class
    decorator = "@classmethod" if of_class else ""
    for signature in (
        parameters(takes),
        f"{parameters(takes)}, more=None",
        f"{parameters(takes)}, *rest, **named",
        f"{parameters(takes)}, /",
        f"{parameters(takes)}, *, user=None",
        parameters(takes + 2, "{}=None"),
        "self, *args",
        "*args",
        "*args, **named",
    ):
        register(made(**{name: compiled(name, signature, decorator)}))


def passes(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return wrapper


def with_user(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any) -> Any:
        return function(self, "user", *args)

    return wrapper


class Callable_:
    def __call__(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    "value",
    [
        passes(lambda self, wsclient, message: None),
        with_user(lambda self, user, wsclient, message: None),
        functools.partialmethod(lambda self, kind, wsclient, message: None, "text"),
        staticmethod(functools.partial(lambda kind, *args: None, "text")),
        staticmethod(lambda wsclient, message: None),
        Callable_(),
        functools.lru_cache(lambda self, wsclient, message: None),
        functools.singledispatchmethod(lambda self, wsclient, message: None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callback_that_works_is_left_alone(value: Any) -> None:
    register(made(on_message=value))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (staticmethod(lambda self, wsclient, message: None), "takes (self, wsclient, message)"),
        (functools.partialmethod(lambda self, kind, wsclient: None, "text"), "takes (wsclient)"),
        (property(lambda self: None), "is no method: <property"),
        (functools.cached_property(lambda self: None), "is no method: <functools.cached_prop"),
        (3, "is no method: 3"),
        (None, "is no method: None"),
        (classmethod(lambda cls, wsclient, message: None), "must not be a classmethod"),
    ],
)
def test_callback_of_another_kind_is_refused(value: Any, complaint: str) -> None:
    assert f"Made: on_message {complaint}" in refusal(made(on_message=value))


def test_callback_that_would_never_run_is_refused() -> None:
    class Yields(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> Any:
            yield message

    class Awaits(WebSocketListener):
        async def on_message(self, wsclient: Any, message: Any) -> Any:
            yield message

    assert "Yields: on_message has a yield" in refusal(Yields)
    assert "Awaits: on_message is async" in refusal(Awaits)


def test_class_that_cannot_be_made_without_arguments_is_refused() -> None:
    class Wants(WebSocketListener):
        def __init__(self, name: str) -> None: ...

    class Abstract(WebSocketListener, abc.ABC):
        @abc.abstractmethod
        def on_event(self) -> None: ...

    class Fine(WebSocketListener):
        def __init__(self, name: str = "") -> None: ...

    assert re.search(r"test_contract\.py, line \d+, class .*Wants: __init__ takes", refusal(Wants))
    assert "Abstract: leaves abstract: on_event" in refusal(Abstract)
    register(Fine)
    with pytest.raises(ListenerError, match=r"Wants: __init__ takes \(self, name\)"):
        create_websocket_client(NOWHERE, Wants)


def test_message_says_file_line_what_was_found_and_what_is_meant(listener_dir: Any) -> None:
    file = (
        listener_dir(
            hall="""
        class Chat(WebSocketListener):
            idle_timeout = 5

            @staticmethod
            def helper(): pass

            def on_close(self):
                on_close = 1
    """
        )
        / "hall.py"
    )
    with pytest.raises(ListenerError) as caught:
        WebSocketMiddleware(lambda environ, start: [], config=False, listeners=file.parent)
    assert str(caught.value) == (
        f"{file}, line 9, class Chat: on_close takes (self), which is not what it is called with: "
        "write def on_close(self, wsclient, reason_phrase)"
    )


# -- a client's listener ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        b"x",
        42,
        1.5,
        {},
        {"on_message": anything},
        [],
        (),
        {1},
        print,
        anything,
        dict,
        int,
    ],
    ids=repr,
)
def test_what_is_no_listener_is_a_type_error_at_the_call(value: Any) -> None:
    with pytest.raises(TypeError, match=r"listener is .*; valid is an object, or a class, with"):
        create_websocket_client(NOWHERE, value)


@pytest.mark.parametrize("name", CLIENT)
def test_clients_callback_that_takes_another_number_of_arguments_is_refused(name: str) -> None:
    most = len(CLIENT[name].takes) + 1
    least = most - CLIENT[name].optional
    for count in set(range(6)) - set(range(least, most + 1)):
        cls = type("Made", (), {name: compiled(name, parameters(count))})
        with pytest.raises(ListenerError, match=rf"Made: {name} takes \({parameters(count)}\)"):
            create_websocket_client(NOWHERE, cls())


def test_server_listener_given_to_a_client_is_refused() -> None:
    class Chat(WebSocketListener):
        def on_message(self, wsclient: Any, message: Any) -> None: ...

    with pytest.raises(ListenerError, match=r"write def on_message\(self, message\)"):
        create_websocket_client(NOWHERE, Chat)


def test_functions_on_an_instance_are_checked_as_they_are_called() -> None:
    class Bag:
        def __init__(self, **functions: Any) -> None:
            vars(self).update(functions)

    with pytest.raises(ListenerError, match=r"on_message takes \(\)"):
        create_websocket_client(NOWHERE, Bag(on_message=lambda: None))
    with pytest.raises(ListenerError, match="onMessage is no callback"):
        create_websocket_client(NOWHERE, Bag(onMessage=lambda message: None))
