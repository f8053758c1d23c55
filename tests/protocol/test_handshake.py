"""Header values of the opening handshake: RFC 6455 sections 4 and 9.1."""

from __future__ import annotations

import pytest

from wsmiddleware.protocol.handshake import (
    accept_key,
    has_token,
    is_valid_key,
    parse_extensions,
    parse_tokens,
    select_subprotocol,
)


def test_accept_key_is_the_example_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_key_of_16_bytes_is_valid() -> None:
    assert is_valid_key("dGhlIHNhbXBsZSBub25jZQ==")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ==\n",
        "dGhlIHNhbXBsZSBub25j ZQ=",
        "dGhlIHNhbXBsZSBub25jZQ-=",
        "dGhlIHNhbXBsZSBub25jZWU=",
        "AAAAAAAAAAAAAAAAAAAAAAAA",
        "éGhlIHNhbXBsZSBub25jZQ==",
        "A===AAAAAAAAAAAAAAAAAAA=",
    ],
)
def test_key_of_another_form_is_invalid(key: str) -> None:
    assert not is_valid_key(key)


@pytest.mark.parametrize(
    "header", ["upgrade", "keep-alive, Upgrade", "a,UPGRADE\t ,b", ",,upgrade"]
)
def test_header_has_token(header: str) -> None:
    assert has_token(header, "upgrade")


@pytest.mark.parametrize("header", ["", "upgraded", "up grade", "keep-alive;upgrade", '"upgrade"'])
def test_header_has_no_token(header: str) -> None:
    assert not has_token(header, "Upgrade")


def test_tokens_are_split_at_commas() -> None:
    assert parse_tokens(" chat,\tsuperchat ,, v1.x ,") == ["chat", "superchat", "v1.x"]


@pytest.mark.parametrize(
    ("header", "extensions"),
    [
        ("", []),
        (" , ,", []),
        ("foo", [("foo", [])]),
        ("foo , bar", [("foo", []), ("bar", [])]),
        ("foo; a; b=1 ;c = x", [("foo", [("a", None), ("b", "1"), ("c", "x")])]),
        ('foo; a="1"; b="\\x\\1"', [("foo", [("a", "1"), ("b", "x1")])]),
        ("foo;a,,bar;a;a", [("foo", [("a", None)]), ("bar", [("a", None), ("a", None)])]),
    ],
)
def test_extensions_are_parsed(header: str, extensions: list[object]) -> None:
    assert parse_extensions(header) == extensions


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("foo bar", "expected ',' or ';' at 4"),
        ("foo=1", "expected ',' or ';' at 3"),
        ("; a", "expected a name at 0"),
        ("foo;", "expected a name at 4"),
        ("foo; =1", "expected a name at 5"),
        ("foo; a=", "expected a value at 7"),
        ('foo; a="1', "expected a value at 7"),
        ('foo; a=""', "is no token"),
        ('foo; a="1 2"', "is no token"),
        ("foo; a=1 2", "expected ',' or ';' at 9"),
        ("föo", "expected ',' or ';' at 1"),
    ],
)
def test_extensions_are_refused_with_their_place(header: str, problem: str) -> None:
    with pytest.raises(ValueError, match="extensions ") as caught:
        parse_extensions(header)
    assert problem in str(caught.value)


def test_subprotocol_is_chosen_in_the_order_of_the_server() -> None:
    assert select_subprotocol(["a", "b", "c"], ["x", "c", "a"]) == "c"


@pytest.mark.parametrize("offered", [[], ["chat2"], ["Chat"], ["cha"]])
def test_subprotocol_is_matched_exactly(offered: list[str]) -> None:
    assert select_subprotocol(offered, ["chat"]) is None
