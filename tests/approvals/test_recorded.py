"""What each decisirecordeds, what a credential states, and the exact edges of windows and of the policy."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
import time_machine

from apps.access.models import Membership, RoleGrant, User
from apps.access.policy import Denied
from apps.approvals import services
from apps.approvals.models import Approval, ApprovalStatus, Decision, PolicyWeakening
from apps.approvals.policy import (
    FIELDS,
    default_policy,
    policy_of,
    weakened_until,
    weaker_in,
)
from apps.approvals.selectors import Deciders, current_facts, digest_of
from apps.approvals.services.credentials import check_credential
from apps.approvals.services.transitions import note
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, Forbidden, NotFound, StateConflict, Unprocessable
from apps.core.ids import new_id
from apps.deployments.models import Deployment
from apps.runtime import trust
from apps.tenancy.models import Environment, Organization, Project
from tests.approvals.test_approvals import ask, vote
from tests.support import Tenant, give_role, make_person

pytestmark = pytest.mark.django_db

START = dt.datetime(2026, 5, 4, 10, 0, tzinfo=dt.UTC)


def last_event(approval: Approval) -> tuple[str, str, str, str, str]:
    """Of the newest event: from, to, trigger, reason, actor's name."""
    row = approval.events.order_by("pk").last()
    assert row is not None
    return row.from_status, row.to_status, row.trigger, row.reason, row.actor_name


def audited(approval: Approval, action: str) -> AuditEvent:
    return AuditEvent.objects.get(action=action, target=f"approval:{approval.pk}")


# --- records ---


def test_a_request_keeps_what_was_requested_and_is_recorded(tenant: Tenant) -> None:
    with time_machine.travel(START, tick=False):
        approval = ask(tenant, tenant.prod, agents=2)
    bob = tenant.people["bob"]
    assert (approval.status, approval.action, approval.required_approvals) == ("pending", "deploy", 2)
    assert (approval.requested_by, approval.created_at, approval.decided_at) == (bob.pk, START, None)
    assert approval.expires_at == START + dt.timedelta(hours=24)
    assert approval.policy == default_policy("prod") == policy_of(tenant.prod)
    assert approval.target_agent_ids == sorted(approval.target_agent_ids)
    assert len(approval.target_agent_ids) == 2
    assert approval.base == dict.fromkeys(approval.target_agent_ids)
    assert last_event(approval) == ("", "pending", "requested", "", approval.requested_by_name)
    event = audited(approval, "approval.requested")
    assert event.actor == f"person:{bob.pk}"
    assert event.details == {
        "from": "",
        "to": "pending",
        "trigger": "requested",
        "reason": "",
        "subject": f"deployment:{approval.deployment_id}",
    }
    assert event.resource_scope["environment_id"] == str(tenant.prod.pk)


