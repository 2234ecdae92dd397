"""In what order the files of an ingress are read: decided from what is remembered and what is in its folder now.

Nothing here lists, keeps open or changes a file: what a file holds is asked of its `Content`. A function is
given what is remembered, `Known`; what is in hand, `Tail`; and what was listed, `Listed`. It returns the whole new order, in which
a `Found` is a file that has yet to be opened.

Files are identified by their content. A file of which nothing is remembered but its inode, because nothing was in it, is
any file: it is read as one that was never seen, in the place that its time and its name give it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from apps.runtime.agent.pipeline.known import Content, Identity, Known, is_copy
from apps.runtime.agent.pipeline.rotation import rotated_name
from apps.runtime.agent.pipeline.tail import Tail

_REMOVED = (-(10**6), "")
_OWN_NAME = (1, "")


class Listed(Content, Protocol):
    """A regular file as it was listed. `path` is relative to the data folder."""

    @property
    def path(self) -> str:
        """Where it lies."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be opened, and from where on it is read."""

    file: Content
    known: Known

    def touched(self) -> bool:
        """Was anything read from it?"""
        return self.known.position > 0

    def begun(self) -> bool:
        """Is, or was, anything in it?"""
        return self.touched() or self.file.stat().size > 0


Placed = Tail | Found


@dataclass(frozen=True, slots=True)
class Resumed:
    """The order after a start, what the path led to last, and what was remembered and is nowhere any more."""

    order: Sequence[Placed] = ()
    previous: Known | None = None
    lost: Sequence[Known] = ()


def resumed(
    saved: Sequence[Known],
    finished: Sequence[Known],
    listed: Sequence[Listed],
    target: Identity | None,
) -> Resumed:
    """The files that were in hand before a start, wherever they are now, and those that came before the one at the path.

    `target` is what the path leads to now: it is in the order only where it was in hand already.
    """
    if not saved:
        return Resumed()
    found, changed = _found_again(saved, listed)
    inodes = {file.stat().identity[1] for file in listed}
    lost = [
        known
        for index, known in enumerate(saved)
        if index not in found and not (known.is_blank() and known.inode in inodes)
    ]
    order: list[Placed] = [found[index] for index in sorted(found)]
    taken = {place.file.stat().identity for place in found.values()}
    new: dict[Identity, Found] = {}
    at_path = [file for file in listed if file.stat().identity == target]
    others = [*(place.file for place in found.values()), *at_path]
    out = {*taken, target}
    for index, known in enumerate(saved):
        last = index == len(saved) - 1
        candidates: list[Listed] = []
        if known.is_blank() or index in changed:
            candidates += [file for file in _of_inode(known, listed) if _may_be_named(file.path, known.path)]
        if index in changed or (last and known.is_blank()):
            until = None if last else saved[index + 1].since
            candidates += _written_between(listed, known.path, known.since, until)
        for file in candidates:
            identity = file.stat().identity
            if identity not in out and not _is_known(file, others, [*finished, *lost]):
                new.setdefault(identity, Found(file, Known.unread(known.path, file)))
    at_target = bool(order) and order[-1].file.stat().identity == target
    order = _merged(order, [*new.values()], _turns(listed, saved[-1].path), end=len(order) - at_target)
    last_one = found[len(saved) - 1].known if len(saved) - 1 in found else saved[-1]
    return Resumed(order, last_one if last_one.since else None, lost)


def followed(
    hand: Sequence[Tail],
    target: Found,
    previous: Known | None,
    finished: Sequence[Known],
    listed: Sequence[Listed],
) -> list[Placed]:
    """The order when the path leads to `target`, which it did not before: to `previous` then. The target is the last.

    Before it come those that were created and rotated unseen.
    """
    identity = target.file.stat().identity
    own = [tail for tail in hand if tail.identity == identity and not tail.over]
    rest = [tail for tail in hand if tail not in own]
    missed: list[Found] = []
    # when something was read from it, it was in hand all the time; else another file may have had its inode
    if previous is not None and previous.path == target.known.path and not any(tail.touched() for tail in own):
        missed = _missed(previous, None, hand, target.file, finished, listed)
    order: list[Placed] = _merged(rest, missed, _turns(listed, target.known.path))
    behind: list[Placed] = [*own] or [target]
    return [*order, *behind]


