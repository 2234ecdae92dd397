"""A complete quorum never waits, and a vote that no longer counts comes back to its voter."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import time_machine

from apps.access.models import Membership
from apps.access.principals import person_principal
from apps.access.roles import Role
from apps.access.services import change_account_state, change_role
from apps.approvals.models import Approval
from apps.approvals.services import check_credential, sweep_quorums
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.deployments.models import Confirmation, Deployment
from apps.tenancy.scope import Scope
from tests.approvals.test_approvals import ask, vote
from tests.deployments.world import World
from tests.support import Tenant, give_role, make_person

pytestmark = pytest.mark.django_db


def give(tenant: Tenant, who: str, role: str) -> None:
    """Alice gives `who` another role, through the service."""
    row = Membership.objects.get(user=tenant.people[who], organization=tenant.organization)
    change_role(actor=tenant.principal("alice"), scope=Scope(tenant.organization), member_id=row.pk, role=role)


def inbox(tenant: Tenant, who: str) -> list[str]:
    return [row["id"] for row in tenant.caller(who).get("/me/approvals").json()["results"]]


def two_of_two_but_one_lost_the_role(tenant: Tenant) -> Approval:
    """Bob requested; carol approved and lost her role, then alice approved: one of two votes counts."""
    approval = ask(tenant, tenant.prod)
    vote(tenant, "carol", approval)
    give(tenant, "carol", "viewer")
    assert vote(tenant, "alice", approval).json()["status"] == "pending"
    return approval


def check_approved(tenant: Tenant, approval: Approval) -> None:
    row = Approval.objects.get(pk=approval.pk)
    assert row.status == "approved"
    assert row.events.order_by("pk").last().trigger == "quorum_restored"
    voters = sorted(str(tenant.people[name].pk) for name in ("alice", "carol"))
    assert list(check_credential(row, at_ms=clock.now_ms()).issued_by) == voters
    assert Deployment.objects.get(pk=row.deployment_id).status == "approved"
    assert AuditEvent.objects.filter(action="approval.approved", target=f"approval:{row.pk}").count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_a_role_that_returns_completes_the_quorum_at_once(tenant: Tenant) -> None:
    approval = two_of_two_but_one_lost_the_role(tenant)
    give(tenant, "carol", "operator")
    check_approved(tenant, approval)


@pytest.mark.django_db(transaction=True)
def test_so_does_an_account_that_is_active_again(tenant: Tenant) -> None:
    approval = ask(tenant, tenant.prod)
    vote(tenant, "carol", approval)
    root = person_principal(make_person("root", is_superuser=True))
    change_account_state(actor=root, user_id=tenant.people["carol"].pk, active=False)
    assert vote(tenant, "alice", approval).json()["status"] == "pending"
    change_account_state(actor=root, user_id=tenant.people["carol"].pk, active=True)
    check_approved(tenant, approval)


def test_the_sweep_completes_missed_quorums(tenant: Tenant) -> None:
    approval = two_of_two_but_one_lost_the_role(tenant)
    assert sweep_quorums(clock.now()) == 0
    Membership.objects.filter(user=tenant.people["carol"]).update(role="operator")
    assert sweep_quorums(clock.now()) == 1
    check_approved(tenant, approval)
    assert sweep_quorums(clock.now()) == 0


def test_an_expired_one_is_not_completed(tenant: Tenant) -> None:
    approval = two_of_two_but_one_lost_the_role(tenant)
    Membership.objects.filter(user=tenant.people["carol"]).update(role="operator")
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, minutes=1), tick=False):
        assert sweep_quorums(clock.now()) == 0
    assert Approval.objects.get(pk=approval.pk).status == "pending"


def confirm(approval: Approval, deployment_id: Any) -> None:
    """The approval's only target reports that it runs that deployment (None: nothing)."""
    [agent_id] = approval.target_agent_ids
    Confirmation.objects.update_or_create(
        agent_id=agent_id,
        defaults={
            "environment": approval.environment,
            "deployment_id": deployment_id,
            "sequence": 1,
            "confirmed_at": clock.now(),
        },
    )


def test_a_base_that_moves_brings_the_approval_back_into_the_voters_inbox_and_back_again_out_of_it(
    tenant: Tenant,
) -> None:
    approval = ask(tenant, tenant.prod)
    other = ask(tenant, tenant.prod, "b:drop")
    vote(tenant, "carol", approval)
    assert inbox(tenant, "carol") == [str(other.pk)]
    confirm(approval, other.deployment_id)
    assert str(approval.pk) in inbox(tenant, "carol")
    shown = tenant.caller("carol").get(f"{tenant.path(tenant.prod)}/approvals/{approval.pk}").json()
    assert [d["counts"] for d in shown["decisions"]] == [False]
    confirm(approval, None)
    assert str(approval.pk) not in inbox(tenant, "carol")
    # voting again on what is shown counts
    confirm(approval, other.deployment_id)
    assert vote(tenant, "carol", approval).status_code == 200
    assert str(approval.pk) not in inbox(tenant, "carol")


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_a_rollback_that_moves_the_base_back_completes_the_quorum(tenant: Tenant) -> None:
    tenant.people["dora"] = make_person("dora")
    give_role(tenant.people["dora"], Role.OPERATOR, tenant.organization)
    world = World(tenant, tenant.prod)
    world.enroll(1)

    def roll_out(rule: str) -> str:
        made = world.request(world.bundle(rule))
        for who in ("dora", "alice"):
            assert world.decide(made, who=who).status_code == 200
        world.work()
        world.settle()
        assert world.status(made) == "active"
        return made

    first = roll_out("x:drop")
    wanted = world.request(world.bundle("y:drop"))
    world.decide(wanted, who="carol")
    give(tenant, "carol", "viewer")
    world.decide(wanted, who="alice")
    later = roll_out("z:drop")
    give(tenant, "carol", "operator")
    assert world.approval(wanted)["status"] == "pending"
    world.act(later, "rollback")
    world.settle()
    assert world.status(later) == "rolled_back"
    approval = Approval.objects.get(pk=world.row(wanted).approval_id)
    assert (approval.status, approval.base) == ("approved", {world.hosts[0].id: first})
    assert approval.events.order_by("pk").last().trigger == "quorum_restored"
