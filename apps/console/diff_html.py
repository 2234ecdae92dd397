"""Line diff as HTML; unchanged regions are collapsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from django.utils.safestring import SafeString, mark_safe

from apps.core.line_diff import DiffLine, LineDiff
from apps.core.visible import visible_html

CONTEXT = 3
"""Number of unchanged lines shown before and after a change."""
SHOWN_LINES = 10_000
"""A diff with more changed lines than this is shown on a page of its own; the largest spec has fewer."""

_CLASS = {"+": "diff-added", "-": "diff-removed", " ": "diff-kept"}
_SIGN = {"+": "+", "-": "−", " ": " "}
_HEAD = (
    '<div class="diff"><table><thead class="visually-hidden"><tr><th scope="col">Old line</th><th scope="col">New line</th>'
    '<th scope="col">Change</th><th scope="col">Text</th></tr></thead>'
)


def folded(lines: Sequence[DiffLine]) -> Iterator[tuple[str, Sequence[DiffLine] | int]]:
    """Yield (tag, consecutive lines with that tag), and (`…`, count) for collapsed unchanged lines."""
    runs = [(tag, list(run)) for tag, run in groupby(lines, key=lambda line: line.tag)]
    for number, (tag, run) in enumerate(runs):
        if tag != " ":
            yield tag, run
            continue
        first = CONTEXT if number else 0
        last = CONTEXT if number < len(runs) - 1 else 0
        left_out = len(run) - first - last
        if left_out <= 1:
            yield tag, run
            continue
        if first:
            yield tag, run[:first]
        yield "…", left_out
        if last:
            yield tag, run[-last:]


def diff_html(diff: LineDiff) -> SafeString:
    """Render a diff as a table. Text is escaped, and hidden characters are made visible."""
    parts = [_HEAD]
    for tag, run in folded(diff.lines):
        if isinstance(run, int):
            parts.append(f'<tbody class="diff-folded"><tr><td colspan="4">{run} unchanged lines</td></tr></tbody>')
            continue
        sign = _SIGN[tag]
        parts.append(f'<tbody class="{_CLASS[tag]}">')
        parts += [
            f"<tr><td>{line.old_number or ''}<td>{line.new_number or ''}<td>{sign}<td><code>{visible_html(line.text)}</code>"
            for line in run
        ]
        parts.append("</tbody>")
    parts.append("</table></div>")
    return mark_safe("".join(parts))  # noqa: S308 - numbers and escaped texts