def replaced(tail: Tail, hand: Sequence[Tail], finished: Sequence[Known], listed: Sequence[Listed]) -> list[Placed]:
    """The order when what was read from `tail`, one of those in hand, is not in its file any more.

    The rest of what was in it is read from a copy; else the line of which the beginning was read is ended, with `tail` over.
    Then come copies of what was in it meanwhile, then its file from the start.
    """
    known, file = tail.after(0), tail.file
    before: list[Placed] = []
    others = {other.identity for other in hand if not other.over and other is not tail}
    copy = _copy_of(known, listed, {*others, tail.identity})
    if copy is not None:
        before.append(Found(copy, known.at(known.path, copy.stat().identity)))
    elif tail.unended():
        before.append(tail)
    place = hand.index(tail)
    order: list[Placed] = [*hand[:place], *before, *hand[place + 1 :]]
    new = Found(file, Known.unread(known.path, file))
    still = [item for item in order if item is not tail]
    # what is a copy of it was made before it was written to last
    missed = _missed(known, file.stat().modified, still, file, finished, listed)
    turn, start = _turns(listed, known.path), place + len(before)
    if place == len(hand) - 1:
        order = _merged(order, missed, turn, start=start)
        return [*order, new]
    return _merged(order, [*missed, new], turn, start=start, end=len(order) - 1)


def continued(file: Content, path: str, finished: Iterable[Known], hand: Sequence[Tail]) -> Known:
    """What is known of a file that was opened now: where another name or another copy of it was read to, else nothing."""
    identity = file.stat().identity
    for known in finished:
        if known.identity == identity and known.is_content_of(file):
            return known
    for tail in hand:
        known = tail.after(0)
        if not tail.lines and not tail.unended() and known.is_certain() and known.is_content_of(file):
            return known.at(path, identity)
    return Known.unread(path, file)


def older(first: Known, listed: Sequence[Listed]) -> list[Known]:
    """The rotated files that were there before the first file, and were written to no earlier than it: all of it done."""
    return [Known.whole(first.path, file) for file in _written_between(listed, first.path, first.since, None)]


# --- which file is which ---


def _found_again(saved: Sequence[Known], listed: Sequence[Listed]) -> tuple[dict[int, Found], set[int]]:
    """By index: where the files are of which content is remembered; and which of them hold something else, or are a copy.

    All are looked for under their inode before any is looked for in a copy, so that no copy hides a file.
    """
    found: dict[int, Found] = {}
    changed: set[int] = set()
    taken: set[Identity] = set()
    for index, known in enumerate(saved):
        for file in [] if known.is_blank() else _of_inode(known, listed):
            identity = file.stat().identity
            # device numbers may change when a machine starts: what was read proves more, where anything was
            if identity in taken or not (known.head.size or known.device in (0, identity[0])):
                continue
            if known.is_content_of(file):
                found[index] = _as_found(known, file)
                taken.add(identity)
                changed.discard(index)
                break
            changed.add(index)
    for index, known in enumerate(saved):
        if index not in found and (index in changed or known.is_certain()):
            copy = _copy_of(known, listed, taken)
            if copy is not None:
                found[index] = _as_found(known, copy)
                taken.add(copy.stat().identity)
                changed.add(index)
    return found, changed


def _copy_of(known: Known, listed: Iterable[Listed], taken: Collection[Identity]) -> Listed | None:
    """The longest file in its folder that holds what was read from it: a copy made before it was emptied, or a restored one."""
    if not known.head.size:
        return None
    copies = [
        file
        for file in _in_same_folder(known.path, listed)
        if _may_be_named(file.path, known.path)
        and file.stat().identity not in taken
        and file.stat().size >= known.position
        and known.is_content_of(file)
    ]
    return max(copies, key=lambda file: file.stat().size, default=None)


def _in_same_folder(path: str, listed: Iterable[Listed]) -> Iterator[Listed]:
    """Those in the same folder."""
    folder = os.path.dirname(path)
    return (file for file in listed if os.path.dirname(file.path) == folder)


def _as_found(known: Known, file: Listed) -> Found:
    stat = file.stat()
    return Found(file, replace(known.at(known.path, stat.identity), since=known.since or stat.modified))


def _of_inode(known: Known, listed: Iterable[Listed]) -> list[Listed]:
    """The files with its inode: where it was, then in its folder under other names."""
    same = [file for file in _in_same_folder(known.path, listed) if file.stat().identity[1] == known.inode]
    return sorted(same, key=lambda file: file.path != known.path)


