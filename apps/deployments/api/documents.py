"""JSON documents of bundles and deployments: what each answer holds, and how it is made of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from apps.agents.selectors import AgentWarning
from apps.api.documents import document
from apps.deployments.blocked import blocked_reason
from apps.deployments.models import ConfigBundle, Deployment, DeploymentEvent, Target
from apps.deployments.selectors import Overview, PhaseReport, overviews

MOST_WARNINGS = 50


class BundleDocument(TypedDict):
    """A config bundle; a list has `config` only with `?include=config`."""

    id: str
    version_id: str
    version_number: int
    pipeline_name: str
    spec_hash: str
    config: NotRequired[Mapping[str, object]]
    config_hash: str
    created_by: str | None
    created_by_name: str
    used_at: str | None
    created_at: str


class PhaseDocument(TypedDict):
    """A phase of a rollout, with the number of its targets in each status."""

    phase: int
    percent: int
    bake_seconds: int
    status: str
    targets: dict[str, int]
    started_at: str | None
    bake_started_at: str | None
    bake_ends_at: str | None
    passed_at: str | None


class DeploymentDocument(TypedDict):
    """A deployment. `bake_ends_at` is set only during a bake; `built_at` is in milliseconds since 1970."""

    id: str
    status: str
    status_reason: str
    bundle_id: str
    version_id: str
    version_number: int
    pipeline_name: str
    spec_hash: str
    config_hash: str
    capabilities: list[str]
    approval_id: str | None
    requested_by: str | None
    requested_by_name: str
    reason: str
    target_selector: Mapping[str, object]
    strategy: Mapping[str, object]
    timeout_seconds: int
    sequence: int | None
    built_at: int | None
    signing_kid: str | None
    key_revoked_at: str | None
    needs_redeployment: bool
    bundle_sha256: str | None
    superseded_by: str | None
    targets: dict[str, int]
    phase: int | None
    phase_started_at: str | None
    bake_started_at: str | None
    bake_ends_at: str | None
    phases: list[PhaseDocument]
    approved_at: str | None
    deploying_at: str | None
    rolling_back_at: str | None
    settled_at: str | None
    created_at: str
    updated_at: str | None


class WarningDocument(TypedDict):
    """A warning about an agent; without an agent it counts those that are not listed."""

    code: str
    agent_id: str | None
    agent_name: str
    detail: str


class RequestedDeployment(DeploymentDocument):
    """A deployment just requested, with warnings that do not prevent it."""

    warnings: list[WarningDocument]


class TargetDocument(TypedDict):
    """A target: an agent of a deployment."""

    id: str
    agent_id: str
    agent_name: str
    status: str
    phase: int
    report: Mapping[str, object] | None
    previous_deployment_id: str | None
    previous_bundle_sha256: str | None
    phase_started_at: str | None
    rollback_at: str | None
    settled_at: str | None
    created_at: str
    updated_at: str | None


EventDocument = TypedDict(
    "EventDocument",
    {
        "id": str,
        "from": str | None,
        "to": str,
        "actor": str,
        "actor_name": str,
        "trigger": str,
        "reason": str,
        "at": str,
    },
)
"""A change of a deployment's status."""


LONG_BUNDLE_MEMBERS = ("config",)


def bundle_document(bundle: ConfigBundle, members: Collection[str] = LONG_BUNDLE_MEMBERS) -> BundleDocument:
    """Return the API representation of a config bundle, with the long members that `members` names."""
    return document(BundleDocument, bundle, without=set(LONG_BUNDLE_MEMBERS) - set(members))


def phase_document(report: PhaseReport) -> PhaseDocument:
    """Return the API representation of a phase."""
    return document(PhaseDocument, report, phase=report.number, status=report.state.value, targets=dict(report.counts))


def deployment_document(deployment: Deployment, overview: Overview) -> DeploymentDocument:
    """Return the API representation of a deployment."""
    return document(
        DeploymentDocument,
        deployment,
        built_at=deployment.built_at_ms,
        signing_kid=deployment.signing_kid or None,
        needs_redeployment=overview.needs_redeployment,
        bundle_sha256=deployment.bundle_sha256 or None,
        targets=dict(overview.counts),
        phases=[phase_document(report) for report in overview.phases],
    )


def deployment_detail_document(deployment: Deployment) -> DeploymentDocument:
    """JSON representation of one deployment: `status_reason` also states why an approved one is blocked."""
    body = deployment_document(deployment, overviews([deployment])[deployment.pk])
    body["status_reason"] = body["status_reason"] or blocked_reason(deployment)
    return body


def warning_documents(warnings: Sequence[AgentWarning]) -> list[WarningDocument]:
    """JSON representation of warnings: the first `MOST_WARNINGS`, then one without an agent that counts the rest."""
    shown: list[WarningDocument] = [
        {"code": w.code, "agent_id": str(w.agent_id), "agent_name": w.agent_name, "detail": w.detail}
        for w in warnings[:MOST_WARNINGS]
    ]
    rest = len(warnings) - len(shown)
    if rest:
        code = warnings[-1].code
        shown.append(
            {"code": code, "agent_id": None, "agent_name": "", "detail": f"The same applies to {rest} more agents."}
        )
    return shown


def target_document(target: Target) -> TargetDocument:
    """Return the API representation of a target."""
    return document(TargetDocument, target, previous_bundle_sha256=target.previous_bundle_sha256 or None)


def event_document(event: DeploymentEvent) -> EventDocument:
    """Return the API representation of a deployment event."""
    ends: dict[str, Any] = {"from": event.from_status or None, "to": event.to_status}
    return document(EventDocument, event, at=event.created_at, **ends)
