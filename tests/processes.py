"""Looking at other processes, which can end meanwhile."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """False for a process that has ended, also while its parent has not asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before the file was opened, and after
        return False
