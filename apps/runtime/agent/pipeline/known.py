"""What a file of an ingress is known by: device and inode, and digests of what it holds. Reads only what it is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

WINDOW_BYTES = 1024
_COMPARE_BYTES = 1024 * 1024

Identity = tuple[int, int]
"""Device and inode of a file."""


class Stat(NamedTuple):
    """What is seen of a file without reading it: `size` in bytes, `modified` in ns."""

    identity: Identity
    size: int
    modified: int


class Content(Protocol):
    """A file that can be read at any place."""

    def stat(self) -> Stat:
        """How it is now."""
        ...

    def read(self, size: int, at: int) -> bytes:
        """At most `size` bytes from there on; none at its end."""
        ...

    def open(self) -> File:
        """The same file, held open by itself."""
        ...


class File(Content, Protocol):
    """One that is held open, and read on though it is renamed or removed."""

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class Print:
    """A digest of `size` bytes at a known place of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Print:
        """The print of these bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept of a file across restarts.

    `path`: where it was opened, relative to the data folder. `position`: the bytes that are done with. `head` is a print of
    its first bytes, `edge` of the bytes before the position, each of at most 1 KiB. `since` is when it had last been
    modified when it was first opened, in ns: what had been modified before is older than it.
    """

    path: str
    device: int
    inode: int
    position: int
    head: Print
    edge: Print
    since: int = 0

    @property
    def identity(self) -> Identity:
        """Device and inode."""
        return self.device, self.inode

    def as_dict(self) -> dict[str, object]:
        """As JSON takes it."""
        return {
            "path": self.path,
            "device": self.device,
            "inode": self.inode,
            "position": self.position,
            "head": [self.head.size, self.head.sha256],
            "edge": [self.edge.size, self.edge.sha256],
            "since": self.since,
        }

    @classmethod
    def from_dict(cls, value: Any) -> Known:
        """The contrary. ValueError for anything else."""
        try:
            numbers = [value[name] for name in ("device", "inode", "position", "since")]
            prints = [Print(size, sha256) for size, sha256 in (value["head"], value["edge"])]
            path = value["path"]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError("no file is described like this") from error
        numbers += [item.size for item in prints]
        if not all(type(number) is int and 0 <= number < 2**64 for number in numbers) or not isinstance(path, str):
            raise ValueError("no file is described like this")
        if any(item.size > WINDOW_BYTES for item in prints) or prints[1].size > numbers[2]:
            raise ValueError("no file is described like this")
        device, inode, position, since = numbers[:4]
        return cls(path, device, inode, position, prints[0], prints[1], since)

    def is_blank(self) -> bool:
        """Is nothing known of its content? Then every file with its inode may be it."""
        return not self.head.size and not self.position

    def is_certain(self) -> bool:
        """Is enough known of its content to identify it by that alone?"""
        return self.position >= WINDOW_BYTES and self.head.size == self.edge.size == WINDOW_BYTES

    def at(self, path: str, identity: Identity) -> Known:
        """The same, found elsewhere."""
        return replace(self, path=path, device=identity[0], inode=identity[1])

    def is_content_of(self, file: Content) -> bool:
        """Does the file still have, where they were, the bytes that were read from this one?"""
        return (
            file.stat().size >= self.position
            and Print.of(file.read(self.head.size, 0)) == self.head
            and Print.of(file.read(self.edge.size, self.position - self.edge.size)) == self.edge
        )

    def was(self, file: Content) -> bool:
        """Is that file this one, read to its end, or a copy of it? One that only begins like a short one is another."""
        found = file.stat()
        return self.is_content_of(file) and (
            self.is_certain()
            or found.size == self.position > 0
            or (found.identity == self.identity and (self.position > 0 or not found.size))
        )

    @classmethod
    def whole(cls, path: str, file: Content) -> Known:
        """A file that is read to its end."""
        found = file.stat()
        window = min(WINDOW_BYTES, found.size)
        head, edge = (Print.of(file.read(window, at)) for at in (0, found.size - window))
        return cls(path, *found.identity, found.size, head, edge, found.modified)

    @classmethod
    def unread(cls, path: str, file: Content) -> Known:
        """A file of which nothing was read."""
        found, nothing = file.stat(), Print.of(b"")
        return cls(path, *found.identity, 0, nothing, nothing, found.modified)


def is_copy(shorter: Content, longer: Content) -> bool:
    """Is the first file, which is not empty, what the second one begins with? Half a line proves nothing: many files begin with it."""
    size = shorter.stat().size
    if size > longer.stat().size or (size < WINDOW_BYTES and shorter.read(1, size - 1) != b"\n"):
        return False
    at = 0
    while at < size:
        # the first bytes distinguish most files
        step = min(_COMPARE_BYTES if at else WINDOW_BYTES, size - at)
        piece = shorter.read(step, at)
        if not piece or longer.read(len(piece), at) != piece:
            return False
        at += len(piece)
    return True
