"""What the agent says: a line for whoever reads its output, and the tail that reports carry."""

from __future__ import annotations

import contextlib
import time
from collections import deque

TAIL_BYTES = 16 * 1024
_TAIL_LINES = 200


class Journal:
    """Lines with a time before them. Never a record, never a secret: the tail leaves the host."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def say(self, text: str) -> None:
        """One line, on standard output and in the tail."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} {text}"
        self._lines.append(line)
        with contextlib.suppress(OSError):  # a log on a full disk stops nothing
            print(line, flush=True)

    def tail(self) -> str:
        """The last lines, at most 16 KiB of UTF-8."""
        return "\n".join(self._lines).encode()[-TAIL_BYTES:].decode("utf-8", "ignore")
