"""Migrations only add, so that processes of the previous version keep working during a rolling update."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.core.management import call_command
from django.core.management.commands import migrate
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import AddField
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import CaptureQueriesContext


def test_a_column_that_was_added_can_be_left_out_by_code_that_does_not_know_it() -> None:
    added = [
        apps.get_model(label, operation.model_name)._meta.get_field(operation.name)
        for (label, _), migration in MigrationLoader(None).disk_migrations.items()
        if type(migration).__module__.startswith("apps.") and not migration.initial
        for operation in migration.operations
        if isinstance(operation, AddField)
    ]
    assert len(added) > 10
    assert [str(field) for field in added if not field.null and not field.has_db_default()] == []


@pytest.mark.postgres
@pytest.mark.django_db
@pytest.mark.parametrize("applied", [True, False])
def test_migrate_ends_with_fresh_statistics_where_it_applied_something(
    monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    states = iter([{}, {("jobs", "0001"): None}] if applied else [{}, {}])
    monkeypatch.setattr(MigrationRecorder, "applied_migrations", lambda recorder: next(states))
    monkeypatch.setattr(migrate.Command, "handle", lambda command, *args, **options: None)
    with CaptureQueriesContext(connection) as captured:
        call_command("migrate")
    wanted = ["ANALYZE"] if applied and connection.vendor == "postgresql" else []
    assert [query["sql"] for query in captured] == wanted
