"""What was refused, kept on this host: the last of it, for the owner of the host."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FILE = "refused.jsonl"
MOST_FILE_BYTES = 4 * 1024 * 1024
MOST_RECORD_BYTES = 64 * 1024


class RecordRefused(Exception):
    """A place for records does not take this one, whatever is done: a stable code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class RefusedRecords:
    """The last refused records, in `refused.jsonl` in the state folder. Safe from several threads.

    The file has a line for each, `{at_unix_ms, stage, code, bytes, truncated, record | record_base64}`, at most 64 KiB of the
    record in it. Past 4 MiB it becomes `refused.jsonl.1`, and the former one of that name is deleted. Both are 0600, and nothing
    that the agent does sends them anywhere.
    """

    def __init__(self, state_root: Path) -> None:
        self._path = state_root / FILE
        self._mutex = threading.Lock()
        self._held: list[bytes] = []
        self._held_bytes = 0

    def keep(self, stage: str, code: str, record: bytes, size: int | None = None) -> None:
        """Hold one for the next `flush`; `record` is at least its first bytes, `size` how many it has in all."""
        with self._mutex:
            self._hold(stage, code, record, size)

    def _hold(self, stage: str, code: str, record: bytes, size: int | None) -> None:
        kept = record[:MOST_RECORD_BYTES]
        length = len(record) if size is None else size
        line: dict[str, object] = {
            "at_unix_ms": int(time.time() * 1000),
            "stage": stage,
            "code": code,
            "bytes": length,
            "truncated": len(kept) < length,
        }
        try:
            line["record"] = kept.decode()
        except UnicodeDecodeError:
            line["record_base64"] = base64.b64encode(kept).decode()
        text = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        self._held.append(text)
        self._held_bytes += len(text)
        if self._held_bytes > MOST_FILE_BYTES:
            self._write()

    def flush(self) -> None:
        """Write out what is held. A disk that is full costs the copies and holds nothing up."""
        with self._mutex:
            self._write()

    def _write(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if not held:
            return
        with contextlib.suppress(OSError):
            for text in _joined(held):
                if self._path.exists() and self._path.stat().st_size + len(text) > MOST_FILE_BYTES:
                    self._path.replace(self._path.with_name(f"{FILE}.1"))
                _append(self._path, text)


def _append(path: Path, text: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        before = os.fstat(handle).st_size
        if os.write(handle, text) < len(text):  # the disk is full
            os.ftruncate(handle, before)
    finally:
        os.close(handle)


def _joined(lines: list[bytes], most: int = 256 * 1024) -> Iterator[bytes]:
    """The lines, some at a time."""
    some: list[bytes] = []
    size = 0
    for line in lines:
        some.append(line)
        size += len(line)
        if size >= most:
            yield b"".join(some)
            some, size = [], 0
    if some:
        yield b"".join(some)
