"""A line diff in time linear in the size of both texts.

Common beginnings and ends are cut off. Lines that occur once on both sides are fixed points that split the rest
(patience diff). A region without such lines is compared by Myers' algorithm up to a small distance, or reported as
replaced. Each step counts against a budget of `STEPS_PER_LINE` per line. When it is used up, the rest is reported as
replaced, which is always correct, if coarse.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEPS_PER_LINE, STEPS_AT_LEAST = 24, 5_000
"""A comparison takes at most this many steps per line of both texts, plus `STEPS_AT_LEAST`."""
_FARTHEST = 48
"""Maximum number of removed and added lines in a region without unique lines; above it, the region is reported as replaced."""


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a diff. `tag` is `+`, `-` or a space. The line number is None on the side that lacks the line."""

    tag: str
    old_number: int | None
    new_number: int | None
    text: str

    def as_dict(self) -> dict[str, object]:
        """`{tag, old, new, text}`."""
        return {"tag": self.tag, "old": self.old_number, "new": self.new_number, "text": self.text}


@dataclass(frozen=True, slots=True)
class LineDiff:
    """Every line of both texts in order, the numbers of added and removed lines, and the steps taken."""

    lines: tuple[DiffLine, ...]
    added: int
    removed: int
    steps: int

    @property
    def changed(self) -> bool:
        """Whether the texts differ."""
        return bool(self.added or self.removed)


def split_lines(text: str) -> list[str]:
    """Split `text` at line feeds only, without a last empty line."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def line_diff(old: str, new: str) -> LineDiff:
    """Compare `old` and `new` line by line.

    The lines marked `-` and the common lines are the lines of `old`; those marked `+` and the common lines are the
    lines of `new`. Takes at most `STEPS_PER_LINE × lines of both + STEPS_AT_LEAST` steps.
    """
    before, after = split_lines(old), split_lines(new)
    numbers: dict[str, int] = {}
    a = [numbers.setdefault(line, len(numbers)) for line in before]
    b = [numbers.setdefault(line, len(numbers)) for line in after]
    comparison = _Comparison(a, b)
    lines: list[DiffLine] = []
    i = j = 0
    added = removed = 0
    for x, y in [*comparison.matches(), (len(a), len(b))]:
        removed += x - i
        added += y - j
        lines += [DiffLine("-", n + 1, None, before[n]) for n in range(i, x)]
        lines += [DiffLine("+", None, n + 1, after[n]) for n in range(j, y)]
        if x < len(a) and y < len(b):
            lines.append(DiffLine(" ", x + 1, y + 1, before[x]))
        i, j = x + 1, y + 1
    return LineDiff(tuple(lines), added, removed, comparison.steps)


@dataclass(frozen=True, slots=True)
class _Region:
    """A part of both texts between matched lines."""

    a_from: int
    a_to: int
    b_from: int
    b_to: int

    @property
    def size(self) -> int:
        return self.a_to - self.a_from + self.b_to - self.b_from


class _Comparison:
    def __init__(self, a: Sequence[int], b: Sequence[int]) -> None:
        self.a, self.b = a, b
        self.steps = len(a) + len(b)  # numbering the lines
        self.budget = STEPS_PER_LINE * (len(a) + len(b)) + STEPS_AT_LEAST

    def _pay(self, steps: int) -> bool:
        """Return whether the budget allows `steps` more, and count them if so."""
        if self.steps + steps > self.budget:
            return False
        self.steps += steps
        return True

    def matches(self) -> list[tuple[int, int]]:
        """Return the index pairs of equal lines, increasing on both sides."""
        found: list[tuple[int, int]] = []
        waiting = [_Region(0, len(self.a), 0, len(self.b))]
        while waiting:
            region, kept = self._trim(waiting.pop())
            found += kept
            if region.a_from == region.a_to or region.b_from == region.b_to:
                continue
            anchors = self._anchors(region)
            if anchors is None:
                continue
            if not anchors:
                found += self._near(region)
                continue
            found += anchors
            i, j = region.a_from, region.b_from
            for x, y in [*anchors, (region.a_to, region.b_to)]:
                if x > i and y > j:
                    waiting.append(_Region(i, x, j, y))
                i, j = x + 1, y + 1
        found.sort()
        return found

    def _trim(self, region: _Region) -> tuple[_Region, list[tuple[int, int]]]:
        a, b = self.a, self.b
        i, a_to, j, b_to = region.a_from, region.a_to, region.b_from, region.b_to
        kept: list[tuple[int, int]] = []
        while i < a_to and j < b_to and a[i] == b[j] and self._pay(1):
            kept.append((i, j))
            i, j = i + 1, j + 1
        while i < a_to and j < b_to and a[a_to - 1] == b[b_to - 1] and self._pay(1):
            a_to, b_to = a_to - 1, b_to - 1
            kept.append((a_to, b_to))
        return _Region(i, a_to, j, b_to), kept

    def _anchors(self, region: _Region) -> list[tuple[int, int]] | None:
        """Return the longest increasing sequence of lines that occur once on each side, or None over budget."""
        if not self._pay(2 * region.size):
            return None
        here, twice = _once(self.a, region.a_from, region.a_to)
        there, also_twice = _once(self.b, region.b_from, region.b_to)
        pairs = [
            (place, there[line])
            for line, place in here.items()
            if line in there and line not in twice and line not in also_twice
        ]
        if len(pairs) < 2:
            return pairs
        if not self._pay(len(pairs) * len(pairs).bit_length()):
            return None
        return _longest_increasing(pairs)

    def _near(self, region: _Region) -> list[tuple[int, int]]:
        """Myers' comparison of a region without unique lines. Empty if the sides differ too much."""
        a, b = self.a, self.b
        n, m = region.a_to - region.a_from, region.b_to - region.b_from
        if abs(n - m) > _FARTHEST:
            return []
        reached = {1: 0}
        trail: list[dict[int, int]] = []
        for distance in range(_FARTHEST + 1):
            trail.append(dict(reached))
            # copying the row, and one lookup per diagonal
            if not self._pay(2 * (distance + 1)):
                return []
            for k in range(-distance, distance + 1, 2):
                down = k == -distance or (k != distance and reached[k - 1] < reached[k + 1])
                x = reached[k + 1] if down else reached[k - 1] + 1
                y = x - k
                while x < n and y < m and a[region.a_from + x] == b[region.b_from + y]:
                    if not self._pay(1):
                        return []
                    x, y = x + 1, y + 1
                reached[k] = x
                if x >= n and y >= m:
                    return [(region.a_from + x, region.b_from + y) for x, y in _kept(trail, n, m)]
        return []