def test_an_approval_at_quorum_is_recorded_with_a_credential_of_everything_that_was_decided(tenant: Tenant) -> None:
    with time_machine.travel(START, tick=False):
        approval = ask(tenant, tenant.prod)
    later = START + dt.timedelta(hours=2)
    with time_machine.travel(later, tick=False):
        for who, comment in (("carol", " one "), ("alice", "two")):
            vote(tenant, who, approval, comment=comment)
    approval.refresh_from_db()
    carol, alice = (tenant.people[who] for who in ("carol", "alice"))
    votes = [
        (d.reviewer_id, d.reviewer_name, d.decision, d.comment, d.digest, d.decided_at)
        for d in Decision.objects.order_by("pk")
    ]
    digest = approval.shown_digest
    assert [(v[0], *v[2:]) for v in votes] == [
        (carol.pk, "approve", "one", digest, later),
        (alice.pk, "approve", "two", digest, later),
    ]
    assert all(v[1] for v in votes)
    assert (approval.status, approval.decided_at) == ("approved", later)
    assert last_event(approval)[:4] == ("pending", "approved", "quorum", "two")
    assert audited(approval, "approval.approved").actor == f"person:{alice.pk}"
    claims = check_credential(approval, at_ms=clock.to_ms(later))
    assert claims == trust.CredentialClaims(
        kid=approval.credential_kid,
        org_id=str(tenant.organization.pk),
        project_id=str(tenant.project.pk),
        environment_id=str(tenant.prod.pk),
        environment_posture="prod",
        spec_hash=approval.spec_hash,
        capabilities=tuple(approval.capabilities),
        issued_at=clock.to_ms(later),
        expires_at=clock.to_ms(later + dt.timedelta(hours=8)),
        issued_by=tuple(sorted((str(carol.pk), str(alice.pk)))),
        approval_id=str(approval.pk),
        config_hash=approval.config_hash,
        subject=f"deployment:{approval.deployment_id}",
        targets_sha256=trust.targets_sha256(approval.target_agent_ids),
    )
    assert approval.credential_expires_at == later + dt.timedelta(hours=8)
    # it is for these targets, this subject and this configuration only
    for name, value, code in (
        ("target_agent_ids", [str(new_id())], "credential_wrong_subject"),
        ("deployment_id", new_id(), "credential_wrong_subject"),
        ("config_hash", "sha256:0", "credential_wrong_config"),
        ("spec_hash", "sha256:0", "credential_wrong_spec"),
        ("capabilities", ["action:exec"], "credential_missing_capability"),
        ("environment", tenant.staging, "credential_wrong_environment"),
    ):
        other = Approval.objects.get(pk=approval.pk)
        setattr(other, name, value)
        with pytest.raises(trust.TrustError) as error:
            check_credential(other, at_ms=clock.to_ms(later))
        assert error.value.code == code


def test_a_denial_is_recorded_with_its_comment(tenant: Tenant) -> None:
    approval = ask(tenant, tenant.prod)
    with time_machine.travel(START, tick=False):
        vote(tenant, "carol", approval, "deny", comment=" no ")
    approval.refresh_from_db()
    assert (approval.status, approval.decided_at, approval.credential) == ("denied", START, "")
    assert last_event(approval)[:4] == ("pending", "denied", "denied", "no")
    assert audited(approval, "approval.denied").details["reason"] == "no"
    deployment = Deployment.objects.get(pk=approval.deployment_id)
    assert deployment.status == "denied"
    assert "no" in deployment.status_reason


