"""Opening files below the data folder: links are followed, and no link, however it is swapped meanwhile, leads out.

Each component of a path is opened relative to the folder before it, never following a link; a link is read and its target
walked in the same way. So a component that is replaced by a link between two looks, or between a look and the opening, can
only lead to another file below the data folder, or to an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from apps.runtime.agent.pipeline.known import Identity, Stat

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MAX_LINKS = 40
_MAX_ENTRIES = 10_000


class FileRefused(Exception):
    """A file that a pipeline must not use, or can't: a stable code and a sentence. It may be another one at the next look."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def identity_of(found: os.stat_result) -> Identity:
    """Device and inode."""
    return found.st_dev, found.st_ino


def stat_of(found: os.stat_result) -> Stat:
    """Identity, size and time of the last change."""
    return Stat(identity_of(found), found.st_size, found.st_mtime_ns)


class OpenFile:
    """A file that is open for reading. `path` is where it was opened, relative to the data folder and without links."""

    def __init__(self, handle: int, path: str) -> None:
        self._handle, self.path = handle, path

    def stat(self) -> Stat:
        """How it is now."""
        return stat_of(os.fstat(self._handle))

    def read(self, size: int, at: int) -> bytes:
        """At most `size` bytes from there on; none at its end."""
        return os.pread(self._handle, size, at)

    def open(self) -> OpenFile:
        """The same file, to be closed by itself."""
        return OpenFile(os.dup(self._handle), self.path)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)


class FileMoved(Exception):
    """A file is not any more where it was listed."""


class FileUnreadable(Exception):
    """A file that was listed, at `path`, can't be read by this user."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class ListedFile:
    """A regular file as it was listed. Reading it opens it anew, and raises FileMoved or FileUnreadable when it can't be."""

    def __init__(self, folder: DataFolder, path: str, stat: Stat) -> None:
        self._folder, self.path, self._stat = folder, path, stat

    def stat(self) -> Stat:
        """How it was."""
        return self._stat

    def read(self, size: int, at: int) -> bytes:
        """At most `size` bytes from there on; none at its end."""
        file = self.open()
        try:
            return file.read(size, at)
        finally:
            file.close()

    def open(self) -> OpenFile:
        """The file, held open."""
        try:
            file = self._folder.open_to_read(self.path)
        except PermissionError as error:
            raise FileUnreadable(self.path) from error
        except FileRefused as error:
            raise FileMoved(self.path) from error
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise FileMoved(self.path) from error
            raise
        if file.stat().identity != self._stat.identity:
            file.close()
            raise FileMoved(self.path)
        return file


class DataFolder:
    """The files below one folder. Paths are relative to it, with `/`; what is returned as a path has no link in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def identity(self, path: str) -> Identity | None:
        """Device and inode of what `path` leads to, None when nothing is there. Not safe against swaps: only to compare."""
        try:
            return identity_of(os.stat(self.root / path))
        except OSError:
            return None

    def check(self, path: str) -> Identity | None:
        """As `identity`. Raises FileRefused `not_a_regular_file` or `path_not_allowed` for what can't be opened here."""
        try:
            file = self.open_to_read(path)
        except OSError:
            return None
        try:
            return file.stat().identity
        finally:
            file.close()

    def open_to_read(self, path: str) -> OpenFile:
        """Raises FileRefused, or OSError when it is not there or can't be read."""
        with self._folder_of(path) as (folder, name, real):
            return OpenFile(_opened(folder, name, os.O_RDONLY), real)

    def open_to_append(self, path: str) -> int:
        """A descriptor for reading and appending; a file that is not there is made, with its folders, and synced with them.

        Raises FileRefused or OSError.
        """
        with self._folder_of(path, make=True) as (folder, name, _):
            handle = _opened_or_made(folder, name)
            try:
                _sync(folder)
            except OSError:
                os.close(handle)
                raise
            return handle

    def listing(self, paths: Iterable[str]) -> list[ListedFile]:
        """The regular files in the folders of `paths`, links left out, of each at most 10,000 besides those that are named.

        Of a folder that can't be read there are none.
        """
        named: dict[str, set[str]] = {}
        for path in paths:
            parent, _, name = path.rpartition("/")
            named.setdefault(parent, set()).add(name)
        return [file for parent, names in named.items() for file in self._in_folder(parent, names)]

    def _in_folder(self, parent: str, names: Collection[str]) -> list[ListedFile]:
        found: list[ListedFile] = []
        prefix = f"{parent}/" if parent else ""
        with contextlib.suppress(OSError, FileRefused), self._folder_of(f"{prefix}any") as (folder, _, _):
            handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            try:
                with os.scandir(handle) as entries:
                    for entry in entries:
                        if len(found) < _MAX_ENTRIES or entry.name in names:
                            with contextlib.suppress(OSError):  # removed this moment
                                seen = entry.stat(follow_symlinks=False)
                                if _is_regular(seen):
                                    found.append(ListedFile(self, f"{prefix}{entry.name}", stat_of(seen)))
            finally:
                os.close(handle)
        return found

    @contextlib.contextmanager
    def _folder_of(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str, str]]:
        """(descriptor of the folder, name in it, path without links) of what `path` leads to; it need not be there."""
        folders = [os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        names: list[str] = []
        ahead, links = path.split("/")[::-1], 0
        try:
            while ahead:
                part = ahead.pop()
                if part in ("", "."):
                    continue
                if part == "..":
                    if not names:
                        raise _outside()
                    names.pop()
                    os.close(folders.pop())
                    continue
                target = _link(part, folders[-1])
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    if target.startswith("/"):
                        target = self._below(target)
                        while names:
                            names.pop()
                            os.close(folders.pop())
                    ahead += target.split("/")[::-1]
                elif any(more not in ("", ".") for more in ahead):
                    folders.append(_entered(part, folders[-1], make=make))
                    names.append(part)
                else:
                    yield folders[-1], part, "/".join([*names, part])
                    return
            raise FileRefused("not_a_regular_file", "the path leads to a folder")
        finally:
            for folder in folders:
                os.close(folder)

    def _below(self, target: str) -> str:
        """An absolute target relative to the root. FileRefused when it lies elsewhere."""
        root = str(self.root).rstrip("/") + "/"
        for path in (target, os.path.realpath(target)):
            if path.startswith(root):
                return path[len(root) :]
        raise _outside()


def _outside() -> FileRefused:
    return FileRefused("path_not_allowed", "the path leads out of the data folder")


def _link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None  # no link, or nothing: opening it shows which


def _entered(name: str, folder: int, *, make: bool) -> int:
    while True:
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
            _sync(folder)


def _opened(folder: int, name: str, flags: int) -> int:
    """A regular file, opened. What opening might change (a device) or wait for (a FIFO) is not opened."""
    _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
    handle = os.open(name, flags | _FILE, dir_fd=folder)
    try:
        _check_regular(os.fstat(handle))
    except FileRefused:
        os.close(handle)
        raise
    return handle


def _opened_or_made(folder: int, name: str) -> int:
    flags = os.O_RDWR | os.O_APPEND
    while True:
        with contextlib.suppress(FileNotFoundError):
            return _opened(folder, name, flags)
        with contextlib.suppress(FileExistsError):
            return os.open(name, flags | os.O_CREAT | os.O_EXCL | _FILE, 0o640, dir_fd=folder)


def _is_regular(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):  # swapped this moment
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not _is_regular(found):
        raise FileRefused("not_a_regular_file", "the path leads to a FIFO, a device, a socket or a folder")


def _sync(folder: int) -> None:
    """Have a new name outlive a power cut."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
