"""Debian's Chromium for tests, driven by playwright in a process of its own (`browser_driver`).

The process of the tests is monkey-patched, and playwright's event loop is not made for that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import PATIENCE, wait_until

__all__ = ["Browser", "Page", "chromium"]


@dataclass(frozen=True)
class Page:
    """A page in a browser context, so with cookies, of its own."""

    browser: Browser
    number: int

    def do(self, method: str, *arguments: object, **keywords: object) -> Any:
        """Calls a method of playwright's `Page`, as ``"keyboard.press"``; what it gives as JSON."""
        return self.browser.ask(self.number, method, arguments, keywords)

    def goto(self, url: str) -> None:
        """Loads a URL."""
        self.do("goto", url)

    def fill(self, selector: str, value: str) -> None:
        """Types into a field."""
        self.do("fill", selector, value)

    def click(self, selector: str) -> None:
        """Clicks on what is there or comes soon."""
        self.do("click", selector)

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.do("inner_text", selector))

    def evaluate(self, script: str, argument: object = None) -> Any:
        """What an expression or a function (of `argument`) gives, a promise's value too."""
        return self.do("evaluate", script, argument)

    def until(self, expression: str) -> None:
        """Returns once a JavaScript expression is true. Playwright's own would need `eval`."""

        def is_true() -> bool:
            try:
                return bool(self.evaluate(f"Boolean({expression})"))
            except AssertionError as exc:
                if "context was destroyed" in str(exc):
                    return False  # one page goes, the next comes
                raise

        def described() -> str:
            return f"never true: {expression}\n{self.text('body')}\n{self.errors()}"

        wait_until(is_true, described)

    def until_text(self, selector: str, text: str) -> None:
        """Returns once an element shows `text` somewhere."""
        shown = f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')"
        self.until(f"{shown}.includes({json.dumps(text)})")

    def errors(self) -> list[str]:
        """What has gone to the console as an error, and exceptions that nobody caught."""
        errors: list[str] = self.do("errors")
        return errors


class Browser:
    """One Chromium; pages are opened by number."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, page: int, method: str, arguments: object = (), keywords: object = None) -> Any:
        """One request to the driver and its answer; `AssertionError` with playwright's message."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([page, method, arguments, keywords or {}]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the driver of Chromium ended with {self._process.wait(PATIENCE)}"
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{method}{arguments}: {answer['error']}")
        return answer["value"]

    @contextlib.contextmanager
    def page(self, beside: Page | None = None, **context: object) -> Iterator[Page]:
        """A page of its own; `context` are the options of playwright's `new_context`.

        With `beside` it is a second window of that page's browser, with the same cookies.
        """
        if beside:
            context["beside"] = beside.number
        page = Page(self, int(self.ask(0, "open", keywords=context)))
        try:
            yield page
        finally:
            page.do("close")


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Chromium, for as long as it is needed; `folder` is its home. Skips where it is missing."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright: pip install playwright")
    driver = Path(__file__).with_name("browser_driver.py")
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(driver), program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "HOME": str(folder)},
            text=True,
        )
    assert process.stdin and process.stdout
    try:
        yield Browser(process)
    finally:
        # Not the end of its input: a process forked meanwhile may hold the pipe open.
        process.stdin.write("quit\n")
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the tests are over: it need not wait
            process.wait(PATIENCE)
        process.kill()
        process.wait()
        process.stdout.close()
