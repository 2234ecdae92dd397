"""A folder, a clock and a file source in memory: every order of a few steps can be tried, thousands in a second.

`World` is a host with one ingress path, a writer that numbers its records, and an agent. A step is a letter, see `STEPS`. The
writer keeps to what docs/agent.md asks for: a step that it does not allow now is not `possible`. An inode is given out again as
soon as it is free, which is the worst that a file system may do.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from apps.runtime.agent.pipeline.files import FileSource, Line
from apps.runtime.agent.pipeline.folder import DataFolder, FileMoved, FileUnreadable, ListedFile, OpenFile
from apps.runtime.agent.pipeline.known import Identity, Known, Print, Stat
from apps.runtime.agent.state import State

T = TypeVar("T")
IN = "in"


class Inode:
    """What a file system keeps of a file."""

    def __init__(self, number: int, now: int) -> None:
        self.number, self.modified = number, now
        self.data = b""
        self.opened = 0

    def stat(self) -> Stat:
        return Stat((1, self.number), len(self.data), self.modified)


class Handle(OpenFile):
    """An inode that is held open."""

    def __init__(self, disk: Disk, inode: Inode, path: str) -> None:
        self._disk, self.inode, self.path = disk, inode, path
        inode.opened += 1

    def stat(self) -> Stat:
        return self.inode.stat()

    def read(self, size: int, at: int) -> bytes:
        return self.inode.data[at : at + size]

    def open(self) -> Handle:
        return Handle(self._disk, self.inode, self.path)

    def close(self) -> None:
        self.inode.opened -= 1
        assert self.inode.opened >= 0, "closed twice"


class Entry(ListedFile):
    """A name as it was listed."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk, self.path = disk, path
        self._stat = disk.names[path].stat()

    def open(self) -> Handle:
        if self.path in self._disk.unreadable:
            raise FileUnreadable(self.path)
        inode = self._disk.names.get(self.path)
        self._disk.moving -= self._disk.moving > 0
        if self._disk.moving or inode is None or inode.number != self._stat.identity[1]:
            raise FileMoved(self.path)
        return Handle(self._disk, inode, self.path)


class Disk(DataFolder):
    """One folder. `links` are names that lead to other names; `moving` is how many of the next openings come a moment too early."""

    def __init__(self) -> None:
        self.root = Path("/data")
        self.now = 1
        self.names: dict[str, Inode] = {}
        self.links: dict[str, str] = {}
        self.unreadable: set[str] = set()
        self.moving = 0
        self._inodes: list[Inode] = []

    def at(self, path: str) -> str:
        return self.links.get(path, path)

    def create(self, path: str) -> Inode:
        """The file there, made when there is none."""
        if path not in self.names:
            self._inodes = [inode for inode in self._inodes if inode.opened or inode in self.names.values()]
            number = next(n for n in range(1, 99) if n not in {inode.number for inode in self._inodes})
            self.names[path] = Inode(number, self.now)
            self._inodes.append(self.names[path])
        return self.names[path]

    def write(self, inode: Inode, data: bytes) -> None:
        inode.data, inode.modified = data, self.now

    def identity(self, path: str) -> Identity | None:
        inode = self.names.get(self.at(path))
        return None if inode is None else inode.stat().identity

    def open_to_read(self, path: str) -> Handle:
        if self.at(path) not in self.names:
            raise FileNotFoundError(path)
        return Handle(self, self.names[self.at(path)], self.at(path))

    def listing(self, paths: Iterable[str]) -> list[ListedFile]:
        return [Entry(self, path) for path in self.names] if [*paths] else []


