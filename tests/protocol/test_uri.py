"""WebSocket URLs (RFC 6455 section 3)."""

from __future__ import annotations

import time

import pytest

from wsmiddleware.protocol.uri import Target, parse_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("ws://host", Target(False, "host", 80, "host", "/")),
        ("wss://host", Target(True, "host", 443, "host", "/")),
        ("WS://HOST/Path", Target(False, "host", 80, "host", "/Path")),
        ("ws://host:80/", Target(False, "host", 80, "host", "/")),
        ("ws://host:443/", Target(False, "host", 443, "host:443", "/")),
        ("wss://host:/", Target(True, "host", 443, "host", "/")),
        ("ws://host?a=1&b=%23", Target(False, "host", 80, "host", "/?a=1&b=%23")),
        ("ws://host/a?b=c/d?e", Target(False, "host", 80, "host", "/a?b=c/d?e")),
        ("ws://[::1]:8000/x", Target(False, "::1", 8000, "[::1]:8000", "/x")),
        ("ws://[fe80::1%25eth0]/", Target(False, "fe80::1%eth0", 80, "[fe80::1]", "/")),
        ("ws://bücher.example/ü", Target(False, "xn--bcher-kva.example", 80,
                                         "xn--bcher-kva.example", "/%C3%BC")),
        ("ws://my_host.local/", Target(False, "my_host.local", 80, "my_host.local", "/")),
        ("ws://host.example./", Target(False, "host.example.", 80, "host.example.", "/")),
        (f"ws://{'a' * 63}.b/", Target(False, "a" * 63 + ".b", 80, "a" * 63 + ".b", "/")),
    ],
)  # fmt: skip
def test_url_is_taken_apart(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host/", "'http'; valid is ws or wss"),
        ("host/path", "no URL"),
        ("", "no URL"),
        ("ws:host", "no URL"),
        ("ws:///path", "the host is ''"),
        ("ws://host/#top", "fragment"),
        ("ws://host/path#", "fragment"),
        ("ws://user:secret@host/", "user"),
        ("ws://host:0/", "'0'; valid is 1 to 65535"),
        ("ws://host:65536/", "65536"),
        ("ws://host:8a/", "8a"),
        ("ws://host:٣/", "port"),
        ("ws://[::1/", "IPv6"),
        ("ws://[host]/", "IPv6"),
        ("ws://[::1]x/", "port"),
        ("ws://ho st/", "space"),
        ("ws://host/a b", "space"),
        ("ws://host/\r\nX: y", "control character"),
        ("ws://host/\x7f", "control character"),
        ("ws://ho<st/", "ho<st"),
        ("ws://" + "ü" * 80 + "/", "DNS"),
        ("ws://a..b/", "^'ws://a..b/': the host is 'a..b'; valid is a name of labels of 1 to 63"),
        ("ws://.a/", "the host is '.a'"),
        ("ws://a../", "the host is 'a..'"),
        ("ws://./", "the host is '.'"),
        ("ws://a." + "b" * 64 + "/", "1 to 63 characters"),
    ],
)
def test_what_is_no_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_url(url)


def test_error_shows_neither_password_nor_query() -> None:
    for url in ("ws://user:secret@host/", "http://host/?token=secret", "ws://host/?secret#a"):
        with pytest.raises(ValueError) as caught:
            parse_url(url)
        assert "secret" not in str(caught.value)


def test_target_is_a_url_again() -> None:
    for url in ("ws://host/", "wss://host:8443/a?b", "ws://[::1]:8000/"):
        assert str(parse_url(url)) == url


def test_host_past_its_limit_is_refused_before_it_is_encoded() -> None:
    host = "a." * 126 + "b."
    assert parse_url(f"ws://{host}/").host == host
    started = time.thread_time()
    with pytest.raises(ValueError, match=r"the host .* has more than 254 characters"):
        parse_url("ws://" + "\xfc." * 30_000 + "a/")
    assert time.thread_time() - started < 0.05