def _may_be_named(path: str, own: str) -> bool:
    """Is it a name that the file at `own` may have been given, or a copy of it: one that begins with its own, or is rotated?"""
    name, base = os.path.basename(path), os.path.basename(own)
    return name.startswith(base) or rotated_name(name, base) is not None


def _written_between(listed: Iterable[Listed], path: str, since: int, until: int | None) -> list[Listed]:
    """The rotated files of `path` that were written to last in that time. In the same moment they may have come after it."""
    base = os.path.basename(path)
    return [
        file
        for file in _in_same_folder(path, listed)
        if rotated_name(os.path.basename(file.path), base) is not None
        and file.stat().modified >= since
        and (until is None or file.stat().modified <= until)
    ]


def _is_known(file: Content, others: Iterable[Content], finished: Iterable[Known]) -> bool:
    """Was it read to its end, or is it a copy of one of the others?"""
    return any(known.was(file) for known in finished) or (
        file.stat().size > 0 and any(is_copy(file, other) for other in others)
    )


def _missed(
    previous: Known,
    until: int | None,
    hand: Sequence[Placed],
    current: Content,
    finished: Sequence[Known],
    listed: Sequence[Listed],
) -> list[Found]:
    """Files that were created and rotated unseen: since `previous`, and before the one the path leads to now."""
    open_ones = [place for place in hand if isinstance(place, Found) or not place.over]
    others = {place.file.stat().identity: place.file for place in open_ones}
    others[current.stat().identity] = current
    # of what was shortened since, a copy has the rest, which is read when that is seen
    shortened = [
        known
        for place in open_ones
        if isinstance(place, Tail) and not (known := place.after(0)).is_content_of(place.file) and known.head.size
    ]
    return [
        Found(file, Known.unread(previous.path, file))
        for file in _written_between(listed, previous.path, previous.since, until)
        if file.stat().identity not in others
        and not _is_known(file, others.values(), finished)
        and not any(known.is_content_of(file) for known in shortened)
    ]


# --- which comes first ---

_Turn = Callable[[Placed], tuple[int, str]]


def _turns(listed: Iterable[Listed], path: str) -> _Turn:
    """By the names that they have now: what has its own is the latest, what was removed came before what is there."""
    base = os.path.basename(path)
    names = {file.stat().identity: os.path.basename(file.path) for file in _in_same_folder(path, listed)}

    def turn(place: Placed) -> tuple[int, str]:
        name = names.get(place.file.stat().identity)
        return _REMOVED if name is None else rotated_name(name, base) or _OWN_NAME

    return turn


@dataclass(frozen=True, slots=True)
class _When:
    """When a file was written to last, 0 while nothing is in it, and how late it is by its name."""

    modified: int
    turn: tuple[int, str]

    @classmethod
    def of(cls, place: Placed, turn: _Turn) -> _When:
        if isinstance(place, Tail) and not (known := place.after(0)).is_content_of(place.file):
            return cls(known.since, _REMOVED)  # what was read of it is older than what is in it now
        return cls(place.file.stat().modified if place.begun() else 0, turn(place))

    def is_after(self, other: _When) -> bool:
        """The time at which an empty file was made proves little: the writer may still use the one before it. Then its name decides."""
        if self.modified and other.modified:
            return (self.modified, self.turn) > (other.modified, other.turn)
        return self.turn > other.turn


def _merged(
    order: Sequence[Placed], new: Sequence[Found], turn: _Turn, *, start: int = 0, end: int | None = None
) -> list[Placed]:
    """`order`, which stays as it is, with `new` put in: between `start` and `end`, and behind all that were read from.

    Files follow each other as they were written to last; by their names where that was in the same moment, and when nothing
    is in one of the two.
    """
    end = len(order) if end is None else end
    start = max([start, *(index + 1 for index, place in enumerate(order[:end]) if place.touched())])
    between = [(_When.of(place, turn), place) for place in order[start:end]]
    arrived: list[tuple[_When, Placed]] = [(_When.of(place, turn), place) for place in new]
    for when, place in sorted(arrived, key=lambda item: (not item[0].modified, item[0].modified, item[0].turn)):
        at = len(between)
        while at and between[at - 1][0].is_after(when):
            at -= 1
        between.insert(at, (when, place))
    return [*order[:start], *(place for _, place in between), *order[end:]]
