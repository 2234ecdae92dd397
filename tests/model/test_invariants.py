"""The invariants hold on an ordinary road, and each of them notices when it is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from apps.core.ids import new_id
from apps.core.triggers import AppendOnly, Immutable, LegalMoves
from apps.jobs.services import enqueue
from tests import invariants
from tests.deployments.world import World
from tests.support import trigger_operations

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def road(staging: World) -> World:
    """One deployment approved and active, a second that went back, a third denied, two waiting for a decision."""
    world = staging
    world.roll_out_approved(world.bundle("a:drop"))
    second = world.roll_out_approved(world.bundle("b:drop"))
    assert world.act(second, "rollback").status_code == 200
    world.settle()
    assert world.decide(world.request(world.bundle("c:drop")), "deny").status_code == 200
    world.request(world.bundle("d:drop"))
    world.request(world.bundle("e:drop"))
    return world


@pytest.mark.postgres
def test_they_hold_after_an_ordinary_road(road: World) -> None:
    invariants.check(at_rest=True)


BREAKS: dict[str, tuple[str, str]] = {  # rule: (how it is broken, the message then)
    "every_state_of_a_deployment": (
        "DELETE FROM deployments_deploymentevent WHERE to_status = 'deploying'",
        "has a gap between building and deploying",
    ),
    "every_state_of_an_approval": (
        "DELETE FROM approvals_approvalevent WHERE to_status = 'denied'",
        "is denied, and its last event says pending",
    ),
    "every_state_of_a_job": ("DELETE FROM jobs_jobattempt WHERE from_status = 'queued'", "was queued and moved from"),
    "one_outcome": ("DELETE FROM approvals_decision WHERE decision = 'approve'", "wants 1, issued by"),
    "live_approval": (
        "UPDATE deployments_deployment SET built_at_ms = built_at_ms - 90000000",
        "outside of its credential's time",
    ),
    "approval_and_deployment": (
        "UPDATE deployments_deployment SET status = 'approved' WHERE status = 'pending_approval'",
        "is pending and its deployment approved",
    ),
    "cap": ("UPDATE tenancy_environment SET max_in_flight_deployments = 1", "let in"),
    "sequences": ("UPDATE deployments_deployment SET sequence = -sequence", "was numbered"),
    "awaited_build": (
        "UPDATE deployments_deployment SET status = 'building' WHERE status = 'denied'",
        "nobody builds it",
    ),
    "kept": ("DELETE FROM blobs_storedblob", "a bundle that is not kept"),
    "directive": ("UPDATE deployments_deployment SET status = 'denied' WHERE status = 'active'", "which is denied"),
    "current": ("UPDATE tenancy_environment SET current_deployment_id = NULL", "names None as current"),
    "audit": ("UPDATE audit_auditevent SET actor_name = 'nobody' WHERE seq = 3", "its content was changed"),
    "held": ("UPDATE jobs_job SET attempt_running = true", "still leased"),
}


@pytest.fixture
def unguarded() -> None:
    """Without the triggers that would refuse to break anything (inside the test's own transaction)."""
    with connection.cursor() as cursor:
        for op in trigger_operations(AppendOnly, Immutable, LegalMoves):
            for statement in op.drop(connection.vendor):
                cursor.execute(statement)


def test_each_notices_what_it_is_for(road: World, unguarded: None) -> None:
    unnoticed = {}
    for rule, (sql, message) in BREAKS.items():
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(sql)
            found = invariants.violations(at_rest=True)
            if not any(message in problem for problem in found):
                unnoticed[rule] = found
            transaction.set_rollback(True)
    assert not unnoticed
    invariants.check(at_rest=True)


def test_they_notice_what_only_the_history_shows(road: World, monkeypatch: Any) -> None:
    """A second deployment that began before the first had settled, a build that was not approved, a job that no worker has."""
    read: Callable[[invariants.Snapshot], list[invariants.Step]] = invariants.Snapshot.steps.func  # type: ignore[attr-defined]

    def settled_late(world: invariants.Snapshot) -> list[invariants.Step]:
        steps = read(world)
        first = min(s.id for s in steps if s.to == "deploying")
        late = next(s for s in steps if s.id == first and s.to == "active")
        return [s for s in steps if s is not late] + [late]

    with monkeypatch.context() as patched:
        patched.setattr(invariants.Snapshot, "steps", property(settled_late))
        assert any("was changing it" in problem for problem in invariants.violations())
    with monkeypatch.context() as patched:
        unapproved = property(lambda world: [s for s in read(world) if s.kind == "deployment"])
        patched.setattr(invariants.Snapshot, "steps", unapproved)
        assert any("while its approval was None" in problem for problem in invariants.violations())
    place = {"organization_id": road.tenant.organization.pk, "environment_id": road.env.pk}
    enqueue(type="deploy_bundle_build", subject_id=new_id(), **place)
    assert any("nobody's" in problem for problem in invariants.violations(at_rest=True))
    assert not invariants.violations()
