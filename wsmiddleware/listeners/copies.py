"""A listener's file that is there twice: loaded as a channel, and imported by its name.

The second copy has a class of its own, whose attributes are not the channel's, and nobody is
connected to it. Whichever of the two comes last, the log says so.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from wsmiddleware.log import log as _log

__all__ = ["PACKAGE", "package_name", "warn_of_class", "warn_of_modules"]

#: What holds the modules of all listener files.
PACKAGE = "wsmiddleware_listeners"


def package_name(directory: Path) -> str:
    """The name of the package that stands for a directory of listeners."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:12]
    return f"{PACKAGE}.d{digest}"


def warn_of_class(cls: type) -> None:
    """Warn where a class is defined anew by a file that is loaded as a channel."""
    name = cls.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file or name.startswith(f"{PACKAGE}."):
        return
    path = Path(file)
    if f"{package_name(path.parent)}.{path.stem}" in sys.modules:
        _warn(path, name)


def warn_of_modules(path: Path) -> None:
    """Warn where a file, which is loaded as a channel, has been imported before."""
    for name, module in list(sys.modules.items()):
        # Not getattr(): a module may be lazy, and be loaded by being asked.
        file = getattr(module, "__dict__", {}).get("__file__")
        if not isinstance(file, str) or name.startswith(f"{PACKAGE}."):
            continue
        if os.path.basename(file) == path.name and os.path.realpath(file) == str(path.resolve()):
            _warn(path, name)


def _warn(path: Path, name: str) -> None:
    _log.warning(
        "%s: is there twice, as the channel %s and imported as %s, whose class is another one: "
        "nobody is connected to it. Instead of the import write `from wsmiddleware import "
        'channel`, and channel("%s").listener where you need the class, '
        'channel("%s").wsclients for who is connected',
        path,
        path.stem,
        name,
        path.stem,
        path.stem,
    )
