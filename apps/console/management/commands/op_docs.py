"""`manage.py op_docs [--write]`: the tables of ops and rules in docs/spec.md, and docs/config.schema.json, from the code."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from apps.runtime.config import config_schema
from apps.runtime.ops import KINDS, OpKind
from apps.runtime.ops.rules import ACTIONS

DOCS = Path(__file__).resolve().parents[4] / "docs"
COMMAND = "manage.py op_docs --write"
END = "<!-- end -->"


def op_table() -> str:
    """One row for each op."""
    rows = [
        (
            _code(kind.form),
            kind.does,
            " and ".join(_code(setting.name) for setting in kind.settings) or "nothing",
            _code(kind.capability) if kind.capability else "none",
            kind.since,
        )
        for kind in KINDS.values()
    ]
    return _table(("op", "what it does", "needs in the config", "capability", "agents from"), rows)


def example_table() -> str:
    """Examples of each op's output, checked by a test."""
    rows = [
        (
            _code(_named(kind, example.argument)),
            _code(json.dumps(example.settings)) if example.settings else "none",
            _code(example.record.decode()),
            _code(example.result.decode()) if example.result is not None else "refused",
        )
        for kind in KINDS.values()
        for example in kind.examples
    ]
    return _table(("op", "settings", "record", "leaves the stage as"), rows)


def action_table() -> str:
    """One row for each action of a rule."""
    rows = [(_code(f"field:{action.form}"), action.leaves, action.since) for action in ACTIONS.values()]
    return _table(("rule", "what stands there afterwards", "agents from"), rows)


TABLES = {"ops": op_table, "examples of ops": example_table, "rules": action_table}


def block(name: str) -> str:
    """A table with its markers, as in the reference."""
    return f"{_begin(name)}\n\n{TABLES[name]()}\n\n{END}"


def _begin(name: str) -> str:
    return f"<!-- {name}: {COMMAND} -->"


def _named(kind: OpKind, argument: str | None) -> str:
    return kind.name if argument is None else f"{kind.name}:{argument}"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def with_tables(text: str) -> str:
    """`text` with the content between the markers of each table regenerated."""
    for name in TABLES:
        head, _, rest = text.partition(_begin(name))
        _, _, tail = rest.partition(END)
        text = f"{head}{block(name)}{tail}"
    return text


def schema_file() -> str:
    """The content of the published JSON Schema of configs."""
    return json.dumps(config_schema(), indent=2) + "\n"


class Command(BaseCommand):
    """Print the tables, or write them and the config schema to docs/."""

    help = "Write the reference of ops, rules and configs from the code."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["write"]:
            self.stdout.write("\n\n".join(make() for make in TABLES.values()))
            return
        spec = DOCS / "spec.md"
        spec.write_text(with_tables(spec.read_text()))
        (DOCS / "config.schema.json").write_text(schema_file())
