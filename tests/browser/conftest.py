"""One Chromium for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.chromium import Browser, Page, chromium


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with cookies of its own."""
    with browser.page() as page:
        yield page
