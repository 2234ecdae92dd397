"""How a rollout is told to people: its phases, how far it may reach before it stops, and what happened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from apps.agents.models import Agent
from apps.core.clock import rfc3339
from apps.deployments.models import Deployment, in_words
from apps.deployments.rollout import PhaseState
from apps.deployments.selectors import PhaseReport, events_of, overviews, phase_events_of


def duration(seconds: int) -> str:
    """A length of time in words: `1 h 30 min`, `45 s`."""
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
    when: str
    """Since when it is in this state, or when its bake ends: RFC 3339; empty before it started."""


def _line(report: PhaseReport) -> PhaseLine:
    moment = report.bake_ends_at if report.state is PhaseState.BAKING else (report.passed_at or report.started_at)
    return PhaseLine(
        number=report.number + 1,
        percent=report.percent,
        agents=report.counts["total"],
        bake=duration(report.bake_seconds) if report.bake_seconds else "none",
        state=report.state.value,
        counts=in_words(report.counts),
        when=rfc3339(moment) or "",
    )


def phase_line(report: PhaseReport) -> dict[str, object]:
    """What the page that polls is told of a phase."""
    line = _line(report)
    return {"number": line.number, "status": line.state, "counts": line.counts, "when": line.when}


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a deployment rolls out, in words."""

    phases: Sequence[PhaseLine]
    blast_radius: str
    stops: str


def _agents(count: int) -> str:
    return f"{count} agent{'' if count == 1 else 's'}"


def rollout_of(deployment: Deployment) -> Rollout:
    """The rollout of a deployment as people read it."""
    overview = overviews([deployment])[deployment.pk]
    total = overview.counts["total"]
    here = Agent.objects.filter(environment=deployment.environment_id).enrolled().count()
    if overview.phases:
        first = overview.phases[0].counts["total"]
        radius = f"{_agents(first)} in the first phase, then {total} of the environment's {here} step by step"
    else:
        radius = f"{_agents(total)} of the environment's {here}, all at once"
    silent = duration(deployment.timeout_seconds)
    most = deployment.max_failures
    trouble = "one fails" if most == 0 else f"more than {most} fail"
    after = "goes back by itself where it was" if deployment.auto_rollback else "waits for somebody to act"
    stops = f"It stops as soon as {trouble} or stay{'s' if most == 0 else ''} silent for {silent}, and {after}."
    return Rollout([_line(report) for report in overview.phases], radius, stops)


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of a deployment's history: a move of its status, or what became of a phase."""

    pill: str
    text: str
    reason: str
    at: dt.datetime

    def as_dict(self) -> dict[str, str]:
        """For the page that polls."""
        return {"pill": self.pill, "text": self.text, "reason": self.reason, "at": f"{self.at:%Y-%m-%d %H:%M:%S} UTC"}


def history_of(deployment: Deployment) -> list[Happening]:
    """What happened to it and to its phases, oldest first."""
    moves = [
        (
            event.pk,
            Happening(event.to_status, f"{event.actor_name or event.actor} · {event.trigger}", event.reason, event.at),
        )
        for event in events_of(deployment)
    ]
    phases = [
        (event.pk, Happening(event.mark, f"Phase {event.phase + 1}", event.detail, event.created_at))
        for event in phase_events_of(deployment)
    ]
    return [happening for _, happening in sorted([*moves, *phases], key=lambda pair: pair[0])]
