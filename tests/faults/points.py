"""Every fault point in the code, found by reading the code."""

from __future__ import annotations

import ast
import os
import sys
from collections import Counter
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[2]


def _calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "fault_point"]


def points() -> dict[str, str]:
    """{name: file} of every `fault_point("name")` below apps/. AssertionError for a name that is no literal, or is used twice."""
    found: list[tuple[str, str]] = []
    for path in sorted((ROOT / "apps").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for call in _calls(path):
            named = call.args[0] if len(call.args) == 1 else None
            assert isinstance(named, ast.Constant), f"{where}:{call.lineno}: the name of a fault point is a literal"
            found.append((str(named.value), where))
    twice = [name for name, n in Counter(name for name, _ in found).items() if n > 1]
    assert not twice, f"used more than once: {twice}"
    return dict(found)


def listed() -> str:
    """The points as docs/faults.md lists them."""
    from tests.faults.cases import CASES

    roads = {case.point: (case.road.__doc__ or "").strip().splitlines()[0] for case in reversed(CASES)}
    rows = [f"| `{name}` | `{where}` | {roads.get(name, '')} |" for name, where in sorted(points().items())]
    return "\n".join(["| point | in | reached when |", "|---|---|---|", *rows])


def page(text: str) -> str:
    """The page with the list as it is in the code."""
    head, _, rest = text.partition("<!-- points -->\n")
    return f"{head}<!-- points -->\n{listed()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


PAGE = ROOT / "docs" / "faults.md"

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
    django.setup()
    fresh = page(PAGE.read_text())
    if "--write" in sys.argv:
        PAGE.write_text(fresh)
    sys.exit(PAGE.read_text() != fresh)
