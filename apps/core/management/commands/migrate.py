"""Django's `migrate`, followed by ANALYZE."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder


class Command(migrate.Command):
    """Analyzes every applied table at the end (a sample of each, seconds at any size).

    PostgreSQL plans with statistics that autovacuum gathers later: for a new column or index, possibly long after it is
    used.
    """

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        before = set(MigrationRecorder(connection).applied_migrations())
        super().handle(*args, **options)
        if connection.vendor == "postgresql" and set(MigrationRecorder(connection).applied_migrations()) != before:
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
