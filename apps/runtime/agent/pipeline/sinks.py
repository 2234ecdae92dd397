"""Where records go: `put` holds one back, `flush` hands over what is held, for good, or raises and holds it still."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from apps.runtime.agent.poster import Poster

EGRESS_SECONDS = 15.0
_LOOK_BACK = 8 * 1024 * 1024


class SinkFailed(Exception):
    """What is held could not be handed over; it may be tried again."""


class Sink(Protocol):
    """A place for records. `batch` is how many are best held before a flush."""

    batch: int

    def open(self) -> None:
        """Get ready. OSError when that can't be."""

    def put(self, record: bytes) -> None:
        """Hold one record."""

    def flush(self) -> None:
        """Hand over everything held, so that a power cut does not lose it. OSError or SinkFailed: what is left is still held."""

    def discard(self) -> None:
        """Let go of what is held: its sender was told that it failed."""

    def interrupt(self) -> None:
        """End a flush under way, from another thread."""

    def close(self) -> None:
        """Let go of everything."""


class Sinks:
    """The places of several lanes, handed over together; what goes out by a lane that has none ends here."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self.batch = min((sink.batch for sink in sinks.values()), default=2000)

    def open(self) -> None:
        """Get all ready. OSError when one can't be."""
        for sink in self._sinks.values():
            sink.open()

    def put(self, lane: str, record: bytes) -> None:
        """Hold one record of that lane."""
        sink = self._sinks.get(lane)
        if sink is not None:
            sink.put(record)

    def flush(self) -> None:
        """Hand over everything held. OSError or SinkFailed: what is left is still held, what went out is not."""
        for sink in self._sinks.values():
            sink.flush()

    def discard(self) -> None:
        """Let go of what is held."""
        for sink in self._sinks.values():
            sink.discard()

    def interrupt(self) -> None:
        """End flushes under way, from another thread."""
        for sink in self._sinks.values():
            sink.interrupt()

    def close(self) -> None:
        """Let go of everything."""
        for sink in self._sinks.values():
            sink.close()


class FileSink:
    """Appends lines to a file. A write that fails half way (a full disk) is taken back, so that no line is ever torn."""

    batch = 2000

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[bytes] = []
        self._file: int | None = None

    def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o640)
        self._mend()

    def _mend(self) -> None:
        """Take away a last line that a kill or a power cut left torn: its record was not done, and comes again."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        start = max(0, size - _LOOK_BACK)
        tail = os.pread(self._file, size - start, start) if size else b"\n"
        if not tail.endswith(b"\n") and (start == 0 or b"\n" in tail):
            os.ftruncate(self._file, start + tail.rfind(b"\n") + 1)

    def put(self, record: bytes) -> None:
        self._held.append(record + b"\n")

    def flush(self) -> None:
        if not self._held:
            return
        if self._file is None:
            raise SinkFailed("the egress file is closed")
        before = os.fstat(self._file).st_size
        view = memoryview(b"".join(self._held))
        try:
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, before)
            raise
        self._held.clear()

    def discard(self) -> None:
        self._held.clear()

    def interrupt(self) -> None:
        """A write to a file ends by itself."""

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class HttpSink:
    """POSTs each record to one URL, in order; one that was answered 2xx is done."""

    batch = 64

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: list[bytes] = []
        self._poster = Poster()

    def open(self) -> None:
        """Connections are made when they are needed."""

    def put(self, record: bytes) -> None:
        self._held.append(record)

    def flush(self) -> None:
        while self._held:
            try:
                status = self._poster.post(self._url, self._held[0], EGRESS_SECONDS)
            except (OSError, http.client.HTTPException) as error:
                raise SinkFailed(f"egress: no answer ({type(error).__name__})") from error
            if not 200 <= status < 300:
                raise SinkFailed(f"egress answered {status}")
            del self._held[0]

    def discard(self) -> None:
        self._held.clear()

    def interrupt(self) -> None:
        self._poster.stop()

    def close(self) -> None:
        self._poster.close()
