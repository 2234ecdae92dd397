"""Approvals over HTTP: who may decide, on what and when, and that the state machine can't be bypassed."""

from __future__ import annotations

import datetime as dt

import pytest
import time_machine
from django.db import DatabaseError, connection, transaction

from apps.access.models import Membership
from apps.access.principals import SYSTEM, Principal
from apps.agents.models import Agent
from apps.approvals import services
from apps.approvals.models import Approval, ApprovalStatus, Decision, PolicyWeakening
from apps.approvals.policy import default_policy, weakened_until, weaker_in
from apps.approvals.selectors import Deciders, approvals_to_decide
from apps.approvals.services import decisions, expiry_and_revocation
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, Forbidden, NotFound, StateConflict
from apps.core.fsm import advance, legal_moves
from apps.core.ids import new_id
from apps.deployments.models import Deployment
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.requests import Selector
from apps.pipelines.services import create_draft, promote_draft
from apps.runtime import trust
from apps.signing.services import trusted_keys
from apps.tenancy.models import Environment
from tests.flows.world import SPEC, config
from tests.support import Caller, Tenant, give_role, in_threads, make_person

pytestmark = pytest.mark.django_db


def ask(tenant: Tenant, environment=None, *rules: str, who: str = "bob", agents: int = 1) -> Approval:
    """Request a deployment as `who`; return its approval."""
    environment = environment or tenant.staging
    scope, actor = tenant.scope(environment), tenant.principal(who)
    for n in range(agents - Agent.objects.filter(environment=environment).count()):
        Agent.objects.create(environment=environment, name=f"host-{n}")
    draft = create_draft(actor=actor, scope=scope, name="orders", spec=SPEC)
    version = promote_draft(actor=actor, scope=scope, draft_id=draft.pk).version
    bundle = create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config(*(rules or ("a:drop",))))
    asked = request_deployment(actor=actor, scope=scope, bundle_id=bundle.pk, targets=Selector(everyone=True))
    found: Approval = Approval.objects.get(pk=asked.approval_id)
    return found


def vote(tenant: Tenant, who: str | Caller, approval: Approval, word: str = "approve", **body):
    caller = tenant.caller(who) if isinstance(who, str) else who
    path = f"{tenant.path(approval.environment)}/approvals/{approval.pk}"
    given = {"shown_digest": services.current_facts(approval).shown_digest, **body}
    return caller.post(f"{path}/{word}", given)


PAIRS = [(a, b) for a in ApprovalStatus.values for b in ApprovalStatus.values]
WAYS = {"approved": "approve", "denied": "deny", "expired": "expire", "revoked": "revoke"}


def bring_to(approval: Approval, status: str) -> Approval:
    if status != "pending":
        advance(approval, WAYS[status])
    return approval


@pytest.mark.postgres
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_of_states(tenant, source, target):
    approval = bring_to(ask(tenant), source)
    legal = target in legal_moves(Approval)[source]
    with pytest.raises(AttributeError):
        approval.status = target
    with pytest.raises(AttributeError):
        Approval.objects.filter(pk=approval.pk).update(status=target)
    if not legal and source != target:
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE approvals_approval SET status = %s WHERE status = %s", [target, source])
    if target == "pending":
        return
    if legal:
        assert advance(approval, WAYS[target]).to == target
    else:
        with pytest.raises(StateConflict):
            advance(approval, WAYS[target])
    assert Approval.objects.get(pk=approval.pk).status == (target if legal else source)


@pytest.mark.parametrize(
    ("who", "status", "code", "action", "reason"),
    [
        ("bob", 403, "self_approval", "approval.decide", "self_approval"),
        ("vera", 403, "permission_denied", "access.OperateEnvironment", "viewer lacks OperateEnvironment"),
        ("charlie", 404, "not_found", "access.OperateEnvironment", "no role on the project"),
    ],
)
def test_a_user_who_may_not_decide_is_refused_and_it_is_recorded(tenant, who, status, code, action, reason):
    approval = ask(tenant)
    for word in ("approve", "deny"):
        answer = vote(tenant, who, approval, word, comment="x")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert Approval.objects.get(pk=approval.pk).status == "pending"
    [event] = AuditEvent.objects.filter(outcome="denied")
    of_approval = action == "approval.decide"
    assert (event.actor, event.action, event.details) == (f"person:{tenant.people[who].pk}", action, {"reason": reason})
    assert event.target == (f"approval:{approval.pk}" if of_approval else f"environment:{tenant.staging.pk}")
    assert event.organization_id == (None if who == "charlie" else tenant.organization.pk)


