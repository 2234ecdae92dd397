"""What a measured job does: one record in a file, so that every contender pays the same for it."""

from __future__ import annotations

import os
import struct
import time
import uuid
from pathlib import Path

FILE_ENV = "BYTEOR_BENCH_EFFECTS"
RECORD = struct.Struct("=16sq")
_open: dict[int, int] = {}


def note_effect(key: uuid.UUID) -> None:
    """Append `key` and the moment (a clock that all processes share) to the file that the environment names."""
    file = _open.get(os.getpid())
    if file is None:
        file = _open[os.getpid()] = os.open(os.environ[FILE_ENV], os.O_WRONLY | os.O_APPEND)
    os.write(file, RECORD.pack(key.bytes, time.monotonic_ns()))


class Effects:
    """The file, read by the one who measures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def count(self) -> int:
        """How many effects there were."""
        return self.path.stat().st_size // RECORD.size

    def since(self, first: int) -> dict[uuid.UUID, int]:
        """The effects after the first `first`: {key: nanoseconds}."""
        data = self.path.read_bytes()[first * RECORD.size :]
        return {uuid.UUID(bytes=key): at for key, at in RECORD.iter_unpack(data)}

    def wait(self, count: int, seconds: float = 120.0) -> None:
        """Until there were `count`; TimeoutError otherwise."""
        deadline = time.monotonic() + seconds
        while self.count() < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.count()} of {count} effects after {seconds} s")
            time.sleep(0.002)
