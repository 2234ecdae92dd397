"""The agent's page: what its heartbeats counted, rule by rule, and what became of the tuning that was wished for."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import strip_tags

from apps.agents.models import Agent
from apps.deployments.models import Deployment, Target
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = pytest.mark.django_db

METRICS: dict[str, Any] = {
    "stages": {
        "redact": {"received": 12, "forwarded": 9, "refused": 3, "codes": {"not_json": 2, "too_deep": 1}},
        "lane:ingress": {"received": 4, "forwarded": 0, "refused": 4, "codes": {"content_coding": 4}},
    },
    "lanes": {"few": {"received": 7, "dropped": 2}},
    "rules": {"redact": [0]},
}
TUNING = {
    "requested": {"profile": "low-latency", "batch_size": 9000},
    "applied": {"profile": "default", "batch_size": 2000},
    "degraded": ["profile low-latency: this agent has no other than default"],
}


def page(tenant: Tenant, agent: Agent) -> str:
    client = Client()
    client.force_login(tenant.people["bob"])
    answer = client.get(reverse("admin:agents_agent_change", args=[agent.pk]))
    assert answer.status_code == 200
    return strip_tags(answer.content.decode())


@pytest.fixture
def running(tenant: Tenant) -> Agent:
    world = World(tenant, tenant.staging)
    world.enroll(1)
    made = Deployment.objects.get(pk=world.roll_out_approved())
    agent = Agent.objects.get()
    Agent.objects.update(
        metrics=METRICS, running_deployment_id=made.pk, running_bundle_sha256="0" * 64, running_sequence=1
    )
    Target.objects.filter(deployment=made, agent_id=agent.pk).update(report={"tuning": TUNING})
    return Agent.objects.get()


def test_it_shows_why_records_were_refused_and_which_rules_never_matched(tenant: Tenant, running: Agent) -> None:
    text = page(tenant, running)
    for line in (
        "redact: 12 received, 9 forwarded, 3 refused",
        "few: 2 of 7 dropped on a full lane",
        "redact: not_json: 2",
        "lane:ingress: content_coding: 4",
        "redact: email:drop: never matched",
        "requested: profile &quot;low-latency&quot;, batch_size 9000",
        "applied: profile &quot;default&quot;, batch_size 2000",
        "degraded: profile low-latency: this agent has no other than default",
    ):
        assert line in text, line
    Agent.objects.update(metrics={"rules": {"redact": [5]}})
    assert "redact: email:drop: 5" in page(tenant, running)


@pytest.mark.parametrize(
    "metrics",
    [{}, {"stages": 1, "lanes": [], "rules": {"redact": [1]}}, {"stages": {"redact": 1}, "rules": {"redact": "x"}},
     {"stages": {"redact": {"codes": {"<b>": True}}}, "rules": {"redact": [None, -1]}}],
)  # fmt: skip
def test_whatever_a_host_counts_the_page_is_shown(tenant: Tenant, running: Agent, metrics: Any) -> None:
    Agent.objects.update(metrics=metrics)
    assert "matches of each rule" in page(tenant, running).lower()
