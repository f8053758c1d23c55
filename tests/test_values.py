from __future__ import annotations

from pathlib import Path

import pytest

from wsmiddleware import values

SECONDS = values.number("seconds")


@pytest.mark.parametrize("value", [1, 0.5, 10**9])
def test_number_takes_what_is_above_zero_as_float(value: float) -> None:
    assert SECONDS.check(value) == value
    assert type(SECONDS.check(value)) is float


@pytest.mark.parametrize(
    "value", [0, -1, True, "5", None, [], float("nan"), float("inf"), 10**400, 1j]
)
def test_number_refuses(value: object) -> None:
    with pytest.raises(ValueError):
        SECONDS.check(value)


def test_number_takes_zero_and_none_only_where_told() -> None:
    assert values.number("", zero=True).check(0) == 0.0
    assert values.number("", none=True).check(None) is None
    with pytest.raises(ValueError):
        values.number("", zero=True).check(-0.001)


@pytest.mark.parametrize(
    ("text", "value"), [("50", 50), ("-1", -1), ("0.5", 0.5), (".5", 0.5), ("None", None)]
)
def test_number_is_read_from_plain_digits(text: str, value: object) -> None:
    assert SECONDS.read(text) == value


@pytest.mark.parametrize("text", ["", "1_000", "nan", "1e3", "50s", "٥", "1."])  # noqa: RUF001
def test_number_is_not_read_from(text: str) -> None:
    with pytest.raises(ValueError):
        SECONDS.read(text)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_integer_refuses(value: object) -> None:
    with pytest.raises(ValueError):
        values.integer("").check(value)


def test_integer_takes_one_and_more() -> None:
    assert values.integer("").check(1) == 1


def test_integer_takes_no_more_than_it_is_told() -> None:
    kind = values.integer("", most=5)
    assert kind.check(5) == 5
    with pytest.raises(ValueError):
        kind.check(6)


def test_choice_takes_its_words_only() -> None:
    kind = values.choice("close", "drop")
    assert kind.valid == '"close" or "drop"'
    assert kind.check(kind.read("drop")) == "drop"
    for value in ("Close", 1, None, ["close"]):
        with pytest.raises(ValueError):
            kind.check(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("yes", True), ("on", True), ("0", False), ("Off", False)],
)
def test_boolean_is_read_from_words(text: str, value: bool) -> None:
    assert values.BOOLEAN.check(values.BOOLEAN.read(text)) is value


def test_boolean_refuses_other_words_and_types() -> None:
    with pytest.raises(ValueError):
        values.BOOLEAN.read("maybe")
    for value in (1, "true", None):
        with pytest.raises(ValueError):
            values.BOOLEAN.check(value)


def test_path_takes_text_and_path_objects() -> None:
    assert values.PATH.check("a/b") == "a/b"
    assert values.PATH.check(Path("a")) == "a"


@pytest.mark.parametrize("value", ["", "  ", "a\0b", b"a", 1, None, False])
def test_path_refuses(value: object) -> None:
    with pytest.raises(ValueError):
        values.PATH.check(value)


def test_subprotocols_become_a_tuple_and_none_the_empty_one() -> None:
    kind = values.SUBPROTOCOLS
    assert kind.check(["v2", "v1"]) == ("v2", "v1")
    assert kind.check(None) == kind.check([]) == kind.check(kind.read("none")) == ()
    assert kind.check(kind.read("v2, wsmiddleware.v1")) == ("v2", "wsmiddleware.v1")


@pytest.mark.parametrize("value", ["chat", b"chat", {"chat"}, ["a b"], [""], [1], ["a", "a"], 1])
def test_subprotocols_refuse(value: object) -> None:
    with pytest.raises(ValueError):
        values.SUBPROTOCOLS.check(value)


@pytest.mark.parametrize("value", ["same-origin", "*"])
def test_origins_keep_the_two_words(value: str) -> None:
    assert values.ORIGINS.check(value) == value


