"""Where records go: `put` holds one back, `flush` hands over what is held, for good, or raises and holds it still."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from apps.runtime.agent.pipeline.folder import DataFolder, FileRefused, identity_of
from apps.runtime.agent.pipeline.known import Identity
from apps.runtime.agent.pipeline.refusals import RecordRefused
from apps.runtime.agent.poster import Poster
from apps.runtime.agent.state import State
from apps.runtime.ops.records import Refused, parse_record

EGRESS_SECONDS = 15.0
_LOOK_BACK = 1024 * 1024
_EDGE_BYTES = 1024


class SinkFailed(Exception):
    """What is held could not be handed over; it may be tried again."""


class Sink(Protocol):
    """A place for records. `batch` is how many are best held before a flush."""

    batch: int

    def open(self) -> None:
        """Get ready. OSError or FileRefused when that can't be."""

    def put(self, record: bytes) -> None:
        """Hold one record. Raises RecordRefused for one that this place can't take."""

    def flush(self, until: float | None = None) -> None:
        """Hand over everything held, so that a power cut does not lose it, waiting for others no longer than `until` (a moment
        of the monotonic clock).

        OSError, FileRefused or SinkFailed: what is left is still held.
        """

    def discard(self) -> None:
        """Let go of what is held: its sender got the answer that it failed."""

    def interrupt(self) -> None:
        """End a flush under way, from another thread."""

    def close(self) -> None:
        """Let go of everything."""


class Sinks:
    """The places of several lanes, handed over together; what goes out by a lane that has none ends here."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self.held_bytes = 0
        self.batch = min((sink.batch for sink in sinks.values()), default=2000)

    def open(self) -> None:
        """Get all ready. OSError or FileRefused when one can't be."""
        for sink in self._sinks.values():
            sink.open()

    def put(self, lane: str, record: bytes) -> None:
        """Hold one record of that lane. Raises RecordRefused for one that its place can't take."""
        sink = self._sinks.get(lane)
        if sink is not None:
            sink.put(record)
            self.held_bytes += len(record)

    def flush(self, until: float | None = None) -> None:
        """Hand over everything held. OSError, FileRefused or SinkFailed: what is left is still held, what went out is not."""
        for sink in self._sinks.values():
            sink.flush(until)
        self.held_bytes = 0

    def discard(self) -> None:
        """Let go of what is held."""
        for sink in self._sinks.values():
            sink.discard()
        self.held_bytes = 0

    def interrupt(self) -> None:
        """End flushes under way, from another thread."""
        for sink in self._sinks.values():
            sink.interrupt()

    def close(self) -> None:
        """Let go of everything."""
        for sink in self._sinks.values():
            sink.close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """How long an egress file was when it was opened, or closed, and a print of the bytes before its end."""

    inode: int
    length: int
    edge: str
    in_use: bool

    @classmethod
    def from_dict(cls, value: Any) -> _Kept:
        """Raises ValueError, TypeError or KeyError for what is damaged."""
        kept = cls(value["inode"], value["length"], value["edge"], value["in_use"])
        if not (
            type(kept.inode) is int and type(kept.length) is int and kept.length >= 0 and type(kept.in_use) is bool
        ):
            raise ValueError("no egress file is described like this")
        return kept


