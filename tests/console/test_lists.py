"""The console's lists: rows that can be distinguished, filters by place, and a bounded number of queries."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.access.models import MemberStatus
from apps.agents.models import Agent, Liveness
from apps.approvals.models import ApprovalStatus
from apps.core import clock
from apps.deployments.models import DeploymentStatus, PhaseMark, TargetStatus
from apps.deployments.rollout import PhaseState
from apps.jobs.models import JobStatus
from apps.pipelines.models import DraftStatus
from apps.signing.models import KeyStatus
from tests.approvals.test_approvals import ask
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = pytest.mark.django_db

MOST_QUERIES = 20


@pytest.fixture
def world(tenant: Tenant) -> World:
    world = World(tenant, tenant.staging)
    world.enroll(4)
    return world


def signed_in(tenant: Tenant, who: str) -> Client:
    client = Client()
    client.force_login(tenant.people[who])
    return client


def list_url(label: str) -> str:
    return reverse(f"admin:{label}_changelist")


def rows_of(client: Client, label: str, **query: Any) -> list[str]:
    answer = client.get(list_url(label), query)
    assert answer.status_code == 200
    body = re.search(r"<tbody>(.*?)</tbody>", answer.content.decode(), re.S)
    return re.findall(r"<tr>.*?</tr>", body[1], re.S) if body else []


def test_rows_of_approvals_and_deployments_can_be_distinguished(world: World) -> None:
    made = world.request(targets=world.hosts[:3], reason="Less personal data")
    carol = signed_in(world.tenant, "carol")
    for label in ("approvals_approval", "deployments_deployment"):
        [row] = rows_of(carol, label)
        for words in ("orders v1", "Orders / staging", "pending", "Bob", "3"):
            assert words in row, (label, words)
    [row] = rows_of(carol, "approvals_approval")
    assert "0 of 1" in row
    assert "Less personal data" in row
    world.decide(made)
    [row] = rows_of(carol, "approvals_approval")
    assert "1 of 1" in row


def test_one_runs_now_and_the_replaced_one_is_grey(world: World) -> None:
    world.roll_out_approved()
    world.roll_out_approved(world.bundle("phone:drop"))
    rows = rows_of(signed_in(world.tenant, "vera"), "deployments_deployment")
    assert ["runs now" in row for row in rows] == [True, False]
    assert ["superseded" in row for row in rows] == [False, True]
    assert "4: 4 activated" in rows[0]


def test_lists_are_filtered_by_project_environment_liveness_and_searched(world: World) -> None:
    tenant = world.tenant
    world.request(targets=world.hosts[:1])
    vera = signed_in(tenant, "vera")
    for label in (
        "approvals_approval",
        "deployments_deployment",
        "agents_agent",
        "jobs_job",
        "pipelines_pipelineversion",
    ):
        here = len(rows_of(vera, label))
        assert here > 0, label
        assert len(rows_of(vera, label, project=str(tenant.project.pk))) == here
        assert len(rows_of(vera, label, environment=str(tenant.staging.pk))) == here
        assert rows_of(vera, label, environment=str(tenant.dev.pk)) == []
        assert rows_of(vera, label, environment=str(tenant.other_environment.pk)) == []
        assert rows_of(vera, label, project="nonsense") == []
    assert len(rows_of(vera, "approvals_approval", q="orders")) == 1
    assert len(rows_of(vera, "approvals_approval", q="staging")) == 1
    assert rows_of(vera, "approvals_approval", q="payments") == []
    assert len(rows_of(vera, "deployments_deployment", q="bob")) == 1
    Agent.objects.filter(pk=world.hosts[0].id).update(last_seen_at=clock.now())
    counts = {value: len(rows_of(vera, "agents_agent", liveness=value)) for value in Liveness.values}
    assert counts == {"online": 1, "late": 0, "offline": 3}


LABELS = sorted(f"{m._meta.app_label}_{m._meta.model_name}" for m in admin.site._registry)


@pytest.mark.postgres
def test_approvals_are_filtered_by_the_status_that_the_list_shows(tenant: Tenant) -> None:
    """An approval whose time has passed is shown as expired before the chore has moved it."""
    approval = ask(tenant)
    vera = Client()

    def listed() -> list[str]:
        vera.force_login(tenant.people["vera"])
        url = reverse("admin:approvals_approval_changelist")
        pages = {each: vera.get(url, {"status__exact": each}).content.decode() for each in ApprovalStatus.values}
        return [each for each, page in pages.items() if f"/admin/approvals/approval/{approval.pk}/" in page]

    assert listed() == ["pending"]
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, seconds=1), tick=True):
        assert listed() == ["expired"]


def test_no_list_asks_more_than_twenty_queries_however_long_it_is(world: World) -> None:
    for number in range(3):
        world.roll_out_approved(world.bundle(f"field{number}:drop"), targets=world.hosts[:2])
        world.request(world.bundle(f"other{number}:drop"), targets=world.hosts[2:])
    asked: dict[str, int] = {}
    for who in ("bob", "alice"):
        client = signed_in(world.tenant, who)
        for label in LABELS:
            with CaptureQueriesContext(connection) as captured:
                answer = client.get(list_url(label))
            if answer.status_code == 200:
                asked[f"{who} {label}"] = len(captured)
    assert len(asked) > 20
    assert {name: count for name, count in asked.items() if count > MOST_QUERIES} == {}


def test_every_state_has_a_colour() -> None:
    """A badge is grey only where grey is meant."""
    css = (Path(settings.BASE_DIR) / "static" / "console" / "console.css").read_text()
    coloured = set(re.findall(r"\.badge-([\w-]+)", css))
    grey = {"draft", "untouched", "waiting", "superseded"}
    kinds = (
        ApprovalStatus, DeploymentStatus, TargetStatus, JobStatus, KeyStatus, Liveness, MemberStatus, DraftStatus, PhaseMark,
    )  # fmt: skip
    states = {str(value) for kind in kinds for value in kind.values} | {state.value for state in PhaseState}
    assert states - coloured - grey == set()
