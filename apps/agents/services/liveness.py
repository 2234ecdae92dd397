"""What agents say of themselves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import Case, F, Q, Value, When

from apps.agents.lane import Claims, note_seen
from apps.agents.models import Agent
from apps.agents.registry import Running, desired_source
from apps.agents.services.directives import announce
from apps.core import clock

UNHEALTHY_WORDS = frozenset({"unhealthy", "failed", "error"})


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat, its shape checked. `healthy` None: not said, so the status word decides."""

    status: str
    version: str
    running: Running | None
    key_set_version: int
    healthy: bool | None = None
    health_detail: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)

    @property
    def claims(self) -> Claims:
        """What of it decides nothing."""
        return Claims(self.status, self.version, self.key_set_version, json.dumps(dict(self.metrics)))

    @property
    def well(self) -> bool:
        """Does the host say that what it runs is well?"""
        return self.healthy if self.healthy is not None else self.status.lower() not in UNHEALTHY_WORDS


def says_nothing_new(agent: Agent, heartbeat: Heartbeat) -> bool:
    """Is all of a meaning in `heartbeat` what the row of `agent` holds already: seen before, well, running the same?"""
    running = heartbeat.running
    return (
        agent.last_seen_at is not None
        and agent.healthy
        and heartbeat.well
        and agent.health_detail == heartbeat.health_detail
        and agent.running_deployment_id == (running.deployment_id if running else None)
        and agent.running_bundle_sha256 == (running.bundle_sha256 if running else "")
        and agent.running_sequence == (running.sequence if running else None)
    )


def record_heartbeat(*, agent: Agent, heartbeat: Heartbeat, in_batch: bool = False) -> None:
    """Note that `agent` lives and what it says, in one write, then let the room above see it.

    With `in_batch` the write is left to the lane's next flush when the heartbeat says nothing new. Call it outside of a
    transaction: the room above locks the environment first, and the agent's row comes after it.
    """
    if in_batch and says_nothing_new(agent, heartbeat):
        note_seen(agent.pk, clock.now(), heartbeat.claims)
    else:
        _write(agent, heartbeat)
    desired_source().heartbeat_seen(agent, heartbeat.well, heartbeat.running)


@transaction.atomic
def _write(agent: Agent, heartbeat: Heartbeat) -> None:
    running = heartbeat.running
    Agent.objects.filter(pk=agent.pk, revoked_at__isnull=True).update(
        last_seen_at=clock.now(),
        reported_status=heartbeat.status,
        version=heartbeat.version,
        healthy=heartbeat.well,
        health_detail=heartbeat.health_detail,
        metrics=dict(heartbeat.metrics),
        key_set_version=heartbeat.key_set_version,
        running_deployment_id=running.deployment_id if running else None,
        running_bundle_sha256=running.bundle_sha256 if running else "",
        running_sequence=running.sequence if running else None,
    )
    # other processes must not take the next one for nothing new
    announce([agent.pk])


def set_running(
    agent: Agent,
    *,
    deployment_id: uuid.UUID | None,
    bundle_sha256: str | None = None,
    sequence: int | None = None,
) -> None:
    """What `agent` has just reported to run (None: nothing), in the caller's transaction.

    What it said of its health was about what ran before: when that changes it is well until it says otherwise.
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
