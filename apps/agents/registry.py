"""The way up: what an agent shall run, and what becomes of its reports, is known by a room above."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from apps.agents.models import Agent
from apps.core.actors import ActorRef
from apps.core.errors import Conflict, NotFound


@dataclass(frozen=True, slots=True)
class Desired:
    """What an agent shall do. For `stop` and `none` the bundle and the sequence are None.

    `deployment_id` is what shall run; `for_deployment_id` the deployment that this serves, where reports go.
    """

    directive: str = "none"
    deployment_id: uuid.UUID | None = None
    for_deployment_id: uuid.UUID | None = None
    bundle_sha256: str | None = None
    sequence: int | None = None

    def content(self) -> dict[str, object]:
        """The part of a directive that, when it changes, makes a new one."""
        return {
            "directive": self.directive,
            "deployment_id": str(self.deployment_id) if self.deployment_id else None,
            "for_deployment_id": str(self.for_deployment_id) if self.for_deployment_id else None,
            "bundle_sha256": self.bundle_sha256,
            "sequence": self.sequence,
        }


@dataclass(frozen=True, slots=True)
class AgentReport:
    """A status report, its shape checked: status is fetched, verified, activated, failed, rolled_back or stopped."""

    status: str
    bundle_sha256: str | None = None
    sequence: int | None = None
    reason: str = ""
    tuning: Mapping[str, object] = field(default_factory=dict)
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """What an agent says it runs."""

    deployment_id: uuid.UUID
    bundle_sha256: str
    sequence: int


@dataclass(frozen=True, slots=True)
class BundleDownload:
    """An archive to hand out: `stream` yields exactly `size` bytes and is closed by whoever sends it."""

    stream: BinaryIO
    size: int
    sha256: str


class DesiredSource(Protocol):
    """What the room that deploys promises."""

    def desired(self, agent: Agent) -> Desired:
        """What `agent` shall run now. Reads only; called in no transaction."""

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        """Take a report in one transaction of its own (environment locked first), `services.set_running` inside it.

        A repeat changes nothing. Conflict for what is no longer wanted, NotFound when `agent` is not a target.
        """

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        """The archive of a deployment. NotFound unless `agent` is a target of it and it was handed out to it."""

    def removal_blockers(self, agent: Agent) -> list[str]:
        """What is in flight on `agent`, in words; empty when it can go."""

    def agent_removed(self, *, actor: ActorRef, agent: Agent) -> None:
        """Settle what was in flight on `agent`. In the caller's transaction, the environment locked by it."""

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        """A heartbeat came in. Called in no transaction, after the agent's row was written."""

    def has_in_flight(self, agent: Agent) -> bool:
        """Is a deployment with `agent` as a target in flight? Then a poll that can't wait comes back soon."""


class NothingDesired:
    """Stands in until a room registers: nobody wants anything of any agent."""

    def desired(self, agent: Agent) -> Desired:
        return Desired()

    def report(self, *, agent: Agent, deployment_id: uuid.UUID, report: AgentReport) -> None:
        raise Conflict("Nothing is wanted of this agent.", code="not_wanted")

    def bundle_for(self, agent: Agent, deployment_id: uuid.UUID) -> BundleDownload:
        raise NotFound()

    def removal_blockers(self, agent: Agent) -> list[str]:
        return []

    def agent_removed(self, *, actor: ActorRef, agent: Agent) -> None:
        return None

    def heartbeat_seen(self, agent: Agent, healthy: bool, running: Running | None) -> None:
        return None

    def has_in_flight(self, agent: Agent) -> bool:
        return False


_source: list[DesiredSource] = [NothingDesired()]


def set_desired_source(source: DesiredSource) -> DesiredSource:
    """Let `source` say what agents shall run. Answers the one it replaces."""
    previous = _source[0]
    _source[0] = source
    return previous


def desired_source() -> DesiredSource:
    """Who says what agents shall run."""
    return _source[0]
