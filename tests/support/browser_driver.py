"""Run as a program: opens Chromium and does with its pages what comes on standard input.

Each line is JSON: ``[page, method, arguments, keywords]``. Page 0 is the browser, which knows only
``open``. The answer is one line too, ``{"value": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 10_000


class Driver:
    """The pages of one browser, and what went wrong in each."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.pages: list[Page] = []
        self.errors: list[list[str]] = []

    def answer(self, page: int, method: str, arguments: Any, keywords: Any) -> Any:
        """What one request gives."""
        if page == 0:
            return self.open(**keywords)
        target: Any = self.pages[page - 1]
        if method == "errors":
            target.evaluate("0")  # what the browser has said until now has arrived after this
            return self.errors[page - 1]
        if method == "close":
            # A window beside it has gone with it, or goes alone.
            return target.context.close() if target is target.context.pages[0] else target.close()
        value = functools.reduce(getattr, method.split("."), target)(*arguments, **keywords)
        return value if isinstance(value, str | int | float | list | dict) else None

    def open(self, beside: int = 0, **context: Any) -> int:
        """A page in a new context, or in that of the page `beside`; gives its number."""
        if beside:
            page = self.pages[beside - 1].context.new_page()
        else:
            page = self.browser.new_context(**context).new_page()
        page.set_default_timeout(TIMEOUT)
        errors: list[str] = []

        def note(message: ConsoleMessage) -> None:
            if message.type == "error":
                errors.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        self.pages.append(page)
        self.errors.append(errors)
        return len(self.pages)


def main(program: str) -> None:
    """Serves until it is told to quit, or standard input ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        driver = Driver(browser)
        for line in sys.stdin:
            if line == "quit\n":
                break
            try:
                result = {"value": driver.answer(*json.loads(line))}
            except Error as error:
                result = {"error": str(error)}
            print(json.dumps(result), flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
