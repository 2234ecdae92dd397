"""The agent's log: lines on standard output, and the tail that heartbeats carry."""

from __future__ import annotations

import contextlib
import time
from collections import deque

from apps.runtime.characters import code_point, replace_hidden

TAIL_BYTES = 16 * 1024
_TAIL_LINES = 200
MAX_LINE = 4000


def one_line(text: str) -> str:
    """`text` as one line of visible characters, at most 4,000: nothing that was sent forges a line or hides in one."""
    shown = replace_hidden(text[:MAX_LINE], lambda character: f"[{code_point(character)}]")
    return shown.replace("\n", f"[{code_point(chr(10))}]")


class Journal:
    """Lines with a time before them. Never a record, never a secret: the tail leaves the host."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def log(self, text: str) -> None:
        """One line, on standard output and in the tail."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} {one_line(text)}"
        self._lines.append(line)
        with contextlib.suppress(OSError):  # a log on a full disk stops nothing
            print(line, flush=True)

    def tail(self) -> str:
        """The last lines, at most 16 KiB of UTF-8."""
        return "\n".join(self._lines).encode()[-TAIL_BYTES:].decode("utf-8", "ignore")