MACHINES = [
    pytest.param(SYSTEM, id="system"),
    pytest.param(Principal("agent", new_id(), "host", via="key"), id="agent"),
    pytest.param(Principal("person", None, "nobody"), id="a person without an account"),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_decision_needs_a_person(tenant, machine):
    """No credential of a machine is accepted at the API's paths for people; the service refuses it for every caller."""
    approval, scope = ask(tenant), tenant.scope(tenant.staging)
    shown = services.current_facts(approval).shown_digest
    for word in ("approve", "deny"):
        with pytest.raises(Forbidden) as refused:
            services.decide(
                actor=machine, scope=scope, approval_id=approval.pk, decision=word, comment="x", shown_digest=shown
            )
        assert refused.value.code == "person_required"
    assert [e.details for e in AuditEvent.objects.filter(outcome="denied")] == [{"reason": "person_required"}]
    assert list(approvals_to_decide(machine)) == []
    assert Approval.objects.get(pk=approval.pk).status == "pending"
    assert not Decision.objects.exists()


def test_a_revocation_needs_a_person(tenant):
    approval = ask(tenant)
    for machine in (SYSTEM, Principal("agent", new_id(), "host", via="key")):
        with pytest.raises(Forbidden) as refused:
            services.revoke(actor=machine, scope=tenant.scope(tenant.staging), approval_id=approval.pk, comment="x")
        assert refused.value.code == "person_required"
    assert Approval.objects.get(pk=approval.pk).status == "pending"


@pytest.mark.parametrize(("who", "error"), [("vera", Forbidden), ("charlie", NotFound)])
def test_the_service_itself_answers_403_to_members_and_404_to_outsiders(tenant, who, error):
    approval, scope = ask(tenant), tenant.scope(tenant.staging)
    with pytest.raises(error):
        services.decide(
            actor=tenant.principal(who), scope=scope, approval_id=approval.pk, decision="approve", shown_digest="x"
        )
    verdict = Deciders(approval).may_approve(tenant.principal(who))
    assert (verdict.reason, verdict.visible) == ("permission_denied", who == "vera")


def test_no_user_bypasses_the_rules_not_even_platform_staff(tenant):
    approval = ask(tenant)
    staff = make_person("root", is_superuser=True)
    from tests.support import caller_for

    assert vote(tenant, caller_for(staff), approval).status_code == 404


def test_one_approval_moves_it_with_event_audit_and_a_credential_that_verifies(tenant):
    approval = ask(tenant)
    answer = vote(tenant, "carol", approval, comment="good")
    assert (answer.status_code, answer.json()["status"]) == (200, "approved")
    fresh = Approval.objects.get(pk=approval.pk)
    events = list(fresh.events.order_by("pk").values_list("from_status", "to_status"))
    assert events == [("", "pending"), ("pending", "approved")]
    assert AuditEvent.objects.filter(action="approval.approved", target=f"approval:{approval.pk}").count() == 1
    claims = services.check_credential(fresh, at_ms=clock.now_ms())
    assert claims.issued_by == (str(tenant.people["carol"].pk),)
    assert claims.subject == f"deployment:{fresh.deployment_id}"
    shown = tenant.caller("bob").get(f"{tenant.path(tenant.staging)}/approvals/{approval.pk}/credential").json()
    assert trust.decode_credential(shown["credential"])[0] == claims
    assert trusted_keys(tenant.organization.pk)
    assert Deployment.objects.get(pk=fresh.deployment_id).status == "approved"
    again = vote(tenant, "alice", fresh)
    assert again.json()["code"] == "invalid_transition"
    assert again.json()["allowed"] == ["revoked"]


def test_prod_wants_two_and_counts_each_person_once(tenant):
    approval = ask(tenant, tenant.prod)
    assert vote(tenant, "carol", approval).json()["status"] == "pending"
    [voted] = AuditEvent.objects.filter(action="approval.voted", target=f"approval:{approval.pk}")
    assert voted.details == {"decision": "approve", "votes": 1, "required": 2}
    assert vote(tenant, "carol", approval).json()["code"] == "already_decided"
    assert vote(tenant, "alice", approval).json()["status"] == "approved"
    assert Approval.objects.get(pk=approval.pk).decisions.count() == 2


def test_one_denial_ends_it_and_needs_a_comment(tenant):
    approval = ask(tenant, tenant.prod)
    assert vote(tenant, "carol", approval, "deny").json()["code"] == "comment_required"
    assert vote(tenant, "carol", approval, "deny", comment="no").json()["status"] == "denied"
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"


def test_a_vote_of_a_user_without_the_role_does_not_count(tenant):
    approval = ask(tenant, tenant.prod)
    vote(tenant, "carol", approval)
    Membership.objects.filter(user=tenant.people["carol"]).update(role="viewer")
    assert vote(tenant, "alice", approval).json()["status"] == "pending"


def test_another_digest_decides_nothing(tenant):
    approval = ask(tenant)
    answer = vote(tenant, "carol", approval, shown_digest="sha256:" + "0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_decision")
    assert Decision.objects.count() == 0


def test_a_list_is_filtered_by_the_status_that_it_shows(tenant):
    """An approval whose time has passed is shown as expired before the chore has moved it."""
    first = ask(tenant)
    carol, path = tenant.caller("carol"), f"{tenant.path(tenant.staging)}/approvals"

    def listed():
        found = {status: carol.get(f"{path}?status={status}").json()["results"] for status in ApprovalStatus.values}
        assert all(row["status"] == status for status, rows in found.items() for row in rows)
        return {status: [row["id"] for row in rows] for status, rows in found.items() if rows}

    assert listed() == {"pending": [str(first.pk)]}
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, seconds=1), tick=True):
        assert listed() == {"expired": [str(first.pk)]}
        assert expiry_and_revocation.expire_due(clock.now()) == 1
        assert listed() == {"expired": [str(first.pk)]}


