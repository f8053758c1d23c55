"""The header lines of an HTTP request as pywsgi wants them, without the parser for mail.

That parser takes a seventh of what a connect costs; what is odd or doubtful is still its business.
"""

from __future__ import annotations

import io
import re

__all__ = ["Head", "read_head"]

# Plain lines only, and no more than the parser for mail takes (99 and the empty one): nothing
# folded, no bare CR or LF, no control characters, no blank in a name.
_LINES = re.compile(rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n){1,99})\r\n")


class Head:
    """The headers of one request: what pywsgi and gunicorn use of an `HTTPMessage`."""

    __slots__ = ("_values", "headers")

    #: What pywsgi finds wrong with them.
    status = ""

    def __init__(self, lines: list[str]) -> None:
        #: The lines in their order, without line ends.
        self.headers = lines
        pairs = self.items()
        self._values = {name.lower(): value for name, value in reversed(pairs)}
        if len(self._values) < len(pairs):
            names = [name.lower() for name, _ in pairs]
            if names.count("content-length") > 1:  # RFC 9112, section 6.3: which would count?
                raise ValueError("more than one Content-Length")

    def items(self) -> list[tuple[str, str]]:
        """Names and values as they came."""
        parts = [line.partition(":") for line in self.headers]
        return [(name, value.lstrip(" \t")) for name, _, value in parts]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of a header by its name in any case, the first one of several."""
        return self._values.get(name.lower(), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        """The ``Content-Type``."""
        return self.get("content-type")

    def __delitem__(self, name: str) -> None:
        """Have `get` find it no more."""
        self._values.pop(name.lower(), None)


def read_head(rfile: io.BufferedReader) -> Head | None:
    """Take the header lines from `rfile`; `None`, and nothing taken, where they are not all plain.

    Blocks only where nothing is buffered. Raises `ValueError` for a second ``Content-Length``.
    """
    found = _LINES.match(rfile.peek())
    if found is None:
        return None
    rfile.read(found.end())
    return Head(found[1][:-2].decode("latin-1").split("\r\n"))
