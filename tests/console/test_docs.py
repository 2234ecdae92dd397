"""What the docs and the migrations say of the state machines is what the code does."""

from pathlib import Path

import pytest
from django.db.migrations.loader import MigrationLoader

from apps.approvals.models import Approval
from apps.console.management.commands.state_diagrams import diagrams
from apps.core.fsm import legal_moves, status_field
from apps.core.triggers import LegalMoves
from apps.deployments.models import Deployment
from apps.jobs.models import Job

ROOT = Path(__file__).resolve().parents[2]


def test_the_diagrams_in_the_architecture_page_are_current():
    assert diagrams() in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("model", [Deployment, Approval, Job])
def test_the_trigger_knows_exactly_the_moves_of_the_code(model):
    operations = [
        op
        for migration in MigrationLoader(None).disk_migrations.values()
        for op in migration.operations
        if isinstance(op, LegalMoves) and op.table == model._meta.db_table
    ]
    newest = operations[-1]
    assert {k: set(v) for k, v in newest.moves.items() if v} == {k: set(v) for k, v in legal_moves(model).items() if v}
    assert newest.initial == status_field(model).initial
