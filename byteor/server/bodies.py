"""Request bodies: read on the event loop, under a deadline, before the request holds a thread."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, Any

from byteor.server.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_WRITE_BYTES = 1024 * 1024
"""Bytes that one write in a thread receives at once."""


class BodyTooSlow(Exception):
    """Raised when the body was not received in time, or was dropped in favor of newer ones."""


class ClientDisconnected(Exception):
    """Raised when the client closed the connection before its request was complete."""


class BodyStorageFull(Exception):
    """Raised when the temporary files have reached their limit."""


class Body:
    """The body of one request, in memory or, when large, in an unnamed temporary file. Must be closed."""

    def __init__(self, keeper: Bodies, length: int) -> None:
        self._keeper = keeper
        self._length = length
        self._pieces: list[bytes] = []
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._reserved = 0
        self._writing: asyncio.Future[None] | None = None

    async def add(self, piece: bytes) -> None:
        """Append `piece`. Raises BodyStorageFull."""
        limits = self._keeper.limits
        self._pieces.append(piece)
        self._in_memory += len(piece)
        self._keeper.in_memory += len(piece)
        enough = limits.body_in_memory if self._file is None else _WRITE_BYTES
        if self._in_memory <= enough and self._keeper.in_memory <= limits.bodies_in_memory:
            return
        if self._file is not None:
            await self._write()
            return
        self._reserve()
        self._file = tempfile.TemporaryFile(dir=self._keeper.directory)  # noqa: SIM115 - `close` closes it
        await self._write(first=True)

    async def complete(self) -> None:
        """Wait until the whole body is stored."""
        if self._file is not None:
            await self._write()
            await self._written()
            self._file.seek(0)

    def reader(self) -> IO[bytes]:
        """A file object to read the body from; a new one each time for a body in memory."""
        if self._file is None:
            return io.BytesIO(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        return self._file

    async def close(self) -> None:
        """Release its memory or file."""
        self._keeper.in_memory -= self._in_memory
        self._pieces, self._in_memory = [], 0
        try:
            if self._file is not None:
                await self._written()
        finally:
            # release the counters first: closing a file on a full disk may raise
            self._keeper.in_files -= self._reserved
            file, self._file, self._reserved = self._file, None, 0
            if file is not None:
                # closing a large file takes milliseconds
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._keeper.writers, file.close))

    async def _write(self, *, first: bool = False) -> None:
        """Start to write the pieces in memory once the present write is done; further pieces are received concurrently."""
        await self._written()
        assert self._file is not None
        self._writing = asyncio.get_running_loop().run_in_executor(
            self._keeper.writers, _append, self._file, self._unload(), self._length if first else 0
        )

    async def _written(self) -> None:
        if self._writing is not None:
            # a started write continues when reading ends; the file is closed afterwards
            await asyncio.shield(self._writing)
            self._writing = None

    def _reserve(self) -> None:
        if self._keeper.in_files + self._length > self._keeper.limits.bodies_in_files:
            raise BodyStorageFull
        self._reserved = self._length
        self._keeper.in_files += self._length

    def _unload(self) -> list[bytes]:
        pieces = self._pieces
        self._keeper.in_memory -= self._in_memory
        self._pieces, self._in_memory = [], 0
        return pieces


def _append(file: IO[bytes], pieces: list[bytes], expected: int) -> None:
    """Write `pieces`; `expected`, for the first write, is the final size of the file.

    Preallocation halves the cost of the write, and is skipped where the file system does not support it.
    """
    if expected:
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, expected)
    file.writelines(pieces)


class Bodies:
    """All request bodies of the process, and their limits."""

    def __init__(self, limits: Limits, directory: Path, writers: Executor) -> None:
        self.limits = limits
        self.directory = directory
        self.writers = writers
        self.in_memory = 0
        self.in_files = 0
        self._open: defaultdict[str, dict[asyncio.Timeout, None]] = defaultdict(dict)
        self.count = 0
        self._stopping = False

    async def read(self, receive: Receive, *, length: int, address: str) -> Body:
        """Read the whole body of `length` bytes. Raises BodyTooSlow, ClientDisconnected or BodyStorageFull, and stores nothing then."""
        limits, loop = self.limits, asyncio.get_running_loop()
        began = loop.time()
        last = began + limits.body_seconds + length / limits.body_bytes_per_second
        body = Body(self, length)
        try:
            async with asyncio.timeout_at(self._deadline(began, last)) as timeout:
                self._enter(address, timeout)
                try:
                    while True:
                        message = await receive()
                        if message["type"] != "http.request":
                            raise ClientDisconnected
                        if piece := message.get("body", b""):
                            await body.add(piece)
                        if not message.get("more_body", False):
                            break
                        if timeout in self._open.get(address, ()) and not timeout.expired():
                            timeout.reschedule(self._deadline(loop.time(), last))
                finally:
                    self._leave(address, timeout)
            await body.complete()
        except TimeoutError:
            await body.close()
            raise BodyTooSlow from None
        except BaseException:
            await body.close()
            raise
        return body

    def stop(self) -> None:
        """Shorten the deadlines of incomplete bodies, because the process stops."""
        self._stopping = True
        soon = asyncio.get_running_loop().time() + self.limits.stop_seconds
        for timeouts in self._open.values():
            for timeout in timeouts:
                if not timeout.expired():
                    timeout.reschedule(min(soon, timeout.when() or soon))

    def _deadline(self, now: float, last: float) -> float:
        idle = self.limits.stop_seconds if self._stopping else self.limits.body_idle_seconds
        return min(now + idle, last)

    def _enter(self, address: str, timeout: asyncio.Timeout) -> None:
        mine = self._open[address]
        if len(mine) >= self.limits.bodies_open_per_address:
            self._drop_oldest(address)
        elif self.count >= self.limits.bodies_open:
            self._drop_oldest(max(self._open, key=lambda each: len(self._open[each])))
        self._open[address][timeout] = None
        self.count += 1

    def _leave(self, address: str, timeout: asyncio.Timeout) -> None:
        mine = self._open.get(address)
        if mine is not None and timeout in mine:
            del mine[timeout]
            self.count -= 1
            if not mine:
                del self._open[address]

    def _drop_oldest(self, address: str) -> None:
        oldest = next(iter(self._open[address]))
        self._leave(address, oldest)
        if not oldest.expired():
            oldest.reschedule(asyncio.get_running_loop().time())
