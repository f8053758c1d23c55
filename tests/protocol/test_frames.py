"""Frames out and close codes: RFC 6455 sections 5.2, 5.5.1, 7.4."""

from __future__ import annotations

from typing import Any

import pytest

from wsmiddleware.protocol.frames import (
    CloseCode,
    Opcode,
    close_arguments,
    close_code,
    close_payload,
    encode_frame,
    is_receivable_close_code,
    to_payload,
)
from wsmiddleware.protocol.masking import xor_mask


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x82\x00"),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (65535, b"\x82\x7e\xff\xff"),
        (65536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_server_encodes_length_in_its_shortest_form(size: int, header: bytes) -> None:
    payload = b"x" * size
    assert encode_frame(Opcode.BINARY, payload) == header + payload


def test_server_encodes_flags() -> None:
    assert encode_frame(Opcode.TEXT, b"a", fin=False, rsv1=True) == b"\x41\x01a"


def test_client_encodes_masked_frame_with_a_fresh_key() -> None:
    first, second = (encode_frame(Opcode.TEXT, b"hello", masked=True) for _ in range(2))
    assert first[:2] == b"\x81\x85"
    assert xor_mask(first[6:], first[2:6]) == b"hello"
    assert first[2:6] != second[2:6]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("GOING_AWAY", 1001),
        ("CANNOT_ACCEPT", 1003),
        ("NOT_CONSISTENT", 1007),
        ("VIOLATED_POLICY", 1008),
        ("TOO_BIG", 1009),
        ("NO_EXTENSION", 1010),
        ("UNEXPECTED_CONDITION", 1011),
        ("TRY_AGAIN_LATER", 1013),
    ],
)
def test_close_code_takes_lucee_name(name: str, code: int) -> None:
    assert close_code(name) == close_code(name.lower()) == close_code(name.title()) == code


@pytest.mark.parametrize("reason", ["bye", "Going away", "a_b c", "bye!", "ä" * 61, "", "0x7d0"])
def test_text_alone_is_a_reason(reason: str) -> None:
    assert close_arguments(reason, "") == (1000, reason)


@pytest.mark.parametrize(
    "text", ["GOING_AWYA", "going_awya", "BYE", "1000", "4000", "no_status_code", "NO_STATUS_RCVD"]
)
def test_text_that_looks_like_a_code_is_no_reason(text: str) -> None:
    with pytest.raises(ValueError, match="may not be sent"):
        close_arguments(text, "")


@pytest.mark.parametrize(("text", "words"), [("ä" * 62, "at most 123"), ("\ud800", "surrogates")])
def test_text_alone_that_cannot_be_a_reason_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        close_arguments(text, "")


def test_reason_beside_a_text_that_is_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="'bye' may not be sent"):
        close_arguments("bye", "now")
    assert close_arguments("going_away", "bye") == (1001, "bye")


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999, CloseCode.BAD_GATEWAY])
def test_close_code_takes_number(code: int) -> None:
    number = close_code(code)
    assert (number, type(number)) == (code, int)


@pytest.mark.parametrize(
    "value",
    [0, -1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, True, "GONE", "NO_STATUS_CODE", None],
)
def test_close_code_refuses_what_may_not_be_sent(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value!r} may not be sent; .*3000-4999.*GOING_AWAY"):
        close_code(value)


def test_close_code_error_names_no_code_that_may_not_be_sent() -> None:
    with pytest.raises(ValueError, match="valid") as caught:
        close_code(1005)
    assert "NO_STATUS" not in str(caught.value)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_close_code_is_receivable(code: int) -> None:
    assert is_receivable_close_code(code)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000])
def test_close_code_is_not_receivable(code: int) -> None:
    assert not is_receivable_close_code(code)


def test_close_payload_holds_123_bytes_of_reason() -> None:
    assert close_payload(1000, "é" * 61 + "x") == b"\x03\xe8" + "é".encode() * 61 + b"x"


def test_close_payload_refuses_124_bytes_of_reason() -> None:
    with pytest.raises(ValueError, match="124 bytes"):
        close_payload(1000, "é" * 62)


@pytest.mark.parametrize("reason", [None, b"bye", 7])
def test_close_payload_refuses_a_reason_that_is_no_str(reason: Any) -> None:
    with pytest.raises(ValueError, match="valid is a str"):
        close_payload(1000, reason)


@pytest.mark.parametrize(
    "data", ["é", b"\xc3\xa9", bytearray(b"\xc3\xa9"), memoryview(b"\xc3\xa9")]
)
def test_payload_is_bytes(data: str | bytes | bytearray | memoryview) -> None:
    payload = to_payload(data)
    assert (payload, type(payload)) == (b"\xc3\xa9", bytes)


def test_payload_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="not int"):
        to_payload(5)  # type: ignore[arg-type]


def test_payload_refuses_lone_surrogate() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        to_payload("\ud800")
