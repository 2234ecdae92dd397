"""Heartbeats of agents."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import Case, F, Q, Value, When

from apps.agents.models import Agent, AgentQuerySet
from apps.agents.registry import Running, desired_source
from apps.agents.services.directives import announce
from apps.core import clock
from apps.core.db import lock_row

ALTERNATION_WINDOW = dt.timedelta(minutes=10)
KEPT_STARTS = 8
UNHEALTHY_WORDS = frozenset({"unhealthy", "failed", "error"})


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A validated heartbeat. `healthy` is None if not reported; the status word then decides."""

    status: str
    version: str
    running: Running | None
    key_set_version: int
    healthy: bool | None = None
    health_detail: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)
    start_id: str = ""

    @property
    def well(self) -> bool:
        """Whether the host reports that its bundle is healthy."""
        return self.healthy if self.healthy is not None else self.status.lower() not in UNHEALTHY_WORDS


def is_unchanged(agent: Agent, heartbeat: Heartbeat) -> bool:
    """Return whether `heartbeat` changes nothing of importance in the row of `agent`: seen before, healthy, running the
    same."""
    running = heartbeat.running
    return (
        agent.last_seen_at is not None
        and agent.healthy
        and heartbeat.well
        and agent.health_detail == heartbeat.health_detail
        and agent.running_deployment_id == (running.deployment_id if running else None)
        and agent.running_bundle_sha256 == (running.bundle_sha256 if running else "")
        and agent.running_sequence == (running.sequence if running else None)
        and agent.start_id == (heartbeat.start_id or agent.start_id)
    )


def record_heartbeat(*, agent: Agent, heartbeat: Heartbeat) -> None:
    """Store a heartbeat of `agent` in one write, then pass it to the app that deploys.

    Call it outside transactions: the app that deploys locks the environment first, and the agent's row comes after it.
    """
    if is_unchanged(agent, heartbeat):
        _rows(agent).update(**_shown(heartbeat))
    else:
        _write_changes(agent, heartbeat)
    desired_source().heartbeat_seen(agent, heartbeat.well, heartbeat.running)


def _rows(agent: Agent) -> AgentQuerySet:
    return Agent.objects.filter(pk=agent.pk, revoked_at__isnull=True)


def _shown(heartbeat: Heartbeat) -> dict[str, object]:
    """Return the columns that affect no decision."""
    return {
        "last_seen_at": clock.now(),
        "reported_status": heartbeat.status,
        "version": heartbeat.version,
        "metrics": dict(heartbeat.metrics),
        "key_set_version": heartbeat.key_set_version,
    }


@transaction.atomic
def _write_changes(agent: Agent, heartbeat: Heartbeat) -> None:
    running = heartbeat.running
    _rows(agent).update(
        **_shown(heartbeat),
        **_start_of(agent, heartbeat),
        healthy=heartbeat.well,
        health_detail=heartbeat.health_detail,
        running_deployment_id=running.deployment_id if running else None,
        running_bundle_sha256=running.bundle_sha256 if running else "",
        running_sequence=running.sequence if running else None,
    )
    # other processes must not answer the next one from their cache
    announce([agent.pk])


def _start_of(agent: Agent, heartbeat: Heartbeat) -> dict[str, object]:
    """Return the columns that a new `start_id` changes.

    An id is random at each start, so an id that returns belongs to a second process with the same identity. It counts
    when it returns twice: a single delayed heartbeat of a former start does not.
    """
    if heartbeat.start_id in ("", agent.start_id):
        return {}
    current = lock_row(Agent.objects.filter(pk=agent.pk))
    if current is None or current.start_id == heartbeat.start_id:
        return {}
    now = clock.now()
    since = (now - ALTERNATION_WINDOW).timestamp()
    recent = [start for start in current.recent_starts if start[1] > since]
    changes: dict[str, object] = {
        "start_id": heartbeat.start_id,
        "recent_starts": [*recent, [heartbeat.start_id, now.timestamp()]][-KEPT_STARTS:],
    }
    if [start[0] for start in recent].count(heartbeat.start_id) >= 2:
        changes["two_hosts_at"] = now
    return changes


def set_running(
    agent: Agent,
    *,
    deployment_id: uuid.UUID | None,
    bundle_sha256: str | None = None,
    sequence: int | None = None,
) -> None:
    """Store what `agent` reports to run (None: nothing), in the caller's transaction.

    Reported health belongs to the previous bundle: after a change the agent is healthy until it reports otherwise.
    """
    running = deployment_id is not None
    same = Q(running_deployment_id=deployment_id) if running else Q(running_deployment_id__isnull=True)
    Agent.objects.filter(pk=agent.pk).update(
        healthy=Case(When(same, then=F("healthy")), default=Value(True)),
        health_detail=Case(When(same, then=F("health_detail")), default=Value("")),
        running_deployment_id=deployment_id,
        running_bundle_sha256=(bundle_sha256 or "") if running else "",
        running_sequence=sequence if running else None,
    )
    announce([agent.pk])
