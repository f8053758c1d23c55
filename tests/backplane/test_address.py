"""The URL of a Redis."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.address import SCHEMES, Address
from wsmiddleware.exceptions import ConfigError

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://host", "redis://host:6379/0"),
        ("valkey://host:1/7", "valkey://host:1/7"),
        ("rediss://u:p@host/1", "rediss://host:6379/1"),
        ("redis://[::1]:7000/2", "redis://[::1]:7000/2"),
        ("redis://host?db=3", "redis://host:6379/3"),
        ("unix:///run/redis.sock?db=4", "unix:///run/redis.sock?db=4"),
        ("unix://u:p@/run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("redis+sentinel://a,b:1/5/chat", "redis+sentinel://a:26379,b:1/5/chat"),
        ("redis+sentinel://a/chat", "redis+sentinel://a:26379/0/chat"),
    ],
)
def test_url_is_read(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown


def test_user_and_password_are_read_and_not_shown() -> None:
    address = Address.parse("redis://joe:s%403cr3t%2F@host")
    assert (address.username, address.password) == ("joe", "s@3cr3t/")
    assert "3cr3t" not in f"{address} {address!r}"
    assert Address.parse("redis://:word@host").username is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis+cluster://a,b", "Cluster"),
        ("rediss-cluster://a", "Cluster"),
        ("redis://a:1,b:2", "Cluster"),
        ("http://host", "redis://"),
        ("host:6379", "redis://"),
        ("", "redis://"),
        ("unix://host/path", "three slashes"),
        ("unix://", "three slashes"),
        ("redis+sentinel://a", "name"),
        ("redis+sentinel://a/0/b/c", "nothing else"),
        ("redis://host/0/1", "nothing else"),
        ("redis://host/x", "number"),
        ("redis://host/-1", "number"),
        ("redis://host/²", "number"),
        ("redis://host?db=x", "number"),
        ("redis://host:0", "port"),
        ("redis://host:65536", "port"),
        ("redis://host:x", "port"),
        ("redis://[::1", "port"),
        ("redis://host?decode_responses=1", "db"),
        ("redis://host?ssl_ca_certs=x", "db"),
    ],
)
def test_wrong_url_says_what_is_wrong(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Address.parse(url)


@pytest.mark.parametrize("scheme", [*SCHEMES, "redis+cluster", "http"])
@pytest.mark.parametrize(
    "rest",
    [
        f"joe:{SECRET}@host:x",
        f"joe:{SECRET}/@host",
        f"joe:{SECRET}?@host",
        f"joe:{SECRET}#@host",
        f"joe:{SECRET}@@host",
        f"joe:{SECRET}",
        f":{SECRET}",
        f"host/0?password={SECRET}",
        f"host/0?{SECRET}",
        f"host/{SECRET}",
        f"host/0/{SECRET}/x",
        f"joe:{SECRET}@[::1",
        f"joe:{SECRET}@a,b:{SECRET}",
    ],
)
def test_no_error_shows_a_password(scheme: str, rest: str) -> None:
    try:
        shown = str(Address.parse(f"{scheme}://{rest}"))
    except ConfigError as exc:
        assert exc.__cause__ is None and exc.__context__ is None
        shown = str(exc)
        assert SECRET not in shown
    else:
        # It is right only where it stands in no password's place.
        assert SECRET not in shown or f"/{SECRET}" in shown


@given(st.sampled_from(SCHEMES), st.text(max_size=40))
def test_whatever_follows_is_read_or_a_config_error(scheme: str, rest: str) -> None:
    with contextlib.suppress(ConfigError):
        Address.parse(f"{scheme}://{rest}")