def _once(lines: Sequence[int], start: int, end: int) -> tuple[dict[int, int], set[int]]:
    """Return {line: index} of lines that occur once, and the lines that occur more than once."""
    places: dict[int, int] = {}
    twice: set[int] = set()
    for place in range(start, end):
        if lines[place] in places:
            twice.add(lines[place])
        else:
            places[lines[place]] = place
    return places, twice


def _longest_increasing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of `pairs` (increasing on the first side) that increases on the second side too."""
    ends: list[int] = []
    ends_at: list[int] = []
    before: list[int] = []
    for index, (_, y) in enumerate(pairs):
        length = bisect_left(ends, y)
        before.append(ends_at[length - 1] if length else -1)
        ends[length : length + 1] = [y]
        ends_at[length : length + 1] = [index]
    chain: list[tuple[int, int]] = []
    index = ends_at[-1]
    while index >= 0:
        chain.append(pairs[index])
        index = before[index]
    return chain[::-1]


def _kept(trail: list[dict[int, int]], n: int, m: int) -> Iterator[tuple[int, int]]:
    """Return the matches on the shortest path of Myers' search, last first."""
    x, y = n, m
    for distance in range(len(trail) - 1, -1, -1):
        reached = trail[distance]
        k = x - y
        down = k == -distance or (k != distance and reached[k - 1] < reached[k + 1])
        from_k = k + 1 if down else k - 1
        from_x = reached[from_k]
        from_y = from_x - from_k
        while x > from_x and y > from_y:
            x, y = x - 1, y - 1
            yield x, y
        x, y = from_x, from_y
