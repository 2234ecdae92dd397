"""Rollout of a deployment for display: phases, blast radius and history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from apps.agents.models import Agent
from apps.deployments.models import Deployment, describe_counts
from apps.deployments.rollout import PhaseState
from apps.deployments.selectors import Overview, PhaseReport, events_of, overviews


def duration(seconds: int) -> str:
    """Format a duration: `1 h 30 min`, `45 s`."""
    parts = [(seconds // 3600, "h"), (seconds % 3600 // 60, "min"), (seconds % 60, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


@dataclass(frozen=True, slots=True)
class PhaseLine:
    """One phase as a row of a table."""

    number: int
    percent: int
    agents: int
    bake: str
    state: str
    counts: str
    since: dt.datetime | None = None
    """Since when it is in this state; None before it started."""
    bake_ends_at: dt.datetime | None = None
    """When its bake ends, while it bakes."""

    @property
    def current(self) -> bool:
        """True if this is the present phase."""
        return self.state in (PhaseState.DEPLOYING.value, PhaseState.BAKING.value)


def _line(report: PhaseReport) -> PhaseLine:
    baking = report.state is PhaseState.BAKING
    return PhaseLine(
        number=report.number + 1,
        percent=report.percent,
        agents=report.counts["total"],
        bake=duration(report.bake_seconds) if report.bake_seconds else "none",
        state=report.state.value,
        counts=describe_counts(report.counts),
        since=report.bake_started_at if baking else report.passed_at or report.started_at,
        bake_ends_at=report.bake_ends_at if baking else None,
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    """Description of a deployment's rollout."""

    phases: Sequence[PhaseLine]
    blast_radius: str
    stops: str


def count_agents(count: int) -> str:
    """`1 agent`, `3 agents`."""
    return f"{count} agent{'' if count == 1 else 's'}"


def rollout_of(deployment: Deployment, overview: Overview | None = None) -> Rollout:
    """Describe the rollout of a deployment. `overview` avoids a query if the caller has it."""
    overview = overview or overviews([deployment])[deployment.pk]
    total = overview.counts["total"]
    here = Agent.objects.filter(environment=deployment.environment_id).enrolled().count()
    if overview.phases:
        first = overview.phases[0].counts["total"]
        radius = f"{count_agents(first)} in the first phase, then {total} of the environment's {here} phase by phase"
    else:
        radius = f"{count_agents(total)} of the environment's {here}, all at once"
    silent = duration(deployment.timeout_seconds)
    most = deployment.max_failures
    trouble = "one fails" if most == 0 else f"more than {most} fail"
    after = "rolls back automatically" if deployment.auto_rollback else "waits for an operator"
    stops = f"It stops as soon as {trouble} or stay{'s' if most == 0 else ''} silent for {silent}, and {after}."
    return Rollout([_line(report) for report in overview.phases], radius, stops)


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of a deployment's history: a status transition or a phase event."""

    badge: str
    text: str
    reason: str
    at: dt.datetime


def history_of(deployment: Deployment, overview: Overview) -> list[TimelineEntry]:
    """The status transitions and phase events of a deployment, oldest first."""
    moves = [
        (
            event.pk,
            TimelineEntry(
                event.to_status, f"{event.actor_name or event.actor} · {event.trigger}", event.reason, event.at
            ),
        )
        for event in events_of(deployment)
    ]
    phases = [
        (event.pk, TimelineEntry(event.mark, f"Phase {event.phase + 1}", event.detail, event.created_at))
        for event in overview.phase_events
    ]
    return [entry for _, entry in sorted([*moves, *phases], key=lambda pair: pair[0])]
