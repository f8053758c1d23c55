"""How Sphinx builds these pages: `tox -e docs`."""

from __future__ import annotations

from pygments.lexers.javascript import JavascriptLexer
from sphinx.application import Sphinx

from wsmiddleware.config import markdown_table

project = "wsmiddleware"
author = "wsmiddleware contributors"
copyright = f"the {author}"
extensions = ["myst_parser"]
html_theme = "furo"
smartquotes = False  # values are to be typed
html_title = "wsmiddleware"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3


def fill_in(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts the one table of settings where a page asks for it."""
    source[0] = source[0].replace("{settings}", markdown_table())


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("lucee", JavascriptLexer)  # near enough: there is none of its own
    app.connect("source-read", fill_in)
