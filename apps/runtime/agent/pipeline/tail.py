"""One open file of an ingress: how far it was read, and its lines that wait to be processed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apps.runtime.agent.pipeline.known import WINDOW_BYTES, File, Identity, Known, Print, Stat

MAX_RECORD_BYTES = 4 * 1024 * 1024
SAMPLE_BYTES = 4096
_CHUNK_BYTES = 256 * 1024
_TICK_SECONDS = 2.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Replaced(Exception):
    """What was read before is not in the file any more: it was shortened, or overwritten."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A line that is not simply its bytes and a line feed.

    With a `code` it is no record and is refused; `record` is then at most its first 4 KiB. `length` counts its bytes in the
    file, `edge` are the last of them.
    """

    record: bytes
    length: int
    edge: bytes
    code: str = ""


Line = bytes | Piece


class Tail:
    """A file from a position on. `fill` reads lines, `done_with` marks some as processed: then the position moves.

    `over` is set when nothing more is to be read from it.
    """

    def __init__(self, file: File, known: Known) -> None:
        self.file, self.known = file, known
        self.lines: list[Line] = []
        self.quiet_since = time.monotonic()
        self.over = False
        self._read_to = known.position
        self._head = file.read(WINDOW_BYTES, 0) if known.head.size or known.position else b""
        self._edge = file.read(min(WINDOW_BYTES, known.position), max(0, known.position - WINDOW_BYTES))
        self._edge_done = self._edge
        self._rest = b""  # the beginning of a line whose end is not there yet
        self._skipped = 0  # bytes of a line that is too long already
        self._seen: Stat | None = None
        self._seen_since = 0.0

    @classmethod
    def opened(cls, file: File, path: str) -> Tail:
        """A file that was never read."""
        return cls(file, Known.unread(path, file))

    @property
    def identity(self) -> Identity:
        """Device and inode."""
        return self.known.identity

    def peek(self) -> bool:
        """Is something in it beyond what was read? Raises Replaced when what was read was overwritten."""
        if self.over:
            return False
        found = self.file.stat()
        if found.size < max(self._read_to, len(self._head)):
            raise Replaced
        if found != self._seen:
            self._seen, self._seen_since = found, time.monotonic()
        # what is written within one tick of the file system's clock has the same time as what was there before
        if found.size == self._read_to and time.monotonic() - self._seen_since < _TICK_SECONDS:
            self._check_intact()
        return found.size > self._read_to

    def touched(self) -> bool:
        """Was anything read from it?"""
        return self._read_to > 0

    def glance(self) -> bool:
        """See how it begins, before its turn to be read comes: then it is seen later if it was shortened. True when that is new."""
        if self._read_to or len(self._head) == WINDOW_BYTES:
            return False
        head = _distinctive(self.file.read(WINDOW_BYTES, 0))
        if len(head) <= len(self._head) or not head.startswith(self._head):
            return False
        self._head = head
        return True

    def modified(self) -> int:
        """When it was written to last, in ns."""
        return self.file.stat().modified

    def begun(self) -> bool:
        """Is, or was, anything in it?"""
        return self._read_to > 0 or self.file.stat().size > 0

    def unended(self) -> bool:
        """Was the beginning of a line read whose end is not there?"""
        return bool(self._rest or self._skipped)

    # --- reading ---

    def fill(self, most_lines: int, most_bytes: int) -> bool:
        """Read until so many whole lines wait, or about so many bytes were read. True when nothing more is there.

        Raises Replaced when what was read before was overwritten; lines read before that still wait. OSError when it can't be read.
        """
        held = 0
        while not self.over and len(self.lines) < most_lines and held < most_bytes:
            chunk = self.file.read(_CHUNK_BYTES, self._read_to)
            if not chunk:
                self.peek()  # or it was shortened
                return True
            # after reading: what was read is then from the file as it was
            self._check_intact()
            self.quiet_since = time.monotonic()
            self._split(chunk)
            held += len(chunk)
        return self.over

    def _check_intact(self) -> None:
        at = self._read_to - len(self._edge)
        if self.file.read(len(self._head), 0) != self._head or self.file.read(len(self._edge), at) != self._edge:
            raise Replaced

    def _split(self, chunk: bytes) -> None:
        """Take the whole lines out of what is held back and `chunk`, and hold back what follows them."""
        if len(self._head) < WINDOW_BYTES and self._read_to <= len(self._head):
            self._head = (self._head[: self._read_to] + chunk)[:WINDOW_BYTES]
        self._read_to += len(chunk)
        if self._skipped:
            end = chunk.find(b"\n")
            self._skipped += len(chunk) if end < 0 else end + 1
            if end < 0:
                self._edge = (self._edge + chunk)[-WINDOW_BYTES:]
                return
            edge = (self._edge + chunk[: end + 1])[-WINDOW_BYTES:]
            self.lines.append(Piece(self._rest, self._skipped, edge, "record_too_large"))
            self._skipped, self._rest, chunk = 0, b"", chunk[end + 1 :]
            self._edge = edge
        data = self._rest + chunk
        self._edge = (self._edge + chunk)[-WINDOW_BYTES:]
        lines: list[bytes] = data.split(b"\n")
        self._rest = lines.pop()
        if len(data) > MAX_RECORD_BYTES:
            self.lines += [_checked(line) for line in lines]
            if len(self._rest) > MAX_RECORD_BYTES + 1:  # a carriage return may be its last
                self._skipped, self._rest = len(self._rest), self._rest[:SAMPLE_BYTES]
        else:
            self.lines += lines

    def end(self, *, whole: bool) -> None:
        """No more is expected: what follows the last line feed is a line, which is a record only if it counts as `whole`.

        Call it only when that is something: when `unended`.
        """
        if self._skipped:
            piece = Piece(self._rest, self._skipped, self._edge, "record_too_large")
        else:
            rest = self._rest
            record = rest if whole else rest[:SAMPLE_BYTES]
            piece = Piece(record, len(rest), rest[-WINDOW_BYTES:], "" if whole else "record_unfinished")
        self._skipped, self._rest = 0, b""
        self.lines.append(piece)

    # --- what was processed ---

    def records(self, most: int) -> list[Line]:
        """The first lines that wait: records, without line end and byte-order mark, and a Piece for each that is refused."""
        taken: list[Line] = [
            line if type(line) is bytes and not line.endswith(b"\r") else _record(line) for line in self.lines[:most]
        ]
        if self.known.position == 0 and taken:
            first = taken[0]
            if isinstance(first, Piece):
                taken[0] = replace(first, record=first.record.removeprefix(_BYTE_ORDER_MARK))
            else:
                taken[0] = first.removeprefix(_BYTE_ORDER_MARK)
        return taken

    def after(self, count: int) -> Known:
        """What is known once the first `count` lines that wait are done with."""
        done = self.lines[:count]
        edge = _edge_after(self._edge_done, done)
        position = self.known.position + sum(len(line) + 1 if type(line) is bytes else _length(line) for line in done)
        return replace(
            self.known,
            position=position,
            head=Print.of(_distinctive(self._head, position)),
            edge=Print.of(edge[max(0, len(edge) - position) :]),
        )

    def done_with(self, count: int, known: Known) -> None:
        """The first `count` lines are done with; `known` is what `after` returned."""
        self._edge_done = _edge_after(self._edge_done, self.lines[:count])
        del self.lines[:count]
        self.known = known

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _distinctive(head: bytes, done: int = 0) -> bytes:
    """The part of a file's first bytes that identifies it: whole lines, and what is done with. Many files begin with the
    same half of a line."""
    return head if len(head) == WINDOW_BYTES else head[: max(done, head.rfind(b"\n") + 1)]


def _record(line: Line) -> Line:
    if isinstance(line, Piece):
        return line if line.code else line.record
    return line[:-1] if line.endswith(b"\r") else line


def _checked(line: bytes) -> Line:
    length = len(line) - line.endswith(b"\r")
    if length <= MAX_RECORD_BYTES:
        return line
    return Piece(line[:SAMPLE_BYTES], len(line) + 1, line[1 - WINDOW_BYTES :] + b"\n", "record_too_large")


def _length(line: Line) -> int:
    return line.length if isinstance(line, Piece) else len(line) + 1


def _edge_after(edge: bytes, lines: Sequence[Line]) -> bytes:
    """The last bytes of the file after these lines, when `edge` were the last before them."""
    parts: list[bytes] = []
    size = 0
    for line in reversed(lines):
        if size >= WINDOW_BYTES:
            break
        part = line.edge if isinstance(line, Piece) else line + b"\n"
        parts.append(part)
        size += len(part)
        if isinstance(line, Piece) and len(part) < line.length:
            break  # it has more bytes than are kept of it
    else:
        parts.append(edge)
    return b"".join(reversed(parts))[-WINDOW_BYTES:]
