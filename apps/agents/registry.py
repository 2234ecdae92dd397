"""Registry of the app that decides what agents run and handles their reports."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from apps.agents.models import Agent
from apps.core.actors import ActorRef


@dataclass(frozen=True, slots=True)
class Desired:
    """What an agent should run. The bundle and the sequence are None for `stop` and `none`.

    `deployment_id` is the deployment that should run; `for_deployment_id` the deployment that this serves, which gets
    the reports.
    """

    directive: str = "none"
    deployment_id: uuid.UUID | None = None
    for_deployment_id: uuid.UUID | None = None
    bundle_sha256: str | None = None
    sequence: int | None = None

    def content(self) -> dict[str, object]:
        """The part of a directive whose change requires a new number."""
        return {
            "directive": self.directive,
            "deployment_id": str(self.deployment_id) if self.deployment_id else None,
            "for_deployment_id": str(self.for_deployment_id) if self.for_deployment_id else None,
            "bundle_sha256": self.bundle_sha256,
            "sequence": self.sequence,
        }


@dataclass(frozen=True, slots=True)
class AgentReport:
    """A validated status report. Status is fetched, verified, activated, failed, rolled_back or stopped."""

    status: str
    bundle_sha256: str | None = None
    sequence: int | None = None
    reason: str = ""
    tuning: Mapping[str, object] = field(default_factory=dict)
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """What an agent reports to run."""

    deployment_id: uuid.UUID
    bundle_sha256: str
    sequence: int


@dataclass(frozen=True, slots=True)
class BundleDownload:
    """An archive to send. `stream` yields exactly `size` bytes, and the sender closes it."""

    stream: BinaryIO
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunningDetail:
    """Detail of what an agent runs: the rules of each stage, and the tuning that the host reported."""

    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tuning: Mapping[str, object] = field(default_factory=dict)


class DesiredSource(Protocol):
    """Interface of the app that deploys."""

    def desired(self, agent: Agent) -> Desired:
        """Return what `agent` should run now. Reads only; called outside transactions."""

    def desired_of_each(self, agent_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Desired]:
        """Return what each of these agents should run now, in a few queries. May omit agents that need more queries."""

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        """Process a report in its own transaction (environment locked first), with `services.set_running` inside it.

        A repeated report changes nothing. Raises Conflict for a bundle that is no longer wanted, and NotFound if
        `agent` is not a target.
        """

    def require_target(self, agent: Agent, deployment_id: uuid.UUID) -> None:
        """Raise NotFound unless `agent` is a target of a deployment with this id."""

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        """Return the archive of a deployment. Raises NotFound unless `agent` is a target whose directive contains it."""

    def removal_blockers(self, agent: Agent) -> list[str]:
        """Return sentences about what is in flight on `agent`; empty if it can be removed."""

    def settle_targets_of_agent(self, *, actor: ActorRef, agent: Agent) -> None:
        """End what is in flight on `agent`, in the caller's transaction, which has locked the environment."""

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        """Process a heartbeat. Called outside transactions, after the agent's row was written."""

    def has_in_flight(self, agent: Agent) -> bool:
        """Return whether a deployment with `agent` as a target is in flight. A poll that can't wait then retries soon."""

    def running_detail(self, agent: Agent) -> RunningDetail:
        """Return details of what `agent` reports to run, if known."""


_source: list[DesiredSource] = []


def set_desired_source(source: DesiredSource) -> None:
    """Register the source of desired states, in place of the one before."""
    _source[:] = [source]


def desired_source() -> DesiredSource:
    """Return the registered source of desired states."""
    return _source[0]