def test_origins_become_a_tuple_of_normal_forms_without_doubles() -> None:
    given = ["https://A.example", "https://a.example:443", "null", "https://*.b.example"]
    assert values.ORIGINS.check(given) == ("https://a.example", "null", "https://*.b.example")


def test_origins_are_read_from_a_list_with_commas() -> None:
    assert values.ORIGINS.check("http://a:1, http://b:2") == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    "value",
    [
        "", "sameorigin", "a.example", [], ["*"], ["same-origin", "*"], [1], b"null", 1, None,
        "http://a,", "a.example:80", "app:", "http://", "https://a/", "wss://a?x", "HTTP://a b",
        "app://.*", [" file://"], ["file://\x1b"], ["file://a\n"], ["\xe4pp://."],
    ],
)  # fmt: skip
def test_origins_refuse(value: object) -> None:
    with pytest.raises(ValueError):
        values.ORIGINS.check(value)


def test_origins_keep_what_is_no_origin_as_it_is_beside_the_own_site() -> None:
    given = ["same-origin", "file://", "App://.", "chrome-extension://abc", "about://a b"]
    assert values.ORIGINS.check(given) == tuple(given)
    assert values.ORIGINS.check(",".join(given)) == tuple(given)


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("HTTP://Example.COM:80", "http://example.com"),
        ("wss://example.com:443", "wss://example.com"),
        ("http://example.com:443", "http://example.com:443"),
        ("http://localhost:08000", "http://localhost:8000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::0001]:8000", "http://[::1]:8000"),
        ("http://my_host-1", "http://my_host-1"),
        ("http://-A-.b.", "http://-a-.b."),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("null", "null"),
    ],
)
def test_normalise_origin_gives_one_form(origin: str, normal: str) -> None:
    assert values.normalise_origin(origin) == normal
    assert values.normalise_origin(normal) == normal


@pytest.mark.parametrize(
    "origin",
    [
        "http://a/", "http://a?x", "http://u@a", "//a", "a", "", "http://", "http://a b",
        "http://a:0", "http://a:65536", "http://a:x", "http://a:*", "http://a:", "http://[::g]", "http://[::1%0]",
        "http://a..b", "http://a..", "http://.", "http://*.a", "NULL", " null", "http://a\n", None,
        "http://" + "a" * 64, "http://" + "a." * 150, "http://ü" + "a" * 64, "http://a,http://b",
    ],
)  # fmt: skip
def test_normalise_origin_refuses(origin: object) -> None:
    with pytest.raises(ValueError):
        values.normalise_origin(origin)


@pytest.mark.parametrize("origin", ["https://a*.b", "https://*a.b", "https://**.b", "*://a.b"])
def test_wildcards_stand_for_whole_labels_only(origin: str) -> None:
    with pytest.raises(ValueError):
        values.normalise_origin(origin, wildcards=True)


def test_hosts_become_a_tuple_of_names_in_lower_case_and_none_the_empty_one() -> None:
    kind = values.HOSTS
    given = ["Example.com", ".example.ORG", "b\xfccher.example", "[0::1]", "127.0.0.1", "my_host"]
    normal = ("example.com", ".example.org", "xn--bcher-kva.example", "[::1]", "127.0.0.1")
    assert kind.check(given) == (*normal, "my_host")
    assert kind.check(None) == kind.check([]) == kind.check(kind.read("none")) == ()
    assert kind.check(kind.read("a.example, .b.example")) == ("a.example", ".b.example")


@pytest.mark.parametrize(
    "value",
    [
        "example.com", b"a", 1, [1], [""], ["."], ["*"], ["*.example.com"], ["a.example:80"],
        ["http://a"], ["a/b"], ["a b"], ["..a"], ["a..b"], ["[::1"], ["[::1]:80"], ["a" * 64],
        ["a." * 200],
    ],
)  # fmt: skip
def test_hosts_refuse(value: object) -> None:
    with pytest.raises(ValueError):
        values.HOSTS.check(value)
