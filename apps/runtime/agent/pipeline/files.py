"""A file as ingress: its lines are records, its position is kept across restarts, rotation is followed.

A `Tail` is one open file. A `FileSource` lists and opens files and reads them in the order that `order` decides: the file that
the path leads to now is the last, before it those that it led to earlier, each of which is kept open until nothing was added to
it for a minute. A later one is read only when all before it are at their end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from apps.runtime.agent.pipeline.folder import DataFolder, FileMoved, FileRefused, FileUnreadable, ListedFile, OpenFile
from apps.runtime.agent.pipeline.known import Identity, Known
from apps.runtime.agent.pipeline.order import Found, Placed, Resumed, continued, followed, older, replaced, resumed
from apps.runtime.agent.pipeline.positions import Positions
from apps.runtime.agent.pipeline.tail import MAX_RECORD_BYTES, Line, Piece, Replaced, Tail
from apps.runtime.agent.state import State

__all__ = ["BATCH_BYTES", "MAX_RECORD_BYTES", "FileSource", "Line", "Piece"]

BATCH_BYTES = 8 * 1024 * 1024
QUIET_SECONDS = 60.0
_MOST_TAILS = 256
_MOST_FINISHED = 8
_MOST_TRIES = 100


def _log_nothing(text: str) -> None:
    """The default: log nothing."""


class FileSource:
    """`take` what is new, process it, then `commit`: what was not committed is taken again, after a restart too.

    `path` is relative to the folder and is followed anew at each look. `look` may be called from another thread, to have a
    rotated file in hand while nothing can be taken. `written` returns the files that the same pipeline writes.
    """

    def __init__(
        self,
        folder: DataFolder,
        path: str,
        state: State,
        *,
        follow: bool,
        log: Callable[[str], None] = _log_nothing,
        written: Callable[[], Collection[Identity]] = tuple,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self._folder, self._path, self.follow = folder, os.path.normpath(path), follow
        self._log, self._written = log, written
        self._quiet_seconds = quiet_seconds
        self._positions = Positions(folder.root, self._path, state)
        self._mutex = threading.Lock()
        self._tails: list[Tail] = []
        self._finished: list[Known] = []  # read to their end and closed
        self._taken_from: Tail | None = None
        self._previous: Known | None = None  # what the path led to last
        self._resumed = False
        self._looked = False
        self._save_again_at: float | None = None
        self._ended = False

    # --- what the pipeline asks ---

    def finished(self) -> bool:
        """Is everything taken, and nothing more expected?"""
        return not self.follow and self._ended

    def take(self, most: int) -> list[Line]:
        """The next lines, at most `most`; none when there is nothing new. Each is a record, or a Piece that is refused.

        A line without its end is not taken while it may still grow. Raises FileRefused or OSError when nothing can be read.
        """
        with self._mutex:
            if self._taken_from is not None and self._taken_from.lines:
                return self._taken_from.records(most)
            refused: FileRefused | None = None
            try:
                self._look()
            except FileRefused as error:
                refused = error  # what is open already is read all the same
            self._taken_from = self._next(most)
            if self._taken_from is not None:
                return self._taken_from.records(most)
            if refused is not None:
                raise refused
            return []

    def commit(self, count: int) -> None:
        """The first `count` lines of what was taken last are done with. OSError when that can't be kept."""
        with self._mutex:
            tail = self._taken_from
            if tail is not None:
                known = tail.after(count)
                self._save({tail: known})
                tail.done_with(count, known)

    def identities(self) -> set[Identity]:
        """Device and inode of the files in hand."""
        return {tail.identity for tail in tuple(self._tails)}

    def look(self) -> None:
        """See whether the path leads to another file now. Raises FileRefused or OSError."""
        with self._mutex:
            self._look()
            for tail in self._tails:
                if tail.glance():
                    self._try_to_save()

    def close(self) -> None:
        """Let go of all files."""
        with self._mutex:
            for tail in self._tails:
                tail.close()
            self._tails.clear()
            self._taken_from = None
            self._resumed = False

    # --- in what order ---

    def _next(self, most: int) -> Tail | None:
        """The first tail in which lines wait.

        A later file is read only when something was in it *before* all earlier ones were seen to be at their end: a writer that
        goes over to it has written nothing to them since.
        """
        more: dict[Tail, bool] = {}
        for tail in list(self._tails):
            try:
                more[tail] = tail.peek()
            except Replaced:
                self._replaced(tail)
                return self._next(most)
        for tail in list(self._tails):
            if tail is not self._tails[0] and not more[tail] and tail.peek():
                return None  # it came meanwhile: from the start again
            try:
                at_end = tail.fill(most, BATCH_BYTES)
            except Replaced:
                if not tail.lines:
                    self._replaced(tail)
                    return self._next(most)
                at_end = False
            if at_end and not tail.lines:
                self._at_end(tail)
            if tail.lines:
                return tail
            if not at_end:
                return None
        return None

    def _at_end(self, tail: Tail) -> None:
        """Everything in it is done with. One that the path does not lead to any more is closed once it has been quiet."""
        last = tail is self._tails[-1]
        if last and not tail.over:
            if not self.follow and tail.unended():
                tail.end(whole=True)
            self._ended = not tail.lines
        elif tail.over or not self.follow or self._left_for_good(tail):
            if tail.unended():
                tail.end(whole=False)
                return
            self._tails.remove(tail)
            if not tail.over:
                self._note_finished([tail.after(0)])
            tail.close()
            self._try_to_save()

    def _left_for_good(self, tail: Tail) -> bool:
        """Nothing was added for a while, and something was written to the file that came after it."""
        return self._tails[-1].begun() and time.monotonic() - tail.quiet_since >= self._quiet_seconds

    # --- which files ---

    def _look(self) -> None:
        if not self._resumed:
            self._resume()
        if self._save_again_at is not None and time.monotonic() >= self._save_again_at:
            self._try_to_save()
        if self._looked and not self.follow:
            return
        at = self._folder.identity(self._path)
        if at is None or len(self._tails) >= _MOST_TAILS:
            return
        if not self._tails or self._tails[-1].identity != at:
            try:
                file = self._folder.open_to_read(self._path)
            except FileNotFoundError:
                return
            self._leads_to(file)
        self._looked = True

    def _leads_to(self, file: OpenFile) -> None:
        """The ingress path leads to this file now, and did not before."""
        identity = file.stat().identity
        with contextlib.closing(file):
            if identity in self._written():
                raise FileRefused("path_not_allowed", "the pipeline would read the file that it writes")
            known = continued(file, file.path, self._finished, self._tails)
            passed_over: Sequence[Known] = ()

            def decide(listed: Sequence[ListedFile]) -> Sequence[Placed]:
                nonlocal passed_over
                passed_over = older(known, listed) if self._previous is None else ()
                return followed(self._tails, Found(file, known), self._previous, self._finished, listed)

            self._arrange([file.path], decide)
        self._note_finished(passed_over)
        if known in self._finished:
            self._finished.remove(known)
        self._previous = self._tails[-1].known
        self._try_to_save()

    def _resume(self) -> None:
        """Find the files that were read before the start, wherever they are now."""
        saved, self._finished = (list(kept) for kept in self._positions.load())
        at, decided = self._folder.identity(self._path), Resumed()

        def decide(listed: Sequence[ListedFile]) -> Sequence[Placed]:
            nonlocal decided
            decided = resumed(saved, self._finished, listed, at)
            return decided.order

        self._arrange([known.path for known in saved], decide)
        self._note_finished(decided.lost)  # there may yet be a copy of what was read
        for known in decided.lost:
            self._log(
                f"{known.path}: the file that was read to byte {known.position} is gone, with what was unread in it"
            )
        self._resumed = True
        if decided.previous is not None:
            self._previous = decided.previous
            self._see_place_of(self._previous)

    def _see_place_of(self, previous: Known) -> None:
        """Read on in what took the place of the file that the path led to last, though a link leads elsewhere by now."""
        with contextlib.suppress(OSError, FileRefused):
            file = self._folder.open_to_read(previous.path)
            if file.stat().identity in {self._folder.identity(self._path), *self.identities()}:
                file.close()
            else:
                self._leads_to(file)

    def _replaced(self, tail: Tail) -> None:
        """What was read from it was overwritten: it is another file now, of the same inode. The rest may be in a copy."""
        last, unended = tail is self._tails[-1], tail.unended()
        self._arrange([tail.known.path], lambda listed: replaced(tail, self._tails, self._finished, listed))
        tail.over = True
        if unended and tail in self._tails:
            tail.end(whole=False)
        if last:
            self._previous = self._tails[-1].known
        self._try_to_save()

    def _arrange(self, paths: Iterable[str], decide: Callable[[Sequence[ListedFile]], Sequence[Placed]]) -> None:
        """Open what `decide` returns for the files in the folders of `paths`, in its order, and close the others.

        Files that this pipeline writes, or that can't be read, are not there for it. Decided anew when a file is moved
        meanwhile. OSError when one can't be opened: then nothing has changed.
        """
        for _ in range(_MOST_TRIES):
            written = self._written()
            listed = [file for file in self._folder.listing(paths) if file.stat().identity not in written]
            with contextlib.suppress(FileMoved), contextlib.ExitStack() as opened:
                tails = [self._in_hand(place, opened) for place in _decided(decide, listed)]
                opened.pop_all()
                dropped = [tail for tail in self._tails if tail not in tails]
                self._tails = tails
                for tail in dropped:
                    tail.close()
                return
        raise OSError(errno.EAGAIN, "files are moved faster than they can be opened")

    @staticmethod
    def _in_hand(place: Placed, opened: contextlib.ExitStack) -> Tail:
        if isinstance(place, Tail):
            return place
        file = place.file.open()
        opened.callback(file.close)
        return Tail(file, place.known)

    def _note_finished(self, finished: Iterable[Known]) -> None:
        self._finished = [*self._finished, *finished][-_MOST_FINISHED:]

    # --- what is kept ---

    def _try_to_save(self) -> None:
        """Keep which files there are. When that fails, it is tried again in a second; a commit does it too, and raises the error."""
        self._save_again_at = time.monotonic() + 1
        with contextlib.suppress(OSError):
            self._save({})

    def _save(self, changed: Mapping[Tail, Known]) -> None:
        self._positions.save([changed.get(tail) or tail.after(0) for tail in self._tails], self._finished)
        self._save_again_at = None


def _decided(decide: Callable[[Sequence[ListedFile]], Sequence[Placed]], listed: list[ListedFile]) -> Sequence[Placed]:
    """What is decided on those of the files that can be read."""
    while True:
        try:
            decided = decide(listed)
            for place in decided:
                if isinstance(place, Found):
                    place.file.read(0, 0)
        except FileUnreadable as error:
            listed = [file for file in listed if file.path != error.path]
        else:
            return decided
