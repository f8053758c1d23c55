"""How Sphinx builds these pages: `tox -e docs`."""

from __future__ import annotations

from pygments.lexers.javascript import JavascriptLexer
from sphinx.application import Sphinx

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


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("lucee", JavascriptLexer)  # near enough: there is none of its own
