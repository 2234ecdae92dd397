"""Every fault point in the code, found by reading the code."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

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
