"""What things are called in Redis."""

from __future__ import annotations

import binascii
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmiddleware.backplane.engine import Subject
from wsmiddleware.backplane.keys import PARTITIONS, Keys
from wsmiddleware.exceptions import ConfigError

KEYS = Keys("app", 0)
SLOTS = 16384
subjects = st.builds(Subject, st.from_regex(r"[a-z_]{1,5}", fullmatch=True), st.text(max_size=5))


def names(keys: Keys, subject: Subject) -> list[bytes]:
    own = keys.subject(subject)
    return [own.stream, own.meta, b"producer".join(own.sequence), own.channel]


def slot(name: bytes) -> int:
    """As Redis Cluster finds it: CRC16/XMODEM of what stands in the first braces."""
    tag = name[name.index(b"{") + 1 : name.index(b"}")]
    return binascii.crc_hqx(tag, 0) % SLOTS


@given(subjects, subjects)
def test_two_subjects_share_no_name(one: Subject, other: Subject) -> None:
    mine, theirs = names(KEYS, one), names(KEYS, other)
    assert len({*mine}) == 4
    assert (mine == theirs) if one == other else not {*mine} & {*theirs}


@given(subjects)
def test_what_a_script_touches_is_on_one_node(subject: Subject) -> None:
    assert len({slot(name) for name in names(KEYS, subject)}) == 1


def test_partitions_are_spread_over_the_slots() -> None:
    slots = {slot(KEYS.subject(Subject("chat", str(n))).stream) for n in range(5000)}
    assert len(slots) == PARTITIONS
    for nodes in (2, 4):
        shares = Counter(one * nodes // SLOTS for one in slots)
        assert set(shares.values()) == {PARTITIONS // nodes}
    # No node of three has more than 3/8 of them, no node of six more than a fifth.
    assert max(Counter(one * 3 // SLOTS for one in slots).values()) <= PARTITIONS * 3 // 8
    assert max(Counter(one * 6 // SLOTS for one in slots).values()) <= PARTITIONS // 5 + 1


@pytest.mark.parametrize("other", [Keys("app2", 0), Keys("app:0", 0)])
def test_two_prefixes_share_nothing(other: Keys) -> None:
    subject = Subject("chat", "lobby")
    assert not {*names(KEYS, subject)} & {*names(other, subject)}
    assert other.everybody != KEYS.everybody
    assert other.announcement("chat") != KEYS.announcement("chat")


def test_two_databases_share_no_channel() -> None:
    # Keys are apart by themselves; pub/sub knows no databases.
    other, subject = Keys("app", 1), Subject("chat")
    assert other.subject(subject).channel != KEYS.subject(subject).channel
    assert other.everybody != KEYS.everybody
    assert other.inbox(b"12345678") != KEYS.inbox(b"12345678")


@pytest.mark.parametrize("prefix", ["", "a{b}", "a*", "a b", "ä", "x" * 101, "a\n"])
def test_prefix_is_checked(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Keys(prefix, 0)