def test_too_late_is_refused_and_moves_it(tenant):
    approval = ask(tenant)
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, seconds=1), tick=False):
        read = tenant.caller("carol").get(f"{tenant.path(tenant.staging)}/approvals/{approval.pk}").json()
        assert read["status"] == "expired"
        answer = vote(tenant, "carol", approval)
        assert (answer.status_code, answer.json()["code"]) == (409, "approval_expired")
    assert Approval.objects.get(pk=approval.pk).status == "expired"
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"


@pytest.mark.postgres
@pytest.mark.parametrize(
    "change", [{"required_approvals": 0}, {"expires_at": clock.now()}, {"policy": {}}, {"spec_hash": "sha256:other"}]
)
def test_no_user_can_change_a_request(tenant, change):
    approval = ask(tenant)
    with pytest.raises(DatabaseError, match="immutable"), transaction.atomic():
        Approval.objects.filter(pk=approval.pk).update(**change)


def test_the_sweep_expires_what_is_due_and_nothing_else(tenant):
    with time_machine.travel(clock.now() - dt.timedelta(hours=24, seconds=1), tick=False):
        early = ask(tenant)
    late = ask(tenant, tenant.prod)
    assert services.expire_due(clock.now()) == 1
    assert [Approval.objects.get(pk=a.pk).status for a in (early, late)] == ["expired", "pending"]


def test_a_credential_that_runs_out_before_the_build_fails_the_deployment(tenant):
    approval = ask(tenant)
    vote(tenant, "carol", approval)
    with time_machine.travel(clock.now() + dt.timedelta(hours=9), tick=False):
        assert services.notify_expired_credentials(clock.now()) == 1
        assert services.notify_expired_credentials(clock.now()) == 0
    found = Deployment.objects.get(pk=approval.deployment_id)
    assert (found.status, found.status_reason.split(":")[0].split(" ")[0]) == ("failed", "credential_expired")


