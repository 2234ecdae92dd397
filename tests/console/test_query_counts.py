"""How many queries pages of the console make: bounded, whatever waits and however many tenants there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.access.models import RoleGrant, User
from apps.access.principals import person_principal
from apps.access.roles import Role
from apps.access.services import create_token
from apps.agents.models import Agent
from apps.approvals.models import Approval, Decision
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.ids import new_id
from apps.deployments.models import ConfigBundle, Confirmation, Deployment
from apps.deployments.rollout import Phase
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.requests import Selector, Strategy
from apps.pipelines.models import PipelineVersion
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization
from tests.approvals.test_approvals import ask, vote
from tests.filled import fill
from tests.flows.world import config
from tests.support import Tenant, give_role, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

LIST = 20
PAGE = 12
DEPLOYMENT = 16
"""While its approval is pending, which of its votes count is looked up: its base, who may decide, and whom the requester added."""
APPROVAL = 25


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def statements(client: Client, url: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(url)
    assert answer.status_code == 200, url
    # a prepared statement has no text to show on PostgreSQL
    found = [q["sql"] or "prepared" for q in captured]
    return [sql for sql in found if not sql.startswith(("SAVEPOINT", "RELEASE"))]


def repeated(asked: list[str]) -> list[str]:
    return [sql for sql, times in Counter(asked).items() if times > 1 and sql != "prepared"]


def queries(client: Client, url: str) -> int:
    return len(statements(client, url))


def lists() -> list[str]:
    names = [model._meta for model in admin.site._registry]
    return [reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist") for opts in names]


def more_tenants(count: int, owner: User) -> None:
    """Organizations with a row of every kind; `owner` gets a role in each, unless they are platform staff."""
    for _ in range(count):
        organization = tenancy.create_organization(actor=SYSTEM_ACTOR, name=f"Tenant {new_id()}")
        project = tenancy.create_project(actor=SYSTEM_ACTOR, organization=organization, name="Orders")
        environment = tenancy.create_environment(actor=SYSTEM_ACTOR, project=project, name="prod", posture="prod")
        fill(environment, owner)
        if not owner.is_superuser:
            give_role(owner, Role.ORG_ADMIN, organization)


def test_every_list_of_the_console_is_a_few_queries_for_an_operator(tenant: Tenant) -> None:
    for environment in (tenant.dev, tenant.staging, tenant.prod):
        fill(environment, tenant.people["alice"])
    client = client_of(tenant.people["bob"])
    assert {url for url in lists() if 'id="changelist"' not in client.get(url).content.decode()} == set()
    assert {url: count for url in lists() if (count := queries(client, url)) > LIST} == {}


def test_the_inbox_is_as_many_queries_for_two_hundred_as_for_one_and_states_how_many_more(tenant: Tenant) -> None:
    first = ask(tenant, tenant.prod, agents=2)
    voted = ask(tenant, tenant.prod, "b:drop", agents=2)
    vote(tenant, "carol", voted)
    client = client_of(tenant.people["alice"])
    queries(client, "/admin/")
    few = queries(client, "/admin/")
    template = Deployment.objects.get(pk=first.deployment_id)
    fields = [f.attname for f in Deployment._meta.concrete_fields if f.attname not in ("id", "approval_id", "status")]
    asked = [f.attname for f in Approval._meta.concrete_fields if f.attname not in ("id", "deployment_id", "status")]
    for number in range(198):
        approval_id, deployment_id = new_id(), new_id()
        values = {name: getattr(first, name) for name in asked} | {"capabilities": ["action:exec"]}
        made = Approval(id=approval_id, deployment_id=deployment_id, **values)
        made.save(force_insert=True)
        copy = {name: getattr(template, name) for name in fields}
        Deployment(id=deployment_id, approval_id=approval_id, **copy).save(force_insert=True)
        if number % 3 == 0:
            person = tenant.people["carol" if number % 2 else "bob"]
            Decision.objects.create(
                approval=made, reviewer_id=person.pk, reviewer_name="x", decision="approve", digest=made.shown_digest
            )
    many = queries(client, "/admin/")
    assert max(few, many) <= 25, (few, many)
    page = client.get("/admin/").content.decode()
    assert page.count('class="card waiting"') == 50
    assert "150 more need your approval" in page
    assert "Needs your approval (200)" in page


def rows_of(user: User) -> list[str]:
    """The page of a row of every registered model, as far as `user` may see one."""
    found = []
    for model, model_admin in admin.site._registry.items():
        row = model_admin.visible(model._default_manager.all(), person_principal(user)).first()
        if row is not None:
            found.append(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk]))
    return found


@pytest.mark.parametrize("who", ["bob", "alice", "platform staff"])
def test_a_page_asks_each_question_once_and_few_of_them(tenant: Tenant, who: str) -> None:
    ids = fill(tenant.prod, tenant.people["carol"])
    approval = Approval.objects.get(pk=ids["approval_id"])
    given = {"decision": "approve", "digest": approval.shown_digest, "reviewer_name": "Alice"}
    Decision.objects.create(approval=approval, reviewer_id=tenant.people["alice"].pk, **given)
    user = make_person("root", is_superuser=True) if who == "platform staff" else tenant.people[who]
    create_token(actor=person_principal(user), name="laptop")
    client = client_of(user)
    urls = [reverse("admin:index"), *lists(), *rows_of(user)]
    assert len(urls) > 1.7 * len(lists())
    for url in urls:
        client.get(url)  # looks by platform staff are recorded, once in a while
    asked = {url: statements(client, url) for url in urls}
    assert {url: found for url in urls if (found := repeated(asked[url]))} == {}
    assert {url: len(found) for url, found in asked.items() if len(found) > LIST and "/approval/" not in url} == {}
    rows = {url: len(asked[url]) for url in rows_of(user) if "/approval/" not in url}
    most = {url: DEPLOYMENT if "/deployment/" in url else PAGE for url in rows}
    assert {url: count for url, count in rows.items() if count > most[url]} == {}


@pytest.mark.parametrize("who", ["platform staff", "an admin of them all"])
def test_a_list_and_the_inbox_make_as_many_queries_for_sixty_organizations_as_for_three(
    tenant: Tenant, who: str
) -> None:
    user = make_person("root", is_superuser=True) if who == "platform staff" else tenant.people["alice"]
    client = client_of(user)
    urls = [reverse("admin:index"), *lists()]
    fill(tenant.prod, tenant.people["bob"])
    more_tenants(1, user)
    assert Organization.objects.count() == 3
    for url in urls:
        client.get(url)  # looks by platform staff are recorded, once in a while
    before = {url: queries(client, url) for url in urls}
    more_tenants(57, user)
    after = {url: queries(client, url) for url in urls}
    assert {url: (before[url], after[url]) for url in urls if after[url] != before[url]} == {}
    assert {url: count for url, count in after.items() if count > LIST} == {}


def copy_of(row: Any, **changed: Any) -> Any:
    """A second row, equal to `row` but for its id and what is `changed`."""
    values = {
        field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields if field.name != "status"
    }
    made = type(row)(**values | {"id": new_id(), **changed})
    made.save(force_insert=True)
    return made


def a_full_approval(tenant: Tenant, agents: int) -> Approval:
    """One that waits, with all that its page can show: phases, a vote, people who joined recently, agents to look at, and a
    base of its own for each of the agents."""
    environment, actor, scope = tenant.staging, tenant.principal("bob"), tenant.scope(tenant.staging)
    Agent.objects.bulk_create(
        Agent(environment=environment, name=f"host-{number}", hostname="same") for number in range(agents)
    )
    former = ask(tenant, environment, "a:drop")
    base = Deployment.objects.get(pk=former.deployment_id)
    version, bundle = PipelineVersion.objects.get(pk=base.version_id), ConfigBundle.objects.get(pk=base.bundle_id)
    asked = request_deployment(
        actor=actor,
        scope=scope,
        bundle_id=create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config("b:drop")).pk,
        targets=Selector(everyone=True),
        strategy=Strategy("phased", phases=(Phase(50, 10), Phase(100, 0))),
    )
    approval: Approval = Approval.objects.get(pk=asked.approval_id)
    for number, agent in enumerate(Agent.objects.filter(environment=environment)):
        spec = {"spec_hash": f"sha256:{number:064x}", "number": number + 1000}
        other = copy_of(version, spec=version.spec.replace("orders", f"orders{number}"), **spec)
        settings = copy_of(bundle, version_id=other.pk, config_hash=f"sha256:{number:064x}")
        hashes = {"spec_hash": other.spec_hash, "config_hash": settings.config_hash}
        stands_on = copy_of(base, version_id=other.pk, bundle_id=settings.pk, approval_id=new_id(), **hashes)
        Confirmation.objects.create(
            agent_id=agent.pk, environment=environment, deployment_id=stands_on.pk, sequence=1, confirmed_at=clock.now()
        )
    vera = tenant.people["vera"]
    RoleGrant.objects.create(
        organization=tenant.organization, user=vera, role=Role.OPERATOR, granted_by=tenant.people["alice"].pk
    )
    Decision.objects.create(
        approval=approval, reviewer_id=vera.pk, reviewer_name="Vera", decision="approve", digest=approval.shown_digest
    )
    return approval


@pytest.mark.parametrize("agents", [1, 200])
def test_the_page_of_an_approval_is_as_many_queries_for_two_hundred_agents_as_for_one(
    tenant: Tenant, agents: int
) -> None:
    approval = a_full_approval(tenant, agents)
    url = reverse("admin:approvals_approval_change", args=[approval.pk])
    for who in ("alice", "bob", "carol"):
        client = client_of(tenant.people[who])
        page = client.get(url).content.decode()
        assert page.count('class="group"') == agents
        for shown in ("Given a role in the last 24 hours", "no longer counts", "Warnings", "Phases"):
            assert shown in page
        assert queries(client, url) <= APPROVAL
    vote(tenant, "carol", approval)
    assert queries(client, url) <= APPROVAL
