"""The approval and deployment pages: each refusal has the contract's status and code there too, and changes nothing."""

from __future__ import annotations

import datetime as dt

import pytest
import time_machine
from django.test import Client
from django.urls import reverse

from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.services import present
from apps.core import clock
from apps.deployments.models import Deployment
from tests.approvals.test_approvals import ask, bring_to
from tests.support import make_person

pytestmark = pytest.mark.django_db


def browser(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def url_of(approval: Approval) -> str:
    return reverse("admin:approvals_approval_change", args=[approval.pk])


def decide(tenant, who, approval, word="approve", **fields):
    user = tenant.people[who] if isinstance(who, str) else who
    body = {"decision": word, "comment": "", "shown_digest": present(approval).shown_digest, **fields}
    return browser(user).post(url_of(approval), body)


@pytest.mark.parametrize(("who", "status", "code"), [("bob", 403, "self_approval"), ("vera", 403, "permission_denied")])
def test_who_may_not_decide_is_refused_on_the_page(tenant, who, status, code):
    approval = ask(tenant)
    for word in ("approve", "deny"):
        answer = decide(tenant, who, approval, word, comment="x")
        assert answer.status_code == status
        assert f'data-code="{code}"' in answer.content.decode()
    assert Approval.objects.get(pk=approval.pk).status == "pending"


def test_a_person_of_another_tenant_finds_nothing(tenant):
    approval = ask(tenant)
    assert decide(tenant, "charlie", approval).status_code == 404
    assert browser(tenant.people["charlie"]).get(url_of(approval)).status_code == 404
    state = reverse("admin:approvals_approval_state", args=[approval.pk])
    assert browser(tenant.people["charlie"]).get(state).status_code == 404
    assert Client().get(url_of(approval)).status_code == 302


def test_platform_staff_without_a_role_look_but_do_not_decide(tenant):
    approval = ask(tenant)
    staff = make_person("root", is_superuser=True)
    assert browser(staff).get(url_of(approval)).status_code == 200
    assert decide(tenant, staff, approval).status_code in (403, 404)
    assert Approval.objects.get(pk=approval.pk).status == "pending"


def test_a_stale_digest_and_a_missing_comment_keep_what_was_typed(tenant):
    approval = ask(tenant)
    stale = decide(tenant, "carol", approval, shown_digest="sha256:0", comment="my words")
    assert stale.status_code == 409
    assert 'data-code="stale_decision"' in stale.content.decode()
    assert "my words" in stale.content.decode()
    silent = decide(tenant, "carol", approval, "deny")
    assert silent.status_code == 422
    assert 'data-code="comment_required"' in silent.content.decode()
    nonsense = decide(tenant, "carol", approval, "explode")
    assert nonsense.status_code == 400
    assert Approval.objects.get(pk=approval.pk).status == "pending"


def test_an_expired_one_says_so_and_moves(tenant):
    approval = ask(tenant)
    user = tenant.people["carol"]
    client = browser(user)
    digest = present(approval).shown_digest
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, minutes=1), tick=False):
        answer = client.post(url_of(approval), {"decision": "approve", "comment": "", "shown_digest": digest})
        assert answer.status_code == 409
        assert 'data-code="approval_expired"' in answer.content.decode()
    assert Approval.objects.get(pk=approval.pk).status == "expired"


@pytest.mark.parametrize("status", [s for s in ApprovalStatus.values if s != "pending"])
@pytest.mark.parametrize("word", ["approve", "deny", "revoke"])
def test_what_was_decided_is_decided(tenant, status, word):
    approval = bring_to(ask(tenant), status)
    answer = decide(tenant, "carol", approval, word, comment="again")
    legal = (status, word) == ("approved", "revoke")
    api = tenant.caller("carol").post(
        f"{tenant.path(tenant.staging)}/approvals/{approval.pk}/{word}",
        {"comment": "again"} if word == "revoke" else {"comment": "again", "shown_digest": "sha256:0"},
    )
    if legal:
        assert answer.status_code in (302, 409)
        return
    assert answer.status_code == 409
    assert api.status_code == 409
    assert Approval.objects.get(pk=approval.pk).status == status


def test_approving_on_the_page_moves_the_deployment_and_the_state_document_says_so(tenant):
    approval = ask(tenant)
    page = browser(tenant.people["carol"]).get(url_of(approval)).content.decode()
    assert 'name="shown_digest"' in page
    assert "Approve this deployment" in page
    assert "all of it is new" in page
    assert decide(tenant, "carol", approval).status_code == 302
    state = browser(tenant.people["vera"]).get(reverse("admin:approvals_approval_state", args=[approval.pk])).json()
    assert (state["approval"], state["deployment"]) == ("approved", "approved")
    assert [t["status"] for t in state["targets"]] == ["pending"]


def test_the_form_needs_its_csrf_token(tenant):
    approval = ask(tenant)
    client = Client(enforce_csrf_checks=True)
    client.force_login(tenant.people["carol"])
    answer = client.post(url_of(approval), {"decision": "approve", "shown_digest": present(approval).shown_digest})
    assert answer.status_code == 403
    assert Approval.objects.get(pk=approval.pk).status == "pending"


@pytest.mark.parametrize(("who", "status"), [("vera", 403), ("charlie", 404)])
def test_only_operators_act_on_a_deployment(tenant, who, status):
    approval = ask(tenant)
    url = reverse("admin:deployments_deployment_change", args=[approval.deployment_id])
    answer = browser(tenant.people[who]).post(url, {"action": "cancel", "reason": "x"})
    assert answer.status_code == status
    assert Deployment.objects.get(pk=approval.deployment_id).status == "pending_approval"
    done = browser(tenant.people["carol"]).post(url, {"action": "cancel", "reason": "x"})
    assert done.status_code == 302
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"
    again = browser(tenant.people["carol"]).post(url, {"action": "rollback"})
    assert again.status_code == 409