def test_a_request_needs_enough_people_who_can_decide(tenant):
    Membership.objects.filter(organization=tenant.organization).exclude(user=tenant.people["bob"]).update(role="viewer")
    with pytest.raises(Conflict) as caught:
        ask(tenant)
    assert caught.value.code == "no_eligible_reviewer"


@pytest.mark.parametrize(
    ("field", "before", "weaker"),
    [
        ("required_approvals", 2, 1),
        ("prevent_self_approval", True, False),
        ("require_comment_on_deny", True, False),
        ("approval_window_hours", 24, 25),
        ("credential_ttl_hours", 8, 9),
    ],
)
def test_a_user_who_weakened_the_policy_neither_requests_nor_decides_for_a_day(tenant, field, before, weaker):
    alice, environment = tenant.caller("alice"), tenant.dev if field == "prevent_self_approval" else tenant.prod
    give_role(make_person("dora"), "operator", tenant.organization)
    assert alice.patch(tenant.path(environment), {"policy": {"required_approvals": 2}}).status_code == 200
    assert not PolicyWeakening.objects.exists(), "stronger, or the same"
    assert alice.patch(tenant.path(environment), {"policy": {field: weaker}}).status_code == 200
    assert PolicyWeakening.objects.get().details == {field: [before, weaker]}
    approval = ask(tenant, environment)
    answer = vote(tenant, alice, approval)
    assert (answer.status_code, answer.json()["code"]) == (409, "policy_recently_weakened")
    with pytest.raises(Conflict) as caught:
        ask(tenant, environment, "b:drop", who="alice")
    assert caught.value.code == "policy_recently_weakened"
    with time_machine.travel(clock.now() + dt.timedelta(hours=25)):
        ask(tenant, environment, "c:drop", who="alice")


def test_a_stronger_policy_weakens_nothing():
    weak = {
        "required_approvals": 1,
        "prevent_self_approval": False,
        "require_comment_on_deny": False,
        "approval_window_hours": 48,
        "credential_ttl_hours": 48,
    }
    strong = {
        "required_approvals": 2,
        "prevent_self_approval": True,
        "require_comment_on_deny": True,
        "approval_window_hours": 24,
        "credential_ttl_hours": 8,
    }
    assert weaker_in(weak, strong) == weaker_in(weak, weak) == {}
    assert weaker_in(strong, weak) == {name: [strong[name], weak[name]] for name in strong}


def test_a_policy_that_was_stored_before_a_member_existed_has_its_default_and_is_not_weakened_by_it(tenant):
    Environment.objects.filter(pk=tenant.prod.pk).update(policy={"required_approvals": 1})
    alice, path = tenant.caller("alice"), tenant.path(tenant.prod)
    changed = alice.patch(path, {"policy": {"credential_ttl_hours": 4}})
    assert changed.status_code == 200
    usual = default_policy("prod")
    assert changed.json()["policy"] == {**usual, "required_approvals": 1, "credential_ttl_hours": 4}
    assert not weakened_until(tenant.prod)
    assert alice.patch(path, {"policy": {"require_comment_on_deny": False}}).status_code == 200
    assert set(weakened_until(tenant.prod)) == {tenant.people["alice"].pk}


def test_the_policy_is_validated_where_it_is_set(tenant):
    alice = tenant.caller("alice")
    for body, status, code, error in (
        ({"required_approvals": 9}, 422, "too_few_reviewers", "too_few_reviewers"),
        ({"required_approvals": -1}, 400, "invalid_input", "invalid"),
        ({"required_approvals": 21}, 400, "invalid_input", "invalid"),
        ({"required_approvals": "1"}, 400, "invalid_input", "invalid"),
        ({"required_approvals": True}, 400, "invalid_input", "invalid"),
        ({"approval_window_hours": 0}, 400, "invalid_input", "invalid"),
        ({"approval_window_hours": 24 * 30 + 1}, 400, "invalid_input", "invalid"),
        ({"credential_ttl_hours": 0}, 400, "invalid_input", "invalid"),
        ({"credential_ttl_hours": 24 * 7 + 1}, 400, "invalid_input", "invalid"),
        ({"require_comment_on_deny": 0}, 400, "invalid_input", "invalid"),
        ({"prevent_self_approval": "no"}, 400, "invalid_input", "invalid"),
        ({"prevent_self_approval": False}, 422, "self_approval_only_in_dev", "self_approval_only_in_dev"),
        ({"colour": 1}, 400, "invalid_input", "unknown_field"),
    ):
        answer = alice.patch(tenant.path(tenant.prod), {"policy": body})
        assert (answer.status_code, answer.json()["code"]) == (status, code), body
        [found] = answer.json()["errors"]
        assert (found["pointer"], found["code"]) == (f"/policy/{next(iter(body))}", error)


