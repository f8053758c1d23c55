"""The optional C extension. Everything else is in setup.cfg."""

from __future__ import annotations

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        # optional: without a compiler the package is installed all the same, in pure Python.
        Extension(
            "wsmiddleware._speedups",
            sorted(glob("wsmiddleware/_extension/*.c")),
            depends=["wsmiddleware/_extension/stream.h"],
            optional=True,
        )
    ]
)
