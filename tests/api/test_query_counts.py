"""How many queries the main requests make: pinned, so that one more is a decision and a list never asks by the row."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from apps.access import tokens
from apps.access.models import User
from apps.agents.models import Agent, AgentKey
from apps.approvals.models import Approval, Decision
from apps.console.management.commands.paths import endpoints
from apps.core import clock
from apps.core.fsm import advance
from apps.core.ids import new_id
from apps.deployments.models import ConfigBundle, Deployment, Target
from apps.jobs.models import Job
from tests.filled import ALL_AT_ONCE, fill
from tests.support import Caller, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

DETAIL = 2
"""The token with its person and their roles, the row with its path as one join."""
LIST = 3
"""The token with its person and their roles, the path, the rows."""
MOST_OF_A_DETAIL = 3
DEARER_DETAILS = {
    # its votes, the base of its targets, and who could still decide (two)
    "ENV/approvals/{approval_id}": 6,
}
LIST_OF_APPROVALS = 7


@pytest.fixture
def vera(tenant: Tenant) -> Caller:
    """A viewer whose token was used a moment ago: its use is written once a minute."""
    caller = tenant.caller("vera")
    assert caller.get("/me").status_code == 200
    return caller


class Browser:
    """Calls the API with a person's session."""

    def __init__(self, user: User) -> None:
        self._client = Client()
        self._client.force_login(user)

    def get(self, path: str) -> Any:
        return self._client.get(f"/api/v1{path}")


def statements(caller: Caller | Browser, path: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        answer = caller.get(path)
    assert answer.status_code == 200, answer.content
    found = [q["sql"] for q in captured]
    # each process reads the rate overrides of all organizations once in a few seconds
    return [sql for sql in found if not sql.startswith(("SAVEPOINT", "RELEASE")) and "limits_rateoverride" not in sql]


def queries(caller: Caller | Browser, path: str) -> int:
    return len(statements(caller, path))


def make_agents(tenant: Tenant, count: int) -> list[uuid.UUID]:
    rows = [Agent(environment=tenant.dev, name=f"host-{new_id()}") for _ in range(count)]
    return [row.pk for row in Agent.objects.bulk_create(rows)]


def make_bundles(tenant: Tenant, count: int) -> list[uuid.UUID]:
    shape = {"version_id": new_id(), "version_number": 1, "pipeline_name": "orders", "spec_hash": "", "config_hash": ""}
    rows = [ConfigBundle(environment=tenant.dev, config={}, **shape) for _ in range(count)]
    return [row.pk for row in ConfigBundle.objects.bulk_create(rows)]


def make_deployments(tenant: Tenant, count: int) -> list[uuid.UUID]:
    made = []
    for _ in range(count):
        row = Deployment.objects.create(
            environment=tenant.dev,
            bundle_id=new_id(),
            version_id=new_id(),
            version_number=1,
            pipeline_name="orders",
            spec_hash="",
            config_hash="",
            approval_id=new_id(),
            target_selector={"all": True},
            strategy={"type": "all_at_once"},
        )
        made.append(row.pk)
    return made


def make_jobs(tenant: Tenant, count: int) -> list[uuid.UUID]:
    scope = {"organization": tenant.organization, "environment": tenant.dev}
    return [Job.objects.create(type="spec_ingest", subject_id=new_id(), **scope).pk for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "make", "more"),
    [
        ("agents", make_agents, 0),
        ("bundles", make_bundles, 0),
        ("deployments", make_deployments, 1),  # the counts of its targets
        ("jobs", make_jobs, 0),
    ],
)
def test_a_detail_and_a_list_make_as_many_queries_however_many_rows_there_are(
    tenant: Tenant, vera: Caller, name: str, make: Callable[[Tenant, int], list[uuid.UUID]], more: int
) -> None:
    where = f"{tenant.path()}/{name}"
    [row] = make(tenant, 1)
    assert queries(vera, f"{where}/{row}") == DETAIL + more
    one = queries(vera, where)
    make(tenant, 12)
    assert queries(vera, where) == one == LIST + more


def test_an_outsider_is_refused_a_resource_that_exists_and_one_that_does_not_by_the_same_queries(
    tenant: Tenant,
) -> None:
    [agent] = make_agents(tenant, 1)
    charlie = tenant.caller("charlie")
    charlie.get("/me")

    def refused(row: uuid.UUID) -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            assert charlie.get(f"{tenant.path()}/agents/{row}").status_code == 404
        return [query["sql"] for query in captured]

    # the first refusal writes an audit row
    refused(agent)
    assert refused(agent) == refused(new_id())


def test_a_list_of_approvals_makes_as_many_queries_for_fifty_as_for_five(tenant: Tenant, vera: Caller) -> None:
    where, bob, carol = f"{tenant.path(tenant.prod)}/approvals", tenant.people["bob"], tenant.people["carol"]
    mine = tenant.caller("alice")
    mine.get("/me")

    def more(count: int) -> None:
        for number in range(count):
            approval = Approval.objects.get(pk=fill(tenant.prod, bob)["approval_id"])
            if number % 2 == 0:
                digest = approval.shown_digest
                given = {"decision": "approve", "digest": digest, "reviewer_name": "Carol"}
                Decision.objects.create(approval=approval, reviewer_id=carol.pk, **given)

    def counts() -> dict[str, int]:
        return {"environment": queries(vera, where), "mine": queries(mine, "/me/approvals")}

    def shown(caller: Caller, path: str) -> int:
        return len(caller.get(path).json()["results"])

    more(5)
    few = counts()
    more(45)
    assert (shown(vera, where), shown(mine, "/me/approvals")) == (50, 50)
    assert counts() == few
    assert max(few.values()) <= LIST_OF_APPROVALS


