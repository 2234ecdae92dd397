"""Targets whose agent is older than an op or a rule's action that the pipeline uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apps.agents.models import Agent
from apps.agents.selectors import AgentWarning, for_warnings
from apps.deployments.models import ConfigBundle, Deployment, Target
from apps.pipelines import selectors as pipelines
from apps.runtime import agent as served
from apps.runtime.ops import Need, needs_of
from apps.runtime.spec import Compilation, compile_spec
from apps.runtime.trust import version_tuple
from apps.tenancy.selectors import scope_of

AGENT_TOO_OLD = "agent_too_old"
OLDEST = "0.1.0"


def agents_too_old(
    deployment: Deployment, agents: Iterable[Agent], needs: Sequence[Need] | None = None
) -> list[AgentWarning]:
    """A warning `agent_too_old` for each of `agents` that lacks something the deployment's pipeline uses, in their order.

    Such a host refuses the bundle until its agent is updated. An agent that reported no version counts as the oldest. Runs no
    query when every agent is at least as new as the one that this server distributes. `needs` (`needs_of_pipeline`) avoids a
    second compilation of the pipeline.
    """
    newest = version_tuple(served.VERSION)
    behind = [agent for agent in agents if version_tuple(_version(agent) or OLDEST) < newest]
    if not behind:
        return []
    if needs is None:
        needs = _needs_of(deployment)
    newest_first = sorted(needs, key=lambda need: version_tuple(need.since), reverse=True)
    found = []
    for agent in behind:
        version = version_tuple(_version(agent) or OLDEST)
        missing = next((need for need in newest_first if version < version_tuple(need.since)), None)
        if missing is not None:
            found.append(AgentWarning(agent.pk, agent.name, AGENT_TOO_OLD, _detail(agent, missing)))
    return found


def warnings_of(deployment: Deployment) -> list[AgentWarning]:
    """`agents_too_old` of the deployment's targets."""
    targets = Target.objects.filter(deployment=deployment).values_list("agent_id", flat=True)
    return agents_too_old(deployment, for_warnings(targets))


def needs_of_pipeline(compilation: Compilation, config: Mapping[str, Any]) -> list[Need]:
    """The ops and actions that a version with this configuration uses; empty when this server no longer understands the spec."""
    if compilation.plan is None:
        return []
    settings = config.get("stages", {})
    return [need for stage in compilation.plan.stages for need in needs_of(stage.op, settings.get(stage.id, {}))]


def _needs_of(deployment: Deployment) -> list[Need]:
    version = pipelines.get_version(scope_of(deployment.environment), deployment.version_id)
    config = ConfigBundle.objects.values_list("config", flat=True).get(pk=deployment.bundle_id)
    return needs_of_pipeline(compile_spec(version.spec), config)


def _version(agent: Agent) -> str | None:
    """The version that the agent reported; None without one, or when it is not three numbers."""
    try:
        version_tuple(agent.version)
    except ValueError:
        return None
    return agent.version


def _detail(agent: Agent, need: Need) -> str:
    version = _version(agent)
    runs = f"It runs version {version} of the agent" if version else "It has reported no version of its agent"
    return f"{runs}; {need.what} needs {need.since} or newer. An older one refuses the bundle."
