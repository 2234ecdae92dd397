"""Reading a file of lines while another process writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that are completely written; none where there is no file.

    A reader can meet the writer in the middle of its last line: what follows the last line feed is left out.
    """
    return log_text(path).split("\n")[:-1]


def log_text(path: Path) -> str:
    """All that is written so far, also in the middle of a character; empty where there is no file."""
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def json_lines(path: Path) -> list[Any]:
    """What the completely written lines of a file hold, each read as JSON."""
    return [json.loads(line) for line in whole_lines(path)]