def test_the_tree_itself_is_read_by_its_path_alone(tenant: Tenant, vera: Caller) -> None:
    assert queries(vera, tenant.path()) == DETAIL
    assert queries(vera, tenant.path().rsplit("/environments", 1)[0]) == DETAIL


def make_host(tenant: Tenant) -> tuple[Agent, Caller]:
    """An agent, and a caller with its key, which was used a moment ago."""
    agent = Agent.objects.create(environment=tenant.dev, name="host")
    minted, now = tokens.mint("agt"), clock.now()
    used = {"first_used_at": now, "last_used_at": now}
    AgentKey.objects.create(agent=agent, sha256=minted.sha256, public_id=minted.public_id, **used)
    return agent, Caller(minted.text.reveal())


def test_an_agents_poll_reads_its_key_and_its_directive_only(tenant: Tenant) -> None:
    agent, caller = make_host(tenant)
    poll = f"/agents/{agent.pk}/deployment?after=0&key_set_version=1"
    # the first one numbers its directive and opens the signing key
    assert caller.get(poll).status_code == 200
    assert queries(caller, poll) == 2


def test_a_heartbeat_without_the_cache_reads_its_key_and_its_directive_and_writes_once(tenant: Tenant) -> None:
    agent, caller = make_host(tenant)
    heartbeat = {"status": "running", "version": "1.0", "running": None, "key_set_version": 1}
    path = f"/agents/{agent.pk}/heartbeat"
    # the first one is written as a change, numbers its directive and opens the signing key
    assert caller.post(path, heartbeat).status_code == 200
    with CaptureQueriesContext(connection) as captured:
        assert caller.post(path, heartbeat).status_code == 200
    assert [query["sql"].split()[0] for query in captured] == ["SELECT", "UPDATE", "SELECT"]


def test_who_am_i_reads_the_token_with_its_person_and_their_roles(tenant: Tenant, vera: Caller) -> None:
    assert queries(vera, "/me") == 1


def reads() -> list[str]:
    """The path of every GET for people."""
    return [each.path for each in endpoints() if each.method == "GET" and each.permission != "the agent's own key"]


def path_of(template: str, ids: dict[str, Any]) -> str:
    """`template` with the ids of existing rows. A path with a new name in it needs a row in `tests/filled.py`."""
    member = "project_member_id" if "/projects/" in template else "member_id"
    environment = "/orgs/{org_id}/projects/{project_id}/environments/{environment_id}"
    return template.replace("ENV", environment).replace("{member_id}", f"{{{member}}}").format(**ids)


@pytest.mark.parametrize("by", ["token", "session"])
def test_every_detail_is_a_few_queries_and_no_answer_asks_twice(tenant: Tenant, by: str) -> None:
    ids = fill(tenant.dev, tenant.people["bob"])
    caller: Caller | Browser = tenant.caller("carol") if by == "token" else Browser(tenant.people["carol"])
    assert caller.get("/me").status_code == 200
    asked = {path: statements(caller, path_of(path, ids)) for path in reads()}
    twice = {path: [sql for sql, times in Counter(found).items() if times > 1] for path, found in asked.items()}
    assert {path: found for path, found in twice.items() if found} == {}
    counts = {path: len(found) for path, found in asked.items() if path.endswith(("}", "ENV"))}
    assert len(counts) > 10
    session = 1 if by == "session" else 0
    most = {path: DEARER_DETAILS.get(path, MOST_OF_A_DETAIL) + session for path in counts}
    assert {path: count for path, count in counts.items() if count > most[path]} == {}


def test_a_deployment_that_waits_or_has_phases_is_a_few_queries_more(tenant: Tenant, vera: Caller) -> None:
    phases = [{"percent": 50, "bake_seconds": 1}, {"percent": 100, "bake_seconds": 0}]
    counts: dict[str, list[int]] = {}
    for name, strategy in (("waits", ALL_AT_ONCE), ("waits, in phases", {"type": "phased", "phases": phases})):
        ids = fill(tenant.dev, tenant.people["bob"], strategy)
        advance(Deployment.objects.get(pk=ids["deployment_id"]), "approve", approved_at=clock.now())
        path = path_of("ENV/deployments/{deployment_id}", ids)
        counts[name] = [queries(vera, path)]
        # an older one holds its agent
        agent = Agent.objects.get(pk=ids["agent_id"])
        older = fill(tenant.dev, tenant.people["bob"])
        Target.objects.create(deployment_id=older["deployment_id"], agent_id=agent.pk, agent_name=agent.name)
        advance(
            Deployment.objects.get(pk=older["deployment_id"]),
            "approve",
            approved_at=clock.now() - dt.timedelta(hours=1),
        )
        assert vera.get(path).json()["status_reason"].startswith("target_busy")
        counts[name].append(queries(vera, path))
    # how many agents it shares with which others, and these; the events of its phases
    assert counts == {
        "waits": [MOST_OF_A_DETAIL + 1, MOST_OF_A_DETAIL + 2],
        "waits, in phases": [MOST_OF_A_DETAIL + 2, MOST_OF_A_DETAIL + 3],
    }
