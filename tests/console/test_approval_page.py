"""The approval and deployment pages: each refusal has the contract's status and code there too, and changes nothing."""

from __future__ import annotations

import datetime as dt

import pytest
import time_machine
from django.test import Client
from django.urls import reverse

from apps.agents.models import Agent
from apps.agents.selectors import for_warnings, warnings_about
from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.services import current_facts
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
    body = {"decision": word, "comment": "", "shown_digest": current_facts(approval).shown_digest, **fields}
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
    assert decide(tenant, staff, approval).status_code == 404
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


def test_an_expired_one_is_shown_as_expired(tenant):
    approval = ask(tenant)
    user = tenant.people["carol"]
    client = browser(user)
    digest = current_facts(approval).shown_digest
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, minutes=1), tick=False):
        answer = client.post(url_of(approval), {"decision": "approve", "comment": "", "shown_digest": digest})
        assert answer.status_code == 409
        assert 'data-code="approval_expired"' in answer.content.decode()
    assert Approval.objects.get(pk=approval.pk).status == "expired"


DECIDED = [s for s in ApprovalStatus.values if s != "pending"]
TRIED = [(s, w) for s in DECIDED for w in ("approve", "deny", "revoke") if (s, w) != ("approved", "revoke")]


def test_one_that_expired_and_was_not_swept_offers_nothing(tenant):
    approval = ask(tenant)
    clients = [browser(tenant.people[who]) for who in ("bob", "carol")]
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, seconds=10), tick=False):
        for client in clients:
            page = client.get(url_of(approval)).content.decode()
            assert "The approval expired at" in page
            assert 'name="decision"' not in page
    assert Approval.objects.get(pk=approval.pk).status == "pending"


def test_a_second_click_gets_a_message_that_it_was_done(tenant):
    approval = ask(tenant)
    digest = current_facts(approval).shown_digest
    assert decide(tenant, "carol", approval).status_code == 302
    again = decide(tenant, "carol", approval, shown_digest=digest)
    assert again.status_code == 409
    assert "It is already approved." in again.content.decode()


def test_votes_and_moves_of_the_deployment_are_in_the_history(tenant):
    approval = ask(tenant, tenant.prod)
    assert decide(tenant, "carol", approval, comment="Looks right").status_code == 302
    vote = approval.decisions.get()
    page = browser(tenant.people["bob"]).get(url_of(approval)).content.decode()
    history = page[page.index('<ol class="history">') :].split("</ol>")[0]
    [line] = [line for line in history.split("</li>") if "Carol voted" in line]
    assert "Looks right" in line
    assert f"{vote.decided_at:%Y-%m-%d %H:%M:%S} UTC" in line
    assert "Deployment ·" not in history
    assert decide(tenant, "alice", approval).status_code == 302
    page = browser(tenant.people["bob"]).get(url_of(approval)).content.decode()
    assert "Deployment · " in page[page.index('<ol class="history">') :].split("</ol>")[0]


@pytest.mark.parametrize(("status", "word"), TRIED)
def test_what_was_decided_is_decided(tenant, status, word):
    approval = bring_to(ask(tenant), status)
    answer = decide(tenant, "carol", approval, word, comment="again")
    api = tenant.caller("carol").post(
        f"{tenant.path(tenant.staging)}/approvals/{approval.pk}/{word}",
        {"comment": "again"} if word == "revoke" else {"comment": "again", "shown_digest": "sha256:0"},
    )
    assert answer.status_code == api.status_code == 409
    code = "approval_expired" if status == "expired" and word != "revoke" else "invalid_transition"
    assert f'data-code="{code}"' in answer.content.decode()
    assert api.json()["code"] == code
    assert Approval.objects.get(pk=approval.pk).status == status


def test_what_was_approved_is_revoked_on_the_page_with_a_comment(tenant):
    approval = ask(tenant)
    assert decide(tenant, "carol", approval).status_code == 302
    silent = decide(tenant, "carol", approval, "revoke")
    assert (silent.status_code, 'data-code="comment_required"' in silent.content.decode()) == (422, True)
    assert Approval.objects.get(pk=approval.pk).status == "approved"
    assert decide(tenant, "carol", approval, "revoke", comment="not today").status_code == 302
    assert Approval.objects.get(pk=approval.pk).status == "revoked"
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"


def test_approving_on_the_page_moves_the_deployment_and_the_state_document_shows_it(tenant):
    approval = ask(tenant)
    page = browser(tenant.people["carol"]).get(url_of(approval)).content.decode()
    assert 'name="shown_digest"' in page
    assert "Approve and roll out to 1 agent" in page
    assert "New on 1 agent." in page
    assert decide(tenant, "carol", approval).status_code == 302
    state = browser(tenant.people["vera"]).get(reverse("admin:approvals_approval_state", args=[approval.pk])).json()
    assert "approved" in state["cards"]["status"]["html"]
    assert "pending" in state["cards"]["agents"]["html"]
    assert not state["settled"]


def test_the_form_needs_its_csrf_token(tenant):
    approval = ask(tenant)
    client = Client(enforce_csrf_checks=True)
    client.force_login(tenant.people["carol"])
    answer = client.post(
        url_of(approval), {"decision": "approve", "shown_digest": current_facts(approval).shown_digest}
    )
    assert answer.status_code == 403
    assert Approval.objects.get(pk=approval.pk).status == "pending"


@pytest.mark.parametrize(("who", "status"), [("vera", 403), ("charlie", 404)])
def test_only_operators_act_on_a_deployment(tenant, who, status):
    approval = ask(tenant)
    url = reverse("admin:deployments_deployment_change", args=[approval.deployment_id])
    answer = browser(tenant.people[who]).post(url, {"action": "cancel", "reason": "x"})
    assert answer.status_code == status
    assert Deployment.objects.get(pk=approval.deployment_id).status == "pending_approval"
    assert browser(tenant.people["carol"]).post(url, {"action": "cancel", "reason": "x"}).status_code == 403
    done = browser(tenant.people["bob"]).post(url, {"action": "cancel", "reason": "x"})
    assert done.status_code == 302
    assert Deployment.objects.get(pk=approval.deployment_id).status == "denied"
    again = browser(tenant.people["carol"]).post(url, {"action": "rollback"})
    assert again.status_code == 409


def test_it_names_the_agents_to_look_at_before_deciding(tenant):
    approval = ask(tenant)
    agent = Agent.objects.get(pk=approval.target_agent_ids[0])
    now = clock.now()
    Agent.objects.filter(pk=agent.pk).update(last_seen_at=now - dt.timedelta(days=3), hostname="vm", two_hosts_at=now)
    Agent.objects.create(environment=agent.environment, name="former", hostname="vm")
    page = browser(tenant.people["carol"]).get(url_of(approval)).content.decode()
    shown = [code for code in ("two_hosts", "same_hostname", "silent") if f'data-warning="{code}"' in page]
    assert shown == ["two_hosts", "same_hostname", "silent"]
    assert "former (never seen)" in page
    assert f"last seen {now - dt.timedelta(days=3):%Y-%m-%d}" in page


def test_the_warnings_of_many_agents_cost_two_queries_and_show_twenty(tenant, django_assert_max_num_queries):
    approval = ask(tenant)
    environment = Agent.objects.get(pk=approval.target_agent_ids[0]).environment
    made = [Agent(environment=environment, name=f"host-{n:03}", hostname=f"host-{n}") for n in range(60)]
    Agent.objects.bulk_create(made)
    with django_assert_max_num_queries(2):
        found = warnings_about(for_warnings(agent.pk for agent in made), clock.now())
    assert len(found) == 60