class FileSink:
    """Appends lines to a file below the data folder. A write that fails half way (a full disk) is undone, so that no line is
    ever torn; a file that was renamed or removed is left, and a new one made under the path.

    `path` is relative to the folder and followed anew when it leads elsewhere. `read` returns the files that the same pipeline
    reads.
    """

    batch = 2000

    def __init__(
        self, folder: DataFolder, path: str, state: State, read: Callable[[], Collection[Identity]] = tuple
    ) -> None:
        self._folder, self._path, self._state, self._read = folder, os.path.normpath(path), state, read
        whole = str(folder.root / self._path)
        self._name = f"egress-{os.path.basename(whole)[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}.json"
        self._held: list[bytes] = []
        self._file: int | None = None
        self._identity: Identity | None = None
        self._torn = (
            False  # a write failed half way and could not be undone: opening the file anew cuts the torn line off
        )

    def identity(self) -> Identity | None:
        """Device and inode of the file in hand."""
        return self._identity

    def open(self) -> None:
        handle = self._folder.open_to_append(self._path)
        try:
            if identity_of(os.fstat(handle)) in self._read():
                raise FileRefused("path_not_allowed", "the pipeline would read the file that it writes")
            self._end_last_line(handle)
            self._note(handle, in_use=True)
        except BaseException:
            os.close(handle)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._identity, self._torn = handle, identity_of(os.fstat(handle)), False

    def _end_last_line(self, handle: int) -> None:
        """Have a line begin at the end of the file.

        A last line without its end that a kill or a power cut left is cut off: its record was not done, and comes again. That
        it is our own is known from what was kept when the file was opened last: its length then, and that it was not closed
        since. Any other was written by another process, and gets a line feed.
        """
        found = os.fstat(handle)
        size = found.st_size
        if not size or os.pread(handle, 1, size - 1) == b"\n":
            return
        own_from = self._own_from(handle, found)
        if own_from is not None:
            os.ftruncate(handle, _last_line_end(handle, own_from, size))
        else:
            _write_all(handle, b"\n")
        os.fdatasync(handle)

    def _own_from(self, handle: int, found: os.stat_result) -> int | None:
        """Where in this file what this agent wrote begins, None when nothing at its end is known to be."""
        kept = self._state.recall(self._name, _Kept.from_dict)
        if kept is None or not kept.in_use or kept.inode != found.st_ino or kept.length >= found.st_size:
            return None
        return kept.length if _edge(handle, kept.length) == kept.edge else None

    def _note(self, handle: int, *, in_use: bool) -> None:
        """Keep how long the file is now: what comes beyond, while it is in use, is ours."""
        found = os.fstat(handle)
        kept = _Kept(found.st_ino, found.st_size, _edge(handle, found.st_size), in_use)
        self._state.write(self._name, asdict(kept))

    def put(self, record: bytes) -> None:
        self._held.append(one_line(record) if b"\n" in record else record)

    def flush(self, until: float | None = None) -> None:
        if not self._held:
            return
        if self._file is None:
            raise SinkFailed("the egress file is closed")
        if self._torn or self._identity != self._folder.identity(self._path):
            self.open()
        data = b"\n".join([*self._held, b""])
        self._append(data)
        while not os.fstat(self._file).st_nlink:  # removed meanwhile: what has no name is not out
            self.open()
            self._append(data)
        self._held.clear()

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        before = os.fstat(self._file).st_size
        try:
            _write_all(self._file, data)
            os.fdatasync(self._file)
        except OSError:
            self._torn = True  # unless it is undone
            os.ftruncate(self._file, before)
            self._torn = False
            raise

    def discard(self) -> None:
        self._held.clear()

    def interrupt(self) -> None:
        """A write to a file ends by itself."""

    def close(self) -> None:
        if self._file is not None:
            handle, self._file, self._identity = self._file, None, None
            with contextlib.suppress(OSError):  # then a torn last line that another leaves later counts as ours
                if not self._torn:
                    self._note(handle, in_use=False)
            os.close(handle)


def one_line(record: bytes) -> bytes:
    """The record as one line without its end: a line end behind it is left out, one within a JSON object, which can only
    stand between its tokens, becomes a space. Raises RecordRefused `record_has_line_feed` for any other record with one within."""
    record = record[: -2 if record.endswith(b"\r\n") else -1] if record.endswith(b"\n") else record
    if b"\n" not in record:
        return record
    try:
        parse_record(record)
    except Refused:
        raise RecordRefused("record_has_line_feed") from None
    return record.replace(b"\r\n", b" ").replace(b"\n", b" ")


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _edge(handle: int, length: int) -> str:
    size = min(length, _EDGE_BYTES)
    return hashlib.sha256(os.pread(handle, size, length - size)).hexdigest()


def _last_line_end(handle: int, start: int, end: int) -> int:
    """The place after the last line feed between `start` and `end`, `start` when there is none."""
    at = end
    while at > start:
        step = min(_LOOK_BACK, at - start)
        found = os.pread(handle, step, at - step).rfind(b"\n")
        if found >= 0:
            return at - step + found + 1
        at -= step
    return start


class HttpSink:
    """POSTs each record to one URL, in order. One that was answered 2xx is done; one that was answered 422 is refused by its
    receiver, passed to `refuse`, and done with too."""

    batch = 64

    def __init__(self, url: str, refuse: Callable[[bytes], None]) -> None:
        self._url, self._refuse = url, refuse
        self._held: list[bytes] = []
        self._poster = Poster()

    def open(self) -> None:
        """Connections are made when they are needed."""

    def put(self, record: bytes) -> None:
        self._held.append(record)

    def flush(self, until: float | None = None) -> None:
        while self._held:
            seconds = EGRESS_SECONDS if until is None else min(EGRESS_SECONDS, until - time.monotonic())
            try:
                status = self._poster.post(self._url, self._held[0], seconds)
            except (OSError, http.client.HTTPException) as error:
                raise SinkFailed(f"egress: no answer ({type(error).__name__})") from error
            if status == 422:
                self._refuse(self._held[0])
            elif not 200 <= status < 300:
                raise SinkFailed(f"egress answered {status}{_outlook(status)}")
            del self._held[0]

    def discard(self) -> None:
        self._held.clear()

    def interrupt(self) -> None:
        self._poster.stop()

    def close(self) -> None:
        self._poster.close()


def _outlook(status: int) -> str:
    """What a status means for the next try, in words to append."""
    if 300 <= status < 400:
        return ": redirects are not followed, records wait until the URL itself takes them"
    if 400 <= status < 500 and status not in (408, 425, 429):
        return ": its receiver refuses all that is sent like this, records wait until it takes them"
    return ""