def test_a_denial_needs_no_comment_where_the_policy_asks_for_none(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    give_role(make_person("dora"), "operator", tenant.organization)
    assert alice.patch(tenant.path(tenant.prod), {"policy": {"require_comment_on_deny": False}}).status_code == 200
    approval = ask(tenant, tenant.prod)
    assert vote(tenant, "carol", approval, "deny").json()["status"] == "denied"


def test_where_no_reviewer_is_required_the_policy_approves_and_is_recorded(tenant: Tenant) -> None:
    with time_machine.travel(START, tick=False):
        approval = ask(tenant, tenant.dev)
    assert (approval.status, approval.decided_at) == ("approved", START)
    assert last_event(approval) == ("pending", "approved", "policy", "", "policy")
    claims = check_credential(approval, at_ms=clock.to_ms(START))
    assert claims.issued_by == ("policy",)
    with pytest.raises(StateConflict, match="The policy requires reviewers"):
        services.approve_by_policy(approval=ask(tenant, tenant.staging))


def test_a_withdrawal_and_a_revocation_are_recorded_with_their_own_words(tenant: Tenant) -> None:
    scope, bob, carol = tenant.scope(tenant.staging), tenant.principal("bob"), tenant.principal("carol")
    mine = ask(tenant)
    with time_machine.travel(START, tick=False):
        done = services.revoke(actor=bob, scope=scope, approval_id=mine.pk, comment=" never mind ")
    assert (done.status, done.decided_at) == ("revoked", START)
    assert last_event(mine)[:4] == ("pending", "revoked", "withdrawn", "never mind")
    second = ask(tenant, None, "b:drop")
    vote(tenant, "carol", second)
    with pytest.raises(Unprocessable) as refused:
        services.revoke(actor=carol, scope=scope, approval_id=second.pk, comment="  ")
    assert refused.value.code == "comment_required"
    services.revoke(actor=carol, scope=scope, approval_id=second.pk, comment="wait")
    assert last_event(second)[:4] == ("approved", "revoked", "revoked", "wait")
    with pytest.raises(StateConflict):
        services.revoke(actor=carol, scope=scope, approval_id=second.pk, comment="wait")
    assert audited(second, "approval.revoked").actor == f"person:{tenant.people['carol'].pk}"


def test_only_the_requester_withdraws_and_each_other_attempt_is_recorded(tenant: Tenant) -> None:
    approval, scope = ask(tenant), tenant.scope(tenant.staging)
    with pytest.raises(Forbidden) as refused:
        services.revoke(actor=tenant.principal("carol"), scope=scope, approval_id=approval.pk, comment="x")
    assert refused.value.code == "permission_denied"
    [event] = AuditEvent.objects.filter(outcome="denied")
    assert (event.action, event.target, event.details) == (
        "approval.withdraw",
        f"approval:{approval.pk}",
        {"reason": "not_the_requester"},
    )
    assert event.organization_id == tenant.organization.pk
    assert event.resource_scope == scope.as_dict()


def test_an_approval_of_another_environment_is_not_found(tenant: Tenant) -> None:
    approval, scope = ask(tenant), tenant.scope(tenant.prod)
    shown = current_facts(approval).shown_digest
    for call in (
        lambda: services.decide(
            actor=tenant.principal("carol"),
            scope=scope,
            approval_id=approval.pk,
            decision="approve",
            shown_digest=shown,
        ),
        lambda: services.revoke(actor=tenant.principal("bob"), scope=scope, approval_id=approval.pk, comment="x"),
    ):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(ValueError, match="abstain"):
        services.decide(
            actor=tenant.principal("carol"),
            scope=tenant.scope(tenant.staging),
            approval_id=approval.pk,
            decision="abstain",
            shown_digest=shown,
        )
    assert Approval.objects.get(pk=approval.pk).status == "pending"


# --- windows ---


@pytest.mark.parametrize(("early", "status"), [(1, "approved"), (0, "expired")])
def test_the_time_to_decide_ends_exactly_at_its_end(tenant: Tenant, early: int, status: str) -> None:
    approval = ask(tenant)
    with time_machine.travel(approval.expires_at - dt.timedelta(milliseconds=early), tick=False):
        answer = vote(tenant, "carol", approval)
    assert Approval.objects.get(pk=approval.pk).status == status
    if status == "expired":
        assert (answer.status_code, answer.json()["code"]) == (409, "approval_expired")
        assert last_event(approval) == ("pending", "expired", "expired", "", "byteor")
        assert vote(tenant, "carol", approval).json()["code"] == "approval_expired"
        assert not Decision.objects.exists()


@pytest.mark.parametrize(("early", "status"), [(1, "revoked"), (0, "expired")])
def test_a_withdrawal_too_late_expires_the_request(tenant: Tenant, early: int, status: str) -> None:
    approval = ask(tenant)
    with time_machine.travel(approval.expires_at - dt.timedelta(milliseconds=early), tick=False):
        answer = tenant.caller("bob").post(f"{tenant.path(tenant.staging)}/approvals/{approval.pk}/revoke", {})
    assert Approval.objects.get(pk=approval.pk).status == status
    assert answer.json().get("code") == ("approval_expired" if status == "expired" else None)


def test_the_sweeps_take_what_is_due_to_the_millisecond(tenant: Tenant) -> None:
    approval = ask(tenant)
    just_before = approval.expires_at - dt.timedelta(milliseconds=1)
    with time_machine.travel(just_before, tick=False):
        assert services.expire_due(clock.now()) == 0
        assert services.expire(environment_id=tenant.staging.pk, approval_id=approval.pk) is False
    with time_machine.travel(approval.expires_at, tick=False):
        assert services.expire_due(clock.now()) == 1
    assert Approval.objects.get(pk=approval.pk).decided_at == approval.expires_at
    second = ask(tenant, None, "b:drop")
    vote(tenant, "carol", second)
    second.refresh_from_db()
    ends = second.credential_expires_at
    assert ends is not None
    assert services.notify_expired_credentials(ends - dt.timedelta(milliseconds=1)) == 0
    assert services.notify_expired_credentials(ends) == 1
    assert Approval.objects.get(pk=second.pk).credential_expiry_told is True


# --- requests ---


def test_a_request_that_too_few_can_decide_names_how_many_and_from_when(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    give_role(make_person("dora"), "operator", tenant.organization)
    assert alice.patch(tenant.path(tenant.prod), {"policy": {"required_approvals": 3}}).status_code == 200
    with time_machine.travel(START, tick=False):
        assert alice.patch(tenant.path(tenant.prod), {"policy": {"required_approvals": 2}}).status_code == 200
        # of two reasons to wait, the one that lasts longer counts
        User.objects.filter(pk=tenant.people["alice"].pk).update(password_reset_at=START - dt.timedelta(hours=1))
        assert weakened_until(tenant.prod) == {tenant.people["alice"].pk: START + dt.timedelta(hours=24)}
        tenant.prod.refresh_from_db()
        tenant.prod.policy = {**tenant.prod.policy, "required_approvals": 3}
        tenant.prod.save(update_fields=["policy"])
        with pytest.raises(Conflict) as refused:
            ask(tenant, tenant.prod)
    assert refused.value.code == "no_eligible_reviewer"
    assert refused.value.extra == {"not_yet": 1, "earliest_at": "2026-05-05T10:00:00.000Z"}
    assert "requires 3 approvals, and 2 people can decide" in str(refused.value)
    with time_machine.travel(START + dt.timedelta(hours=24), tick=False):
        assert weakened_until(tenant.prod) == {}
        assert ask(tenant, tenant.prod).required_approvals == 3
    with time_machine.travel(START + dt.timedelta(hours=24) - dt.timedelta(milliseconds=1), tick=False):
        assert set(weakened_until(tenant.prod)) == {tenant.people["alice"].pk}
    assert weakened_until(tenant.staging) == {}


def test_a_weakened_policy_is_stored_with_what_was_weaker(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    policy = {"required_approvals": 1, "approval_window_hours": 48}
    assert alice.patch(tenant.path(tenant.prod), {"policy": policy}).status_code == 200
    row = PolicyWeakening.objects.get()
    assert (row.environment_id, row.user_id) == (tenant.prod.pk, tenant.people["alice"].pk)
    assert row.details == {"required_approvals": [2, 1], "approval_window_hours": [24, 48]}


# --- the policy, as rules ---


def test_the_default_policy_of_each_posture_and_its_form() -> None:
    rest = {
        "prevent_self_approval": True,
        "approval_window_hours": 24,
        "credential_ttl_hours": 8,
        "require_comment_on_deny": True,
    }
    for posture, required in (("dev", 0), ("staging", 1), ("prod", 2)):
        assert default_policy(posture) == {"required_approvals": required, **rest}
    assert {field.name for field in FIELDS} == set(default_policy("dev"))


@pytest.mark.parametrize(
    ("name", "strong", "weak"),
    [
        ("required_approvals", 2, 1),
        ("prevent_self_approval", True, False),
        ("require_comment_on_deny", True, False),
        ("approval_window_hours", 24, 25),
        ("credential_ttl_hours", 8, 9),
    ],
)
def test_each_field_weakens_in_one_direction(name: str, strong: Any, weak: Any) -> None:
    policy = default_policy("prod")
    assert weaker_in({**policy, name: strong}, {**policy, name: weak}) == {name: [strong, weak]}
    assert weaker_in({**policy, name: weak}, {**policy, name: strong}) == {}
    assert weaker_in({**policy, name: weak}, {**policy, name: weak}) == {}


@pytest.mark.parametrize(
    ("name", "low", "high"), [("approval_window_hours", 1, 24 * 30), ("credential_ttl_hours", 1, 24 * 7)]
)
def test_the_edges_of_a_range_are_in_it(tenant: Tenant, name: str, low: int, high: int) -> None:
    alice = tenant.caller("alice")
    for value, status in ((low, 200), (high, 200), (low - 1, 400), (high + 1, 400)):
        answer = alice.patch(tenant.path(tenant.prod), {"policy": {name: value}})
        assert answer.status_code == status, value
        if status == 400:
            [error] = answer.json()["errors"]
            assert (error["pointer"], error["code"]) == (f"/policy/{name}", "invalid")


def test_as_many_approvals_may_be_required_as_there_are_people_who_can_decide(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    for value, status in ((3, 200), (4, 422)):
        assert alice.patch(tenant.path(tenant.prod), {"policy": {"required_approvals": value}}).status_code == status


# --- the digest ---


def test_the_digest_covers_everything_that_is_decided_on_and_no_order() -> None:
    def digest(facts: dict[str, Any]) -> str:
        approval = Approval(**facts)
        return digest_of(approval, approval.base)

    facts: dict[str, Any] = {
        "id": uuid.UUID(int=1),
        "spec_hash": "s",
        "config_hash": "c",
        "capabilities": ["a", "b"],
        "strategy": {"type": "all"},
        "policy": {"required_approvals": 1},
        "target_agent_ids": ["x", "y"],
        "base": {"x": None},
    }
    whole = digest(facts)
    assert whole.startswith("sha256:")
    assert digest({**facts, "capabilities": ["b", "a"], "target_agent_ids": ["y", "x"]}) == whole
    others: dict[str, Any] = {
        "id": uuid.UUID(int=2),
        "spec_hash": "t",
        "config_hash": "d",
        "capabilities": ["a"],
        "strategy": {"type": "one"},
        "policy": {"required_approvals": 2},
        "target_agent_ids": ["x"],
        "base": {"x": "1"},
    }
    assert {name for name, value in others.items() if digest({**facts, name: value}) == whole} == set()
    assert set(ApprovalStatus.values) == {"pending", "approved", "denied", "expired", "revoked"}


def test_an_approval_is_of_a_deployment_or_of_a_replay() -> None:
    one = uuid.UUID(int=1)
    deployment, replay = Approval(deployment_id=one), Approval(replay_id=one)
    assert (deployment.subject_id, deployment.subject) == (one, f"deployment:{one}")
    assert (replay.subject_id, replay.subject) == (one, f"replay:{one}")


def test_a_credential_is_for_the_project_and_organization_of_its_environment(tenant: Tenant) -> None:
    approval = ask(tenant)
    vote(tenant, "carol", approval)
    approval.refresh_from_db()
    now = clock.now_ms()
    assert check_credential(approval, at_ms=now).project_id == str(tenant.project.pk)
    for project in (
        Project(pk=new_id(), organization=tenant.organization),
        Project(pk=tenant.project.pk, organization=Organization(pk=tenant.other_organization.pk)),
    ):
        moved = Approval.objects.get(pk=approval.pk)
        moved.environment = Environment.objects.get(pk=tenant.staging.pk)
        moved.environment.project = project
        with pytest.raises(trust.TrustError):
            check_credential(moved, at_ms=now)


def test_a_stale_decision_names_the_digest_to_decide_on(tenant: Tenant) -> None:
    approval = ask(tenant)
    answer = vote(tenant, "carol", approval, shown_digest="sha256:" + "0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_decision")
    assert answer.json()["shown_digest"] == current_facts(approval).shown_digest


def test_the_facts_of_one_approval_are_those_that_are_read_with_others(tenant: Tenant) -> None:
    approval = ask(tenant, tenant.prod)
    vote(tenant, "carol", approval)
    for status in ("pending", "approved"):
        approval.refresh_from_db()
        assert approval.status == status
        facts = Deciders(approval).current_facts()
        assert facts == current_facts(approval)
        assert facts.approvals == len(facts.counting) == (1 if status == "pending" else 2)
        assert facts.counts(tenant.people["carol"].pk)
        assert not facts.counts(tenant.people["bob"].pk)
        vote(tenant, "alice", approval)


def test_who_may_not_decide_is_refused_for_that_and_not_for_a_wait(tenant: Tenant) -> None:
    approval = ask(tenant)
    for who, reason in (("bob", "self_approval"), ("vera", "permission_denied"), ("carol", "reviewer_recently_added")):
        User.objects.filter(pk=tenant.people[who].pk).update(password_reset_at=clock.now())
        verdict = Deciders(approval).may_approve(tenant.principal(who))
        assert isinstance(verdict, Denied)
        assert verdict.reason == reason


def test_a_refused_transition_names_what_was_tried(tenant: Tenant) -> None:
    approval = ask(tenant)
    vote(tenant, "carol", approval)
    for word, to in (("deny", "denied"), ("approve", "approved")):
        answer = vote(tenant, "alice", approval, word, comment="x").json()
        assert (answer["code"], answer["from"], answer["to"]) == ("invalid_transition", "approved", to)


def test_a_cancelled_deployment_revokes_its_approval_with_the_reason(tenant: Tenant) -> None:
    approval = ask(tenant)
    vote(tenant, "carol", approval)
    path = f"{tenant.path(tenant.staging)}/deployments/{approval.deployment_id}/cancel"
    with time_machine.travel(clock.now() + dt.timedelta(minutes=1), tick=False):
        assert tenant.caller("bob").post(path, {"reason": "not now"}).status_code == 200
        at = clock.now()
    approval.refresh_from_db()
    assert (approval.status, approval.decided_at) == ("revoked", at)
    assert last_event(approval)[:4] == ("approved", "revoked", "cancelled", "not now")
    denied = ask(tenant, None, "b:drop")
    vote(tenant, "carol", denied, "deny", comment="no")
    services.revoke_for_subject(actor=tenant.principal("bob"), approval=denied, comment="x", trigger="cancelled")
    assert Approval.objects.get(pk=denied.pk).status == "denied"


def test_a_role_is_recently_granted_for_exactly_a_day(tenant: Tenant) -> None:
    approval = ask(tenant)
    row = RoleGrant.objects.create(
        organization=tenant.organization,
        user=make_person("dora"),
        role="operator",
        granted_by=new_id(),
        granted_at=START,
    )
    for early, expected in ((1, [row]), (0, [])):
        with time_machine.travel(START + dt.timedelta(hours=24) - dt.timedelta(milliseconds=early), tick=False):
            assert [r for r in Deciders(approval).recently_granted() if r.user_id == row.user_id] == expected


def test_who_weakened_the_policy_and_lost_the_role_takes_no_place(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    assert alice.patch(tenant.path(tenant.prod), {"policy": {"required_approvals": 1}}).status_code == 200
    tenant.prod.refresh_from_db()
    Membership.objects.filter(user=tenant.people["alice"]).update(role="viewer")
    assert ask(tenant, tenant.prod).status == "pending", "carol can decide"


def test_where_self_approval_is_allowed_the_requester_counts_among_those_who_can_decide(tenant: Tenant) -> None:
    policy = {"required_approvals": 2, "prevent_self_approval": False}
    assert tenant.caller("alice").patch(tenant.path(), {"policy": policy}).status_code == 200
    tenant.dev.refresh_from_db()
    assert ask(tenant, tenant.dev).status == "pending", "bob and carol can decide"


def test_long_names_and_reasons_are_cut_to_their_columns(tenant: Tenant) -> None:
    approval = ask(tenant)
    actor = ActorRef("person", "i" * 300, "n" * 300)
    note(approval, from_="pending", to="denied", actor=actor, trigger="denied", reason="r" * 3000)
    row = approval.events.order_by("pk").last()
    assert row is not None
    assert (row.actor, row.actor_name, row.reason) == (("person:" + "i" * 300)[:200], "n" * 200, "r" * 2000)
