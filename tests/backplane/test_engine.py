"""Positions, the text that pages and clients keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.engine import MAX_OFFSET, History, Position

EPOCH = "0123456789abcdef"


@pytest.mark.parametrize("offset", [0, 1, MAX_OFFSET])
def test_position_reads_its_own_text(offset: int) -> None:
    position = Position(EPOCH, offset)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        EPOCH,
        f"{EPOCH}:",
        f"{EPOCH}:-1",
        f"{EPOCH}:+1",
        f"{EPOCH}: 1",
        f"{EPOCH}:1_0",
        f"{EPOCH}:\u0661",
        f"{EPOCH}:{MAX_OFFSET + 1}",
        f"{EPOCH}:{'9' * 5000}",
        f"{EPOCH}:1:session",
        f"{EPOCH.upper()}:1",
        f"{EPOCH}0:1",
        "é" * 16 + ":1",
    ],
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


@given(st.text(max_size=60))
def test_parse_never_raises(text: str) -> None:
    position = Position.parse(text)
    assert position is None or (len(position.epoch) == 16 and 0 <= position.offset <= MAX_OFFSET)


def test_meta_outlives_the_entries() -> None:
    assert History(5, 60).meta_ttl == 24 * 3600
    assert History(5, 86400).meta_ttl == 10 * 86400
