"""Migration operations that enforce rules with database triggers, on SQLite and PostgreSQL.

A later migration that makes SQLite rebuild a table drops its triggers: repeat the operation there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from apps.core.wake import CHANNEL, EVERYTHING


def _quoted(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


class TriggerOperation(Operation):
    """Base of the operations: SQL per database vendor, reversible, no change of model state."""

    reduces_to_sql = True
    reversible = True

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Does nothing: triggers are not part of the model state."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        for statement in self.create(schema_editor.connection.vendor):
            schema_editor.execute(statement, params=None)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        for statement in self.drop(schema_editor.connection.vendor):
            schema_editor.execute(statement, params=None)

    def create(self, vendor: str) -> list[str]:
        """Return the statements that create the triggers on `vendor` (`sqlite` or `postgresql`)."""
        raise NotImplementedError

    def drop(self, vendor: str) -> list[str]:
        """Return the statements that drop the triggers."""
        raise NotImplementedError


def _sqlite(name: str, table: str, event: str, message: str, when: str = "") -> list[str]:
    condition = f" WHEN {when}" if when else ""
    return [
        f'CREATE TRIGGER "{name}" BEFORE {event} ON "{table}" FOR EACH ROW{condition} '
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    ]


def _postgres(name: str, table: str, event: str, message: str, when: str = "") -> list[str]:
    condition = f" WHEN ({when})" if when else ""
    return [
        f'CREATE OR REPLACE FUNCTION "{name}"() RETURNS trigger LANGUAGE plpgsql AS $body$ '
        f"BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END $body$",
        f'CREATE TRIGGER "{name}" BEFORE {event} ON "{table}" FOR EACH ROW{condition} EXECUTE FUNCTION "{name}"()',
    ]


def _refuse(vendor: str, name: str, table: str, event: str, message: str, when: str = "") -> list[str]:
    make = _sqlite if vendor == "sqlite" else _postgres
    return make(name, table, event, message, when)


def _drop(vendor: str, name: str, table: str) -> list[str]:
    if vendor == "sqlite":
        return [f'DROP TRIGGER IF EXISTS "{name}"']
    return [f'DROP TRIGGER IF EXISTS "{name}" ON "{table}"', f'DROP FUNCTION IF EXISTS "{name}"()']


class AppendOnly(TriggerOperation):
    """Rows of `table` can be inserted and read, never changed or deleted."""

    def __init__(self, table: str) -> None:
        self.table = table

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (type(self).__name__, [self.table], {})

    def _names(self) -> tuple[str, str]:
        return f"{self.table}_no_update", f"{self.table}_no_delete"

    def create(self, vendor: str) -> list[str]:
        update, delete = self._names()
        message = f"{self.table} is append-only"
        return _refuse(vendor, update, self.table, "UPDATE", message) + _refuse(
            vendor, delete, self.table, "DELETE", message
        )

    def drop(self, vendor: str) -> list[str]:
        return [s for name in self._names() for s in _drop(vendor, name, self.table)]

    def describe(self) -> str:
        return f"Make {self.table} append-only"


class Immutable(TriggerOperation):
    """Rows of `table` can't be changed (or only outside `columns`). Deleting them is allowed.

    `label` distinguishes a trigger that a later migration adds from existing ones.
    """

    def __init__(self, table: str, columns: Iterable[str] | None = None, label: str = "") -> None:
        self.table = table
        self.columns = tuple(columns) if columns is not None else None
        self.label = label
        self.name = f"{table}_{label}_immutable" if label else f"{table}_immutable"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (type(self).__name__, [self.table], {"columns": self.columns, "label": self.label})

    def create(self, vendor: str) -> list[str]:
        event = "UPDATE"
        if self.columns:
            event += " OF " + ", ".join(f'"{c}"' for c in self.columns)
        return _refuse(vendor, self.name, self.table, event, f"{self.table} is immutable")

    def drop(self, vendor: str) -> list[str]:
        return _drop(vendor, self.name, self.table)

    def describe(self) -> str:
        return f"Make {self.table} immutable"


class LegalMoves(TriggerOperation):
    """`column` of `table` is `initial` in a new row and changes only along `moves` ({from: [to, …]})."""

    def __init__(self, table: str, column: str, initial: str, moves: Mapping[str, Iterable[str]]) -> None:
        self.table = table
        self.column = column
        self.initial = initial
        self.moves = {source: sorted(targets) for source, targets in sorted(moves.items())}

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (type(self).__name__, [self.table, self.column, self.initial, self.moves], {})

    def create(self, vendor: str) -> list[str]:
        old, new = f'OLD."{self.column}"', f'NEW."{self.column}"'
        legal = " OR ".join(
            f"({old} = {_quoted([source])} AND {new} IN ({_quoted(targets)}))"
            for source, targets in self.moves.items()
            if targets
        )
        moved = f"{old} <> {new} AND NOT ({legal or '1 = 0'})"
        born = f"{new} <> {_quoted([self.initial])}"
        message = f"illegal move of {self.table}.{self.column}"
        return _refuse(
            vendor, f"{self.table}_legal_moves", self.table, f'UPDATE OF "{self.column}"', message, moved
        ) + _refuse(vendor, f"{self.table}_first_state", self.table, "INSERT", message, born)

    def drop(self, vendor: str) -> list[str]:
        return _drop(vendor, f"{self.table}_legal_moves", self.table) + _drop(
            vendor, f"{self.table}_first_state", self.table
        )

    def describe(self) -> str:
        return f"Guard the moves of {self.table}.{self.column}"


class Announce(TriggerOperation):
    """Notify listeners (`apps.core.wake`) of changes of `table` on PostgreSQL, also of changes made by other versions
    or by hand.

    SQLite needs no trigger: there every commit wakes the listeners. The channel is `prefix` and the row's `column`, or
    all channels if more than a hundred rows change in one statement. With `columns`, only when one of these changes;
    without, also for new rows.
    """

    MOST_NAMED = 100

    def __init__(self, table: str, prefix: str, column: str, columns: Iterable[str] = ()) -> None:
        self.table = table
        self.prefix = prefix
        self.column = column
        self.columns = tuple(columns)

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return (type(self).__name__, [self.table, self.prefix, self.column, self.columns], {})

    def _of(self, event: str, tables: str, changed: str) -> list[str]:
        name = f"{self.table}_announce_{event.lower()}"
        return [
            f'CREATE OR REPLACE FUNCTION "{name}"() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN '  # noqa: S608
            f"IF (SELECT count(*) FROM (SELECT 1 FROM {changed} LIMIT {self.MOST_NAMED + 1}) AS few) "
            f"> {self.MOST_NAMED} THEN PERFORM pg_notify('{CHANNEL}', '{EVERYTHING}'); "
            f"ELSE PERFORM pg_notify('{CHANNEL}', '{self.prefix}' || named) "
            f'FROM (SELECT DISTINCT c."{self.column}"::text AS named FROM {changed}) AS names; END IF; '
            "RETURN NULL; END $body$",
            f'CREATE TRIGGER "{name}" AFTER {event} ON "{self.table}" REFERENCING {tables} FOR EACH STATEMENT '
            f'EXECUTE FUNCTION "{name}"()',
        ]

    def create(self, vendor: str) -> list[str]:
        if vendor == "sqlite":
            return []
        differs = " OR ".join(f'c."{name}" IS DISTINCT FROM b."{name}"' for name in self.columns) or "true"
        updated = f"after_rows AS c JOIN before_rows AS b ON b.id = c.id AND ({differs})"
        made = [] if self.columns else self._of("INSERT", "NEW TABLE AS after_rows", "after_rows AS c")
        return [
            *made,
            *self._of("UPDATE", "OLD TABLE AS before_rows NEW TABLE AS after_rows", updated),
            *self._of("DELETE", "OLD TABLE AS before_rows", "before_rows AS c"),
        ]

    def drop(self, vendor: str) -> list[str]:
        if vendor == "sqlite":
            return []
        events = ("update", "delete") if self.columns else ("insert", "update", "delete")
        return [s for event in events for s in _drop(vendor, f"{self.table}_announce_{event}", self.table)]

    def describe(self) -> str:
        return f"Announce changes of {self.table}"
