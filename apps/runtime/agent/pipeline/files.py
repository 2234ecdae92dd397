"""A file as ingress: its lines are records, its position is kept across restarts, rotation is followed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from apps.runtime.agent.state import State

MAX_RECORD_BYTES = 4 * 1024 * 1024


class FileSource:
    """`take` what is new, process it, then `commit`: what was not committed is taken again after a restart."""

    def __init__(self, path: Path, state: State, *, follow: bool) -> None:
        self.path = path
        self.follow = follow
        self._state = state
        self._name = f"position-{path.name[:80]}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.json"
        self._file: BinaryIO | None = None
        self._position = 0
        self._at_end = False

    def finished(self) -> bool:
        """Is everything taken, and nothing more expected?"""
        return not self.follow and self._at_end

    def take(self, most: int) -> list[tuple[bytes, int]]:
        """Up to `most` records with the position after each; none when there is nothing new.

        A line without its end is not taken while it may still grow. Raises ValueError for a record beyond 4 MiB.
        """
        if self._file is None and not self._open():
            self._at_end = True
            return []
        taken = self._lines(most, whole=not self.follow)
        self._at_end = not taken
        if not taken and self._moved():
            # the file in hand was renamed or shortened: its last line will not grow any more
            taken = self._lines(most, whole=True)
            if not taken:
                self._restart()
        return taken

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            return False
        saved = self._saved()
        found = os.fstat(self._file.fileno())
        same = saved.get("path") == str(self.path) and saved.get("inode", found.st_ino) == found.st_ino
        position = saved.get("position", 0) if same else 0
        self._position = position if isinstance(position, int) and 0 <= position <= found.st_size else 0
        return True

    def _saved(self) -> dict[str, object]:
        saved = self._state.read(self._name)
        if saved is None:  # as versions before 0.2 named it
            saved = self._state.read(f"position-{self.path.name}.json")
        return saved if isinstance(saved, dict) else {}

    def _lines(self, most: int, *, whole: bool) -> list[tuple[bytes, int]]:
        assert self._file is not None
        taken: list[tuple[bytes, int]] = []
        position = self._position
        self._file.seek(position)
        while len(taken) < most:
            line = self._file.readline(MAX_RECORD_BYTES + 1)
            if not line:
                break
            if not line.endswith(b"\n"):
                if len(line) > MAX_RECORD_BYTES:
                    raise ValueError(f"a record has more than {MAX_RECORD_BYTES} bytes")
                if not whole:
                    break
            position += len(line)
            taken.append((line.rstrip(b"\r\n"), position))
        return taken

    def _moved(self) -> bool:
        assert self._file is not None
        held = os.fstat(self._file.fileno())
        if held.st_size < self._position:
            return True
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False  # renamed, the next one is not there yet
        return (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino)

    def _restart(self) -> None:
        self.close()
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            return
        self.commit(0)

    def commit(self, position: int) -> None:
        """Everything up to `position` is done with. OSError when that can't be kept."""
        assert self._file is not None
        inode = os.fstat(self._file.fileno()).st_ino
        self._state.write(self._name, {"path": str(self.path), "inode": inode, "position": position})
        self._position = position

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
