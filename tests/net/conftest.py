"""The stream in C and its twin in Python by one parameter, `twin`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from support.twins import IMPLEMENTATIONS, Link, twin_of

# Where the extension is not in use there is nothing of it to test.
collect_ignore = [] if "c" in IMPLEMENTATIONS else ["test_stream_in_c.py"]


@pytest.fixture(params=IMPLEMENTATIONS)
def twin(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The classes over the one implementation, then over the other."""
    return twin_of(request.param)


@pytest.fixture
def make_link(twin: SimpleNamespace) -> Iterator[Any]:
    """Makes a `Link` that is closed at the end of the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> Link:
            link = Link(twin, **options)
            stack.callback(link.close)
            return link

        yield make


@pytest.fixture
def link(make_link: Any) -> Link:
    """A connection without compression."""
    return make_link()  # type: ignore[no-any-return]


@pytest.fixture
def deflate_link(make_link: Any) -> Link:
    """A connection with it."""
    return make_link(window_bits=15)  # type: ignore[no-any-return]
