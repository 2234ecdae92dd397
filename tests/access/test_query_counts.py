"""How many queries the main requests make: pinned, so that one more is a decision and a list never asks by the row."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.agents.models import Agent
from apps.core.ids import new_id
from apps.deployments.models import ConfigBundle, Deployment
from apps.jobs.models import Job
from tests.support import Caller, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

DETAIL = 4
"""The token with its person, the path as one join, the person's roles, the row."""


@pytest.fixture
def vera(tenant: Tenant) -> Caller:
    """A viewer whose token was used a moment ago: its use is written once a minute."""
    caller = tenant.caller("vera")
    assert caller.get("/me").status_code == 200
    return caller


def queries(caller: Caller, path: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        answer = caller.get(path)
    assert answer.status_code == 200, answer.content
    # a prepared statement has no text to show on PostgreSQL
    return len([q for q in captured if not (q["sql"] or "").startswith(("SAVEPOINT", "RELEASE"))])


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
    ("name", "make", "wanted"),
    [
        ("agents", make_agents, DETAIL),
        ("bundles", make_bundles, DETAIL),
        ("deployments", make_deployments, DETAIL + 1),  # and the counts of its targets
        ("jobs", make_jobs, DETAIL),
    ],
)
def test_a_detail_and_a_list_make_as_many_queries_however_many_rows_there_are(
    tenant: Tenant, vera: Caller, name: str, make: Callable[[Tenant, int], list[uuid.UUID]], wanted: int
) -> None:
    where = f"{tenant.path()}/{name}"
    [row] = make(tenant, 1)
    assert queries(vera, f"{where}/{row}") == wanted
    one = queries(vera, where)
    make(tenant, 12)
    assert queries(vera, where) == one == wanted


def test_the_tree_itself_is_read_by_its_path_alone(tenant: Tenant, vera: Caller) -> None:
    assert queries(vera, tenant.path()) == DETAIL - 1
    assert queries(vera, tenant.path().rsplit("/environments", 1)[0]) == DETAIL - 1


def test_who_am_i_asks_for_the_token_and_the_roles(tenant: Tenant, vera: Caller) -> None:
    assert queries(vera, "/me") == 2
