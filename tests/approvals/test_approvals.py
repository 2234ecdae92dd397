"""Approvals through the doors: who may decide, on what, when, and that nothing goes around the machine."""

from __future__ import annotations

import datetime as dt

import pytest
import time_machine
from django.db import DatabaseError, connection, transaction

from apps.agents.models import Agent
from apps.approvals import services
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import advance, legal_moves
from apps.deployments.models import Deployment
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.request import Selector
from apps.pipelines.services import create_draft, promote_draft
from apps.runtime import trust
from apps.signing.services import trusted_keys
from tests.flows.world import SPEC, config
from tests.support import Caller, Tenant, give_role, in_threads, make_person

pytestmark = pytest.mark.django_db


def ask(tenant: Tenant, environment=None, *rules: str, who: str = "bob", agents: int = 1) -> Approval:
    """A deployment asked for by `who`; its approval."""
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
    given = {"shown_digest": services.present(approval).shown_digest, **body}
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
    ("who", "status", "code"),
    [("bob", 403, "self_approval"), ("vera", 403, "permission_denied"), ("charlie", 404, "not_found")],
)
def test_who_may_not_decide_is_refused_and_it_is_on_record(tenant, who, status, code):
    approval = ask(tenant)
    for word in ("approve", "deny"):
        answer = vote(tenant, who, approval, word, comment="x")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert Approval.objects.get(pk=approval.pk).status == "pending"
    assert AuditEvent.objects.filter(outcome="denied").exists()


def test_nobody_bypasses_not_even_platform_staff(tenant):
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
    assert vote(tenant, "carol", approval).json()["code"] == "already_decided"
    assert vote(tenant, "alice", approval).json()["status"] == "approved"
    assert Approval.objects.get(pk=approval.pk).decisions.count() == 2


def test_one_denial_ends_it_and_needs_a_comment(tenant):
    approval = ask(tenant, tenant.prod)
    assert vote(tenant, "carol", approval, "deny").json()["code"] == "comment_required"
    assert vote(tenant, "carol", approval, "deny", comment="no").json()["status"] == "denied"
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"


def test_who_lost_the_role_no_longer_counts(tenant):
    from apps.access.models import Membership

    approval = ask(tenant, tenant.prod)
    vote(tenant, "carol", approval)
    Membership.objects.filter(user=tenant.people["carol"]).update(role="viewer")
    assert vote(tenant, "alice", approval).json()["status"] == "pending"


def test_another_digest_decides_nothing(tenant):
    approval = ask(tenant)
    answer = vote(tenant, "carol", approval, shown_digest="sha256:" + "0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_decision")
    assert Decision.objects.count() == 0


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
def test_what_was_asked_is_never_changed_by_whoever_it_is(tenant, change):
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
        assert services.tell_expired_credentials(clock.now()) == 1
        assert services.tell_expired_credentials(clock.now()) == 0
    found = Deployment.objects.get(pk=approval.deployment_id)
    assert (found.status, found.status_reason.split(":")[0].split(" ")[0]) == ("failed", "credential_expired")


def test_asking_needs_enough_people_who_could_decide(tenant):
    give_role_to = make_person("solo")
    from apps.access.models import Membership

    Membership.objects.filter(organization=tenant.organization).exclude(user=tenant.people["bob"]).update(role="viewer")
    assert give_role_to
    with pytest.raises(Conflict) as caught:
        ask(tenant)
    assert caught.value.code == "no_eligible_reviewer"


def test_whoever_weakened_the_policy_neither_asks_nor_decides_for_a_day(tenant):
    alice = tenant.caller("alice")
    assert alice.patch(tenant.path(tenant.prod), {"policy": {"required_approvals": 1}}).status_code == 200
    approval = ask(tenant, tenant.prod)
    answer = vote(tenant, alice, approval)
    assert (answer.status_code, answer.json()["code"]) == (409, "policy_recently_weakened")
    with pytest.raises(Conflict) as caught:
        ask(tenant, tenant.prod, "b:drop", who="alice")
    assert caught.value.code == "policy_recently_weakened"
    with time_machine.travel(clock.now() + dt.timedelta(hours=25)):
        ask(tenant, tenant.prod, "c:drop", who="alice")


def test_the_policy_is_judged_where_it_is_set(tenant):
    alice = tenant.caller("alice")
    for body, status, code in (
        ({"required_approvals": 9}, 422, "too_few_reviewers"),
        ({"required_approvals": -1}, 400, "invalid_input"),
        ({"required_approvals": "1"}, 400, "invalid_input"),
        ({"prevent_self_approval": False}, 422, "self_approval_only_in_dev"),
        ({"colour": 1}, 400, "invalid_input"),
    ):
        answer = alice.patch(tenant.path(tenant.prod), {"policy": body})
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_request_is_withdrawn_by_who_asked_and_a_grant_taken_back_by_operators(tenant):
    mine = ask(tenant)
    path = f"{tenant.path(tenant.staging)}/approvals/{mine.pk}/revoke"
    assert tenant.caller("vera").post(path, {}).status_code == 403
    assert tenant.caller("charlie").post(path, {}).status_code == 404
    assert tenant.caller("bob").post(path, {}).json()["status"] == "revoked"
    assert Deployment.objects.get(pk=mine.deployment_id).status == "denied"
    assert tenant.caller("bob").post(path, {}).json()["code"] == "invalid_transition"
    second = ask(tenant, None, "b:drop")
    vote(tenant, "carol", second)
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
