"""``python -m wsmiddleware``, the same as the installed ``wsmiddleware``."""

from __future__ import annotations

from wsmiddleware.cli import main

__all__: list[str] = []

main()
