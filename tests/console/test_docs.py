"""What the docs and the migrations state about the state machines and the API's paths is what the code does."""

import re
from pathlib import Path

import pytest
from django.db.migrations.loader import MigrationLoader

from apps.access.roles import Permission
from apps.approvals.models import Approval
from apps.console.management.commands.paths import endpoints, with_table
from apps.console.management.commands.state_diagrams import diagrams
from apps.core.fsm import legal_moves, status_field
from apps.core.triggers import LegalMoves
from apps.deployments.models import Deployment
from apps.jobs.models import Job
from tests.core.test_conventions import api_routes

ROOT = Path(__file__).resolve().parents[2]


def test_the_diagrams_in_the_docs_are_current():
    assert diagrams() in (ROOT / "docs" / "architecture.md").read_text()
    assert diagrams("Job") in (ROOT / "docs" / "jobs.md").read_text()


def test_the_picture_of_the_jobs_has_every_move_of_a_job():
    picture = (ROOT / "docs" / "jobs.md").read_text().split("```mermaid")[1].split("```")[0]
    drawn = set(re.findall(r"^ +(\w+) -->(?:\|[^|]*\|)? (\w+)$", picture, re.MULTILINE))
    legal = legal_moves(Job)
    states = set(legal)
    assert {move for move in drawn if set(move) <= states} == {(a, b) for a in legal for b in legal[a]}


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


def test_the_list_of_paths_is_current():
    page = (ROOT / "docs" / "paths.md").read_text()
    assert page == with_table(page), "run: manage.py paths --write docs/paths.md"


def test_the_list_of_paths_has_every_route_with_what_it_needs_and_does():
    listed = endpoints()
    assert len({each.path for each in listed}) == len(api_routes())
    assert all(each.summary for each in listed)
    families = {"signed in", "the agent's own key", "an enrollment token"}
    assert {each.permission for each in listed} <= families | {str(permission.value) for permission in Permission}
    needs = {(each.method, each.path): each.permission for each in listed}
    assert needs["POST", "ENV/agents"] == "an enrollment token"
    assert needs["GET", "ENV/agents"] == "ViewEnvironment"
    assert needs["POST", "ENV/deployments"] == "OperateEnvironment"
    assert needs["POST", "/agents/{agent_id}/heartbeat"] == "the agent's own key"
    assert ("GET", "ENV/jobs/{job_id}/retry") not in needs