def test_a_request_is_withdrawn_by_its_requester_and_a_grant_revoked_by_operators(tenant):
    mine = ask(tenant)
    path = f"{tenant.path(tenant.staging)}/approvals/{mine.pk}/revoke"
    assert tenant.caller("vera").post(path, {}).status_code == 403
    assert tenant.caller("charlie").post(path, {}).status_code == 404
    # while it is pending, another user can't end it without a comment
    for who in ("carol", "alice"):
        refused = tenant.caller(who).post(path, {"comment": "no"})
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        cancelled = tenant.caller(who).post(
            f"{tenant.path(tenant.staging)}/deployments/{mine.deployment_id}/cancel", {"reason": "no"}
        )
        assert (cancelled.status_code, cancelled.json()["code"]) == (403, "permission_denied")
    assert AuditEvent.objects.filter(outcome="denied", action="approval.withdraw").exists()
    assert Approval.objects.get(pk=mine.pk).status == "pending"
    assert tenant.caller("bob").post(path, {}).json()["status"] == "revoked"
    assert mine.events.order_by("pk").last().trigger == "withdrawn"
    assert Deployment.objects.get(pk=mine.deployment_id).status == "denied"
    assert tenant.caller("bob").post(path, {}).json()["code"] == "invalid_transition"
    second = ask(tenant, None, "b:drop")
    vote(tenant, "carol", second)
    one = f"{tenant.path(tenant.staging)}/approvals/{second.pk}/revoke"
    for caller in (tenant.caller("carol"), tenant.caller("bob")):
        for answer in (
            caller.post(one, {"comment": " "}),
            caller.post(f"{tenant.path(tenant.staging)}/deployments/{second.deployment_id}/cancel", {}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (422, "comment_required")
    taken = tenant.caller("carol").post(
        f"{tenant.path(tenant.staging)}/approvals/{second.pk}/revoke", {"comment": "wait"}
    )
    assert taken.json()["status"] == "revoked"
    assert Deployment.objects.get(pk=second.deployment_id).status == "denied"


@pytest.mark.parametrize(
    "body", [{}, {"shown_digest": 5}, {"shown_digest": "x", "more": 1}, [], {"shown_digest": "x" * 99}]
)
def test_a_wrong_body_is_400(tenant, body):
    approval = ask(tenant)
    path = f"{tenant.path(tenant.staging)}/approvals/{approval.pk}/approve"
    assert tenant.caller("carol").post(path, body).status_code == 400


def test_the_inbox_holds_what_waits_for_me(tenant):
    approval = ask(tenant, tenant.prod)

    def inbox(who: str) -> list[str]:
        return [row["id"] for row in tenant.caller(who).get("/me/approvals").json()["results"]]

    assert inbox("carol") == inbox("alice") == [str(approval.pk)]
    assert inbox("bob") == inbox("vera") == inbox("charlie") == []
    vote(tenant, "carol", approval)
    assert inbox("carol") == []


def test_the_inbox_of_an_environment_that_allows_self_approval_holds_ones_own_request(tenant):
    policy = {"required_approvals": 1, "prevent_self_approval": False}
    assert tenant.caller("alice").patch(tenant.path(), {"policy": policy}).status_code == 200
    own, other = ask(tenant, tenant.dev), ask(tenant, tenant.staging)

    def inbox(who: str) -> set[str]:
        return {row["id"] for row in tenant.caller(who).get("/me/approvals").json()["results"]}

    assert inbox("carol") == {str(own.pk), str(other.pk)}
    assert inbox("bob") == {str(own.pk)}
    assert vote(tenant, "bob", own).json()["status"] == "approved"
    assert inbox("bob") == set()


# --- what is looked at again under the lock


def test_a_role_that_is_lost_during_the_request_decides_nothing(tenant, monkeypatch):
    approval = ask(tenant)
    lock = decisions.lock_environment

    def demoted_first(environment_id):
        Membership.objects.filter(user=tenant.people["carol"]).update(role="viewer")
        return lock(environment_id)

    monkeypatch.setattr(decisions, "lock_environment", demoted_first)
    answer = vote(tenant, "carol", approval)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert answer.json()["detail"] == "Your role changed during the request."
    assert not Decision.objects.exists()


def test_an_approval_that_is_not_due_does_not_expire(tenant):
    approval = ask(tenant)
    assert services.expire(environment_id=tenant.staging.pk, approval_id=approval.pk) is False
    assert services.expire(environment_id=tenant.prod.pk, approval_id=approval.pk) is False
    assert services.expire(environment_id=new_id(), approval_id=approval.pk) is False
    assert Approval.objects.get(pk=approval.pk).status == "pending"
    assert Deployment.objects.get(pk=approval.deployment_id).status == "pending_approval"


def test_two_sweeps_that_look_at_one_moment_expire_and_notify_once(tenant, monkeypatch):
    with time_machine.travel(clock.now() - dt.timedelta(hours=25)):
        late = ask(tenant)
    approved = ask(tenant, tenant.prod, "b:drop")
    for who in ("carol", "alice"):
        vote(tenant, who, approved)
    each = expiry_and_revocation.for_each
    monkeypatch.setattr(expiry_and_revocation, "for_each", lambda n, rows, do, **more: each(n, rows * 2, do, **more))
    assert services.expire_due(clock.now()) == 1
    assert late.events.filter(to_status="expired").count() == 1
    with time_machine.travel(clock.now() + dt.timedelta(hours=9)):
        assert services.notify_expired_credentials(clock.now()) == 1
    found = Deployment.objects.get(pk=approved.deployment_id)
    assert found.events.filter(to_status="failed").count() == 1


def test_a_sweep_leaves_an_environment_alone_that_was_deleted_meanwhile(tenant, monkeypatch):
    with time_machine.travel(clock.now() - dt.timedelta(hours=25)):
        late = ask(tenant)
    approved = ask(tenant, tenant.staging, "b:drop")
    vote(tenant, "carol", approved)
    each = expiry_and_revocation.for_each

    def deleted_first(name, rows, do, **more):
        Environment.objects.filter(pk=tenant.staging.pk).update(deleted_at=clock.now())
        return each(name, rows, do, **more)

    monkeypatch.setattr(expiry_and_revocation, "for_each", deleted_first)
    assert services.expire_due(clock.now()) == 0
    Environment.objects.filter(pk=tenant.staging.pk).update(deleted_at=None)
    with time_machine.travel(clock.now() + dt.timedelta(hours=9)):
        assert services.notify_expired_credentials(clock.now()) == 0
    assert [Approval.objects.get(pk=a.pk).status for a in (late, approved)] == ["pending", "approved"]
    assert Approval.objects.get(pk=approved.pk).credential_expiry_told is False


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_many_deciding_at_once_make_one_outcome_and_one_credential(tenant):
    reviewers = [make_person(f"r{n}") for n in range(12)]
    for person in reviewers:
        give_role(person, "operator", tenant.organization)
    approval = ask(tenant)
    from tests.support import caller_for

    callers = [caller_for(person) for person in reviewers]
    tokens = [c.token for c in callers]
    words = ["approve", "deny"] * 6

    def one(token, word):
        return vote(tenant, Caller(token), approval, word, comment="x").status_code

    answers = in_threads(*(lambda t=t, w=w: one(t, w) for t, w in zip(tokens, words, strict=True)))
    assert sorted(answers) == [200] + [409] * 11
    fresh = Approval.objects.get(pk=approval.pk)
    assert fresh.status in ("approved", "denied")
    assert bool(fresh.credential) == (fresh.status == "approved")
    assert fresh.events.exclude(from_status="").count() == 1
