from __future__ import annotations

import copy
import pickle

import pytest

from wsmiddleware import exceptions
from wsmiddleware.exceptions import (
    ConnectionClosed,
    HandshakeError,
    ListenerError,
    WebSocketError,
)


def test_every_error_derives_from_the_base_and_is_drawn_in_the_tree() -> None:
    for name in exceptions.__all__:
        assert issubclass(getattr(exceptions, name), WebSocketError)
        assert name in (exceptions.__doc__ or "")


def test_connection_closed_tells_code_and_reason() -> None:
    exc = ConnectionClosed(1001, "going away")
    assert (exc.code, exc.reason) == (1001, "going away")
    assert str(exc) == "the connection is closed, code 1001 (going away)"


def test_connection_closed_without_a_reason_tells_the_code() -> None:
    exc = ConnectionClosed(1006)
    assert exc.reason == ""
    assert str(exc) == "the connection is closed, code 1006"


def test_handshake_error_carries_the_response_and_shows_the_message() -> None:
    exc = HandshakeError("refused with 403", response=403)
    assert exc.response == 403
    assert str(exc) == exc.message == "refused with 403"
    assert HandshakeError("no answer").response is None


@pytest.mark.parametrize(
    "exc", [ConnectionClosed(1000, "bye"), HandshakeError("no", 404), ListenerError("x.py: y")]
)
def test_errors_survive_pickle_and_copy(exc: WebSocketError) -> None:
    for twin in (pickle.loads(pickle.dumps(exc)), copy.copy(exc)):
        assert type(twin) is type(exc)
        assert (str(twin), vars(twin)) == (str(exc), vars(exc))
