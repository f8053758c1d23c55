"""`allowed_origins`, on environs: who is foreign, and who only looks familiar."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from wsmiddleware.policy import check_origin
from wsmiddleware.settings import Settings
from wsmiddleware.values import ORIGINS


def is_let_in(
    origin: str | None, host: str = "example.com", allowed: object = "same-origin"
) -> bool:
    settings = Settings(allowed_origins=ORIGINS.check(allowed))  # type: ignore[arg-type]
    request = {"HTTP_HOST": host} if origin is None else {"HTTP_HOST": host, "HTTP_ORIGIN": origin}
    return check_origin(request, settings) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),  # TLS may end at a proxy
        ("HTTP://EXAMPLE.com", "example.COM"),
        ("http://example.com:80", "example.com"),
        ("http://example.com", "example.com:80"),
        ("https://example.com", "example.com:443"),
        ("https://example.com:443", "example.com"),
        ("http://example.com:8000", "example.com:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[0:0:0:0:0:0:0:1]", "[::1]"),
        ("http://[::1]:80", "[::1]"),
        ("http://[FE80::A]", "[fe80::a]"),
        ("http://localhost", "localhost"),
        ("http://my_host.local", "my_host.local"),
        ("https://app.example.com.", "app.example.com."),
        ("http://example.com.:80", "example.com."),
        ("http://foo-.example.com", "foo-.example.com"),
        ("http://-foo.example.com", "-foo.example.com"),
    ],
)
def test_same_origin_is_let_in(origin: str, host: str) -> None:
    assert is_let_in(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example", "example.com"),
        ("http://example.com:8001", "example.com:8000"),
        ("http://example.com", "example.com:8000"),
        ("https://example.com", "example.com:80"),
        ("http://www.example.com", "example.com"),
        ("http://example.com", "www.example.com"),
        ("http://example.com.attacker.org", "example.com"),
        ("http://attackerexample.com", "example.com"),
        ("http://example.com.", "example.com"),
        ("http://example.com", "example.com."),
        ("http://example.com..", "example.com.."),
        ("http://.", "."),
        ("http://foo-.example.com", "foo.example.com"),
        ("http://*.example.com", "*.example.com"),
        ("http://[::1]", "[::2]"),
        ("http://[::1", "[::1"),
        ("null", "null"),
        ("", "example.com"),
        ("example.com", "example.com"),
        ("//example.com", "example.com"),
        ("http:/example.com", "example.com"),
        ("http://example.com/", "example.com"),
        ("http://example.com/path", "example.com"),
        ("http://example.com?x", "example.com"),
        ("http://user@example.com", "example.com"),
        ("http://example.com@evil.example", "example.com"),
        ("http://evil.example#example.com", "example.com"),
        ("http://evil.example\\example.com", "example.com"),
        ("http://example.com:", "example.com"),
        ("http://example.com:99999", "example.com:99999"),
        ("http://example.com:+80", "example.com"),
        ("http://example.com:80x", "example.com"),
        ("http://example.com http://evil.example", "example.com"),
        ("http://example.com,http://example.com", "example.com"),
        ("http://example.com\x00", "example.com"),
        ("http://example.com\r\n", "example.com"),
        ("://example.com", "example.com"),
        ("http://", "example.com"),
        ("http://example.com", "example.com/path"),
        ("http://example.com", "user@example.com"),
        ("http://x", ""),
    ],
)
def test_foreign_or_malformed_origin_is_not(origin: str, host: str) -> None:
    assert not is_let_in(origin, host)


def test_no_origin_is_no_browser() -> None:
    assert is_let_in(None)
    assert is_let_in(None, allowed=["https://example.org"])


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "no origin at all"])
def test_star_lets_everybody_in(origin: str) -> None:
    assert is_let_in(origin, allowed="*")


def test_null_is_let_in_where_it_is_listed() -> None:
    assert is_let_in("null", allowed=["https://example.org", "null"])
    assert not is_let_in("NULL", allowed=["null"])
    assert not is_let_in("null", allowed=["https://*.example.org"])


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.org", "https://example.org"),
        ("https://example.org", "https://EXAMPLE.org:443"),
        ("https://example.org:443", "https://example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://*.example.org", "https://a.example.org"),
        ("https://*.example.org", "https://a-b.example.org:443"),
        ("https://*.example.org:8443", "https://a.example.org:8443"),
        ("https://*.*.example.org", "https://a.b.example.org"),
        ("https://a.*.example.org", "https://a.b.example.org"),
        ("https://example.*", "https://example.org"),
        ("http://*", "http://localhost"),
        ("http://*:8000", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[0::1]:8000"),
        ("https://*.example.org.", "https://a.example.org."),
        ("app://bundle", "app://bundle"),
    ],
)
def test_listed_origin_is_let_in(pattern: str, origin: str) -> None:
    assert is_let_in(origin, allowed=["https://first.test", pattern])


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.org", "http://example.org"),
        ("https://example.org", "https://example.org:8443"),
        ("https://example.org", "https://www.example.org"),
        ("https://example.org", "https://example.org.attacker.org"),
        ("https://example.org", "https://notexample.org"),
        ("https://example.org", "https://example.org/"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://a.b.example.com"),
        ("https://*.example.com", "https://evil.example.com.attacker.org"),
        ("https://*.example.com", "https://evilexample.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("https://*.example.com", "http://a.example.com"),
        ("https://*.example.com", "https://attacker.org/.example.com"),
        ("https://*.example.com", "https://attacker.org#.example.com"),
        ("https://*.example.com", "https://attacker.org?.example.com"),
        ("https://*.example.com", "https://attacker.org\\.example.com"),
        ("https://*.example.com", "https://user:x@a.example.com"),
        ("https://*.example.com:8443", "https://a.example.com"),
        ("https://*.example.com:8443", "https://a.example.com:8444"),
        ("http://*:8000", "http://localhost"),
        ("http://*:8000", "http://localhost:80:8000"),
        ("http://*", "http://[::1]"),
        ("https://example.*", "https://example."),
        ("https://*.*", "https://example."),
        ("https://*.example.org", "https://a.example.org."),
        ("https://*.example.org", "https://example.org."),
        ("http://*.*:8000", "http://localhost.:8000"),
        ("http://example.*", "http://example.org:8000"),
    ],
)
def test_look_alike_is_not(pattern: str, origin: str) -> None:
    assert not is_let_in(origin, allowed=[pattern])


def test_a_list_replaces_same_origin() -> None:
    assert not is_let_in("http://example.com", "example.com", allowed=["https://example.org"])


#: What programs send that is no origin of RFC 6454.
ODD = [
    "file://", "file:///", "FILE://", "app://.", "app://a/b", "app://bundle:99999",
    "capacitor-electron://.", "vscode-file://vscode-app/x", "content://", "about://a b", "x://,y",
    "app://\xfc", "app://\\", "app://\x1b[2J", "app://'\"", "file://" + "a" * 293,
]  # fmt: skip


def shown_in_log(origin: str, **options: Any) -> str | None:
    """What the line of a refusal says to add to `allowed_origins`, if anything."""
    request = {"HTTP_HOST": "example.com", "HTTP_ORIGIN": origin}
    refusal = check_origin(request, Settings(**options))
    assert refusal is not None
    assert refusal.reason.isprintable()
    found = re.match(r"foreign origin '(.*)' for host 'example.com'; to let it in,", refusal.reason)
    assert found is None or found[1].isascii()
    return found[1] if found else None


@pytest.mark.parametrize(
    "origin", [*ODD, "null", "app://-", "chrome-extension://abc", "https://evil.example"]
)
def test_what_the_log_shows_can_be_listed_and_lets_in_nothing_else(origin: str) -> None:
    listing = shown_in_log(origin)
    assert listing is not None
    for allowed in (["same-origin", listing], [listing]):
        assert is_let_in(origin, allowed=allowed)
        assert is_let_in("https://example.com", allowed=allowed) == (len(allowed) > 1)
        others = [*ODD, "null", "https://evil.example", "same-origin", f"{origin}/", f"x{origin}"]
        for other in {*others, origin[:-1], origin.swapcase()} - {origin}:
            # An origin has no case, and is the one value that has several forms.
            is_same = "://" in origin and other.lower() == origin.lower() and origin not in ODD
            assert is_let_in(other, allowed=allowed) == is_same, other


def test_what_the_log_shows_survives_a_variable_and_the_file() -> None:
    for origin in ODD:
        listing = shown_in_log(origin)
        assert listing is not None
        if "," not in listing:
            assert is_let_in(origin, allowed=ORIGINS.read(f"same-origin, {listing}"))
        assert is_let_in(origin, allowed=json.loads(json.dumps(["same-origin", listing])))


@pytest.mark.parametrize(
    "origin",
    ["", "example.com", "https://example.com/", "http://u@a", "file://*", "same-origin", "*",
     "http://\xfc.example", "http://a\x1b", "file://" + "a" * 294, "x" * 60_000],
)  # fmt: skip
def test_what_cannot_be_listed_is_not_said_to_be(origin: str) -> None:
    assert shown_in_log(origin) is None
    for allowed in ("same-origin", ["same-origin", "file://"], ["https://*.example.com"]):
        assert not is_let_in(origin, allowed=allowed)


def test_refused_origin_tells_the_operator_what_to_set_and_the_peer_nothing() -> None:
    request = {"HTTP_HOST": "example.com", "HTTP_ORIGIN": "http://evil.example\x1b\n" + "x" * 5000}
    refusal = check_origin(request, Settings())
    assert refusal is not None
    assert refusal.response.status_code == 403
    assert "evil" not in refusal.response.get_data(as_text=True)
    assert "http://evil.example" in refusal.reason
    assert "WSMIDDLEWARE_ALLOWED_ORIGINS" in refusal.reason
    assert "ProxyFix" in refusal.reason
    # Neither a line nor a terminal's escape of the peer's, nor kilobytes of it.
    assert refusal.reason.isprintable()
    assert len(refusal.reason) < 500
