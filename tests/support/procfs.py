"""What Linux knows of a process: memory, descriptors, processor time."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["Memory", "cpu_seconds", "descriptors", "memory"]


class Memory:
    """The memory of a process, in bytes: how far it has grown, and how far it ever had."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = 0
        self.mark()

    def mark(self) -> None:
        """Count from here."""
        # proc(5): 5 resets the peak to what it is now.
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        self._start = memory(self._pid)

    @property
    def growth(self) -> int:
        """Since the mark, now."""
        return memory(self._pid) - self._start

    @property
    def peak(self) -> int:
        """Since the mark, at the highest."""
        return memory(self._pid, "VmHWM") - self._start


def memory(pid: int, field: str = "VmRSS") -> int:
    """Resident memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * 1024


def descriptors(pid: int) -> int:
    """Open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """Processor time that it has used, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
