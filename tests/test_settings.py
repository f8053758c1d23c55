from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path

import pytest

from wsmiddleware.exceptions import ConfigError
from wsmiddleware.settings import SETTINGS, Settings, help_text, markdown_table, validate

SPEC_KEYWORDS = [
    "directory",
    "request_timeout",
    "idle_timeout",
    "ping_interval",
    "ping_timeout",
    "grace_period",
    "handshake_timeout",
    "keep_alive",
    "max_head_size",
    "max_message_size",
    "max_connections",
    "max_message_rate",
    "send_queue_size",
    "send_timeout",
    "slow_consumer",
    "allowed_origins",
    "subprotocols",
    "compression",
    "broadcast_scope",
    "close_timeout",
    "debug",
    "trusted_hosts",
    "json",
]


def test_table_has_the_specified_keywords_and_a_field_for_each() -> None:
    assert [row.name for row in SETTINGS] == SPEC_KEYWORDS
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert fields == [*SPEC_KEYWORDS, "config_file", "sources"]


def test_row_names_its_key_and_variable() -> None:
    row = SETTINGS[SPEC_KEYWORDS.index("request_timeout")]
    assert (row.key, row.variable) == ("requestTimeout", "WSMIDDLEWARE_REQUEST_TIMEOUT")


def test_every_default_is_valid_in_its_row() -> None:
    defaults = Settings()
    for row in SETTINGS[1:]:
        value = getattr(defaults, row.name)
        assert validate(row.name, value, "default") == value


def test_settings_are_frozen_hashable_and_json_ready() -> None:
    settings = Settings(subprotocols=("a", "b"), directory=Path("/x"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.debug = True  # type: ignore[misc]
    assert hash(settings) == hash(dataclasses.replace(settings, sources={"debug": "here"}))
    plain = json.loads(json.dumps(settings.to_dict()))
    assert (plain["subprotocols"], plain["directory"]) == (["a", "b"], "/x")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1000, 900), (1, 1), (resource.RLIM_INFINITY, 943_718)],
)
def test_max_connections_is_nine_tenths_of_the_file_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert Settings().max_connections == expected


def test_max_connections_has_a_default_where_no_file_limit_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Settings().max_connections == 10_000


def test_markdown_and_help_show_every_row() -> None:
    markdown, text = markdown_table(), help_text()
    for row in SETTINGS:
        key = "keyword only" if row.is_keyword_only else f"`{row.key}`"
        assert f"| `{row.name}` | {key} | {row.shown} |" in markdown
        is_in_help = f"{row.variable} (default {row.shown})\n" in text
        assert is_in_help is not row.is_keyword_only
    assert '"\\*" only in place of a whole label' in markdown  # else what follows is slanted
    columns = {line.replace("\\|", "").count("|") for line in markdown.splitlines()}
    assert columns == {6}


@pytest.mark.parametrize("name", ["max_message_size", "send_queue_size"])
def test_size_is_one_that_can_be_counted_to(name: str) -> None:
    assert validate(name, 2**62, "here") == 2**62
    with pytest.raises(ConfigError, match=r"from 1 to 2\*\*62 \(bytes\)$"):
        validate(name, 2**62 + 1, "here")


def test_validate_names_the_source_and_the_attribute() -> None:
    assert validate("idle_timeout", 0, "chat.py, class Chat") == 0.0
    with pytest.raises(ConfigError, match=r"^chat\.py, class Chat: idle_timeout is -1; valid is "):
        validate("idle_timeout", -1, "chat.py, class Chat")
    with pytest.raises(KeyError):
        validate("idle_timeot", 1, "chat.py")
