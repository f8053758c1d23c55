"""The optional C extension. Everything else is in setup.cfg."""

from __future__ import annotations

from setuptools import Extension, setup

setup(
    ext_modules=[
        # optional: without a compiler the package is installed all the same, in pure Python.
        Extension("wsmiddleware._speedups", ["wsmiddleware/_speedups.c"], optional=True)
    ]
)
