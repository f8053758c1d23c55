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
            # Whatever Python was built with: below it GCC makes no vectors of the unmasking.
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