class Memory(State):
    """A state folder that is a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.full = False

    def write(self, name: str, value: object) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.kept[name] = value

    def recall(self, name: str, parse: Callable[[Any], T]) -> T | None:
        return parse(self.kept[name]) if name in self.kept else None


class World:
    """A host. `tick`: how many steps the clock of its file system stands still for."""

    def __init__(self, *, tick: int = 1, linked: bool = False, quiet_seconds: float = 0.0) -> None:
        self.disk, self.state = Disk(), Memory()
        self._tick, self._linked, self._quiet_seconds = tick, linked, quiet_seconds
        self._steps = self._rotations = self._others = 0
        self.written = 0
        self._half = False
        self.out: list[bytes] = []
        self.uncertain: set[bytes] = set()
        self.logged: list[str] = []
        self._held: list[Line] = []
        self.source: FileSource | None = None
        if linked:
            self.disk.links[IN] = "day0"
        self._writer = self._opened()
        self.start()
        self.look()

    # --- steps ---

    def do(self, step: str) -> bool:
        """Take this step; False when it is not possible now."""
        self._steps += 1
        self.disk.now += self._steps % self._tick == 0
        possible, act = STEPS[step]
        if not possible(self):
            return False
        act(self)
        return True

    def _opened(self) -> Handle:
        name = self.disk.at(IN)
        return Handle(self.disk, self.disk.create(name), name)

    def _append(self, data: bytes) -> None:
        self.disk.write(self._writer.inode, self._writer.inode.data + data)

    def write(self) -> None:
        if self._half:
            self._append(b"0\n")
            self._half = False
        else:
            self._append(b"%d0\n" % self.written)
            self.written += 1

    def write_long(self) -> None:
        """More than is kept of how a file begins."""
        self._append(b"%d0" % self.written + b" " * 1100 + b"\n")
        self.written += 1

    def fill_or_free(self) -> None:
        self.state.full = not self.state.full

    def write_another(self) -> None:
        """A file of another program, in the same folder."""
        self._others += 1
        self.disk.write(self.disk.create(f"other.{self._others}"), b"another one's\n")

    def write_half(self) -> None:
        self._append(b"%d" % self.written)
        self.written += 1
        self._half = True

    def rename(self) -> None:
        """The writer goes on in the renamed file until it reopens."""
        self._rotations += 1
        if self._linked:
            self.disk.links[IN] = f"day{self._rotations}"
        else:
            self.disk.names[self._rotated()] = self.disk.names.pop(IN)
        self.disk.create(self.disk.at(IN))

    def reopen(self) -> None:
        if self._half:
            self.write()
        self._writer.close()
        self._writer = self._opened()

    def rotate(self) -> None:
        self.rename()
        self.reopen()

    def copy_and_truncate(self) -> None:
        self._rotations += 1
        file = self.disk.names[self.disk.at(IN)]
        self.disk.write(self.disk.create(self._rotated()), file.data)
        self.disk.write(file, b"")

    def remove_and_create(self) -> None:
        self._writer.close()
        del self.disk.names[IN]
        self._writer = self._opened()

    def _rotated(self) -> str:
        return f"{self.disk.at(IN)}.{100_000 + self._rotations}"

    def write_unreadable(self) -> None:
        """A file that is named like a rotated one, and that the agent may not read."""
        name = f"{self.disk.at(IN)}.99999{self._others}"
        self._others += 1
        self.disk.write(self.disk.create(name), b"another one's\n")
        self.disk.unreadable.add(name)

    def move(self) -> None:
        """Files are renamed while the agent looks."""
        self.disk.moving = 5

    def start(self) -> None:
        self.source = FileSource(
            self.disk, IN, self.state, follow=True, log=self.logged.append, quiet_seconds=self._quiet_seconds
        )

    def stop(self) -> None:
        assert self.source is not None
        self._held = []
        self.source.close()
        self.source = None

    def kill(self) -> None:
        """With a batch written and its position not kept."""
        self.uncertain.update(self._out(self._held) if self._held else self._take(100, commit=False))
        self.stop()

    def look(self) -> None:
        assert self.source is not None
        self.source.look()

    def read(self) -> None:
        nothing = 0
        while nothing < 4:
            nothing = 0 if self._take(100) else nothing + 1

    def read_one(self) -> None:
        self._take(1)

    def hold(self) -> None:
        """A batch is taken, and the egress hangs."""
        assert self.source is not None
        self._held = self.source.take(100)

    def let_go(self) -> None:
        """It is written."""
        assert self.source is not None
        self._out(self._held)
        self.source.commit(len(self._held))
        self._held = []

    def _take(self, most: int, *, commit: bool = True) -> list[bytes]:
        assert self.source is not None
        taken = self.source.take(most)
        lines = self._out(taken)
        if commit:
            self.source.commit(len(taken))
        return lines

    def _out(self, taken: list[Line]) -> list[bytes]:
        lines = [line.strip() if isinstance(line, bytes) else line.code.encode() for line in taken]
        self.out += lines
        return lines

    # --- what is possible ---

    def running(self) -> bool:
        return self.source is not None

    def reading(self) -> bool:
        return self.running() and not self.state.full and not self._held

    def holding(self) -> bool:
        return bool(self._held) and not self.state.full

    def stopped(self) -> bool:
        return self.source is None

    def whole(self) -> bool:
        return not self._half

    def in_place(self) -> bool:
        return self._writer.inode is self.disk.names[self.disk.at(IN)]

    def elsewhere(self) -> bool:
        return not self.in_place()

    def may_rename(self) -> bool:
        return self.in_place() and self._rotations < 4 and (not self._linked or self._seen())

    def may_rotate(self) -> bool:
        return self.may_rename() and self.whole()

    def may_truncate(self) -> bool:
        file = self.disk.names[self.disk.at(IN)]
        seen = self._seen() or (self.stopped() and not self._linked)
        return self.in_place() and self.whole() and bool(file.data) and self._rotations < 4 and seen

    def may_remove(self) -> bool:
        done = len({*self.out}) == self.written
        return self.in_place() and self.whole() and not self._linked and done

    def _seen(self) -> bool:
        """Is it kept that the agent has the file in hand that the path leads to, and how that begins?"""
        file = self.disk.names[self.disk.at(IN)]
        for kept in self.state.kept.values():
            known = Known.from_dict(kept["files"][-1]) if kept["files"] else None
            if known is not None and known.inode == file.number:
                return bool(known.head.size or not file.data) and Print.of(file.data[: known.head.size]) == known.head
        return False

    # --- the end ---

    def problem(self) -> str:
        """What was promised and is not so; empty when all is."""
        if self._half:
            self.write()
        self.state.full = False
        if self._held:
            self.let_go()
        if self.source is None:
            self.start()
        self.read()
        self.stop()
        expected = [b"%d0" % number for number in range(self.written)]
        out = list(self.out)
        for record in self.uncertain:  # may have come out again
            again = [index for index, line in enumerate(out) if line == record][1:]
            out = [line for index, line in enumerate(out) if index not in again]
        return "" if out == expected else f"{self.out} instead of {expected}"


STEPS: dict[str, tuple[Callable[[World], bool], Callable[[World], None]]] = {
    "w": (World.whole, World.write),
    "W": (World.whole, World.write_long),
    "h": (World.whole, World.write_half),
    "H": (lambda world: not world.whole(), World.write),
    "m": (World.may_rename, World.rename),
    "o": (World.elsewhere, World.reopen),
    "r": (World.may_rotate, World.rotate),
    "c": (World.may_truncate, World.copy_and_truncate),
    "d": (World.may_remove, World.remove_and_create),
    "e": (lambda world: world._others < 2, World.write_another),
    "u": (lambda world: world._others < 2, World.write_unreadable),
    "x": (lambda world: True, World.move),
    "f": (lambda world: True, World.fill_or_free),
    "l": (World.running, World.look),
    "t": (World.reading, World.read),
    "1": (World.reading, World.read_one),
    "T": (World.reading, World.hold),
    "C": (World.holding, World.let_go),
    "s": (World.running, World.stop),
    "k": (World.running, World.kill),
    "S": (World.stopped, World.start),
}
"""By letter: whether it is possible, and what it is.

The writer: `w` a record, `W` a long one, `h` half of one, `H` its end, `m` rename and create, `o` it goes over to the new file,
`r` both, `c` copy and empty, `d` remove and create. Others: `e` another file, `u` one that can't be read, `x` files are renamed
while the agent looks, `f` the disk is full, or free again. The agent: `l` looks while the egress hangs, `t` reads everything,
`1` one record, `T` takes a batch, `C` has it out, `s` stops, `k` is killed with a batch out, `S` starts.
"""
