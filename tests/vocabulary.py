"""Checks that packages use standard English: no word of the project's former private dialect in names and docstrings.

`make lint` runs it through `tests.checks`. The words and their replacements are in `WORDS` and `PHRASES`. A legitimate
use goes into `ALLOWED` with its reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("apps", "bench", "byteor", "tests")
"""The checked packages: all Python code of the project."""

WORDS = {
    "told": "sent, notified, reported",
    "tell": "notify, report",
    "tells": "reports, shows",
    "said": "stated, reported",
    "say": "state, report",
    "says": "states, reports",
    "saying": "stating",
    "somebody": "a user, another user",
    "nobody": "no user, none",
    "whoever": "the user that",
    "anybody": "any user, other users",
    "everybody": "every user",
    "gone": "deleted, revoked",
    "shall": "should, must",
    "standing": "current, cached",
    "beside": "next to, with",
    "borne": "verified",
    "doer": "actor",
    "room": "app, space",
    "rooms": "apps",
    "floor": "layer",
    "floors": "layers",
    "house": "project",
    "door": "endpoint",
    "doors": "endpoints",
    "lately": "recently",
    "unheard": "silent",
    "hear": "receive",
    "heard": "received, notified",
    "believed": "accepted, verified",
    "foresee": "preview",
    "aside": "except",
    "believe": "accept, verify",
    "untold": "unreported",
}
"""A forbidden word, and what to write instead."""

PHRASES = {
    "taken back": "revoked, cancelled",
    "take back": "revoke, cancel",
    "takes back": "revokes, cancels",
    "on record": "recorded",
    "let in": "allowed",
    "lets in": "allows",
    "stands on": "runs, depends on",
    "stands for": "identifies",
}
"""A forbidden phrase of docstrings, and what to write instead."""

ALLOWED: dict[tuple[str, str], str] = {
    ("apps/approvals/models.py", "told"): "the name of a database column",
    ("apps/deployments/models.py", "gone"): "the name of a database column",
}
"""(path of a file, word): why the file may use it."""

_NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_TEXT_WORDS = re.compile(r"[A-Za-z]+")
_QUOTED = re.compile(r"`[^`]*`")


class Finding(NamedTuple):
    """A use of a forbidden word."""

    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}': write {self.instead}"


def findings_in(path: str, source: str) -> list[Finding]:
    """Return the forbidden words in the names that `source` defines and in its docstrings."""
    found = []
    for line, word, instead in _uses(ast.parse(source)):
        if (path, word) not in ALLOWED:
            found.append(Finding(path, line, word, instead))
    return sorted(set(found), key=lambda finding: finding.line)


def findings() -> list[Finding]:
    """Return the forbidden words in `PACKAGES`. Migrations are not checked: they are never changed."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in file.parts:
                found += findings_in(file.relative_to(ROOT).as_posix(), file.read_text())
    return found


def _uses(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        for name in _names(node):
            for part in _NAME_PARTS.findall(name):
                if part.lower() in WORDS:
                    yield node.lineno, part.lower(), WORDS[part.lower()]  # type: ignore[attr-defined]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from _in_text(node.value.value, node.lineno)


def _names(node: ast.AST) -> Iterator[str]:
    """The names that `node` itself defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


def _in_text(text: str, line: int) -> Iterator[tuple[int, str, str]]:
    """The forbidden words and phrases of a docstring. Code in backquotes is not prose."""
    prose = _QUOTED.sub("``", text)
    for number, content in enumerate(prose.split("\n")):
        for word in _TEXT_WORDS.findall(content):
            if word.lower() in WORDS:
                yield line + number, word.lower(), WORDS[word.lower()]
    flat = " ".join(prose.lower().split())
    for phrase, instead in PHRASES.items():
        if re.search(rf"\b{phrase}\b", flat):
            yield line, phrase, instead


def main() -> int:
    """Print the findings. 0 when there are none."""
    found = findings()
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
