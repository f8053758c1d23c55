"""The door to the C extension: what turns it off, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from wsmiddleware import speedups


@pytest.mark.parametrize("word", ["off", "0", "No", " FALSE "])
def test_variable_turns_the_extension_off(word: str) -> None:
    code = "from wsmiddleware import speedups as s; print(s.IMPLEMENTATION, s.Stream, s.pack)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, speedups.VARIABLE: word},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "python None None\n"


# Turned off, or not built, there is nothing to ask.
if speedups.apply_mask is not None:

    @pytest.mark.parametrize("key", [b"", b"123", b"12345", "1234", None])
    def test_mask_is_refused_a_key_that_is_not_four_bytes(key: Any) -> None:
        assert speedups.apply_mask
        with pytest.raises(TypeError, match="a key of 4 bytes"):
            speedups.apply_mask(b"data", key)
