"""Shapes of input and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.core.api import Choice, Id, JSONObject, StrictSerializer, StringMap, Text, Truth, WholeNumber, rfc3339
from apps.deployments.models import DEFAULT_TIMEOUT_SECONDS, ConfigBundle, Deployment, DeploymentEvent, Target
from apps.deployments.rollout import FULL, Phase
from apps.deployments.selectors import Overview, PhaseReport
from apps.deployments.services.request import LONGEST_BAKE_SECONDS, LONGEST_TIMEOUT_SECONDS, Selector, Strategy

MOST_AGENTS = 10_000
MOST_PHASES = 20
REASON_LENGTH = 2000


class Reason(Text):
    """Free text for people: no control characters but line breaks and tabs."""

    default_error_messages = {"control": "Control characters are not taken here."}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=REASON_LENGTH, allow_blank=True, required=False, default="", **kwargs)

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if any((ord(c) < 32 and c not in "\n\r\t") or ord(c) == 127 for c in text):
            self.fail("control")
        return text


class BundleIn(StrictSerializer):
    """POST bundles."""

    version_id = Id()
    config = JSONObject()


class TargetsIn(StrictSerializer):
    """Exactly one way to name agents."""

    all = Truth(required=False)
    agent_ids = serializers.ListField(child=Id(), required=False, min_length=1, max_length=MOST_AGENTS)
    labels = StringMap(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError("Give one of all, agent_ids, labels.", code="one_selector")
        if attrs.get("all") is False:
            raise serializers.ValidationError({"all": "Only true means something here."}, code="invalid")
        if attrs.get("labels") == {}:
            raise serializers.ValidationError({"labels": "Give at least one label."}, code="invalid")
        return attrs


class PhaseIn(StrictSerializer):
    """One phase of a phased rollout."""

    percent = WholeNumber(min_value=1, max_value=FULL)
    bake_seconds = WholeNumber(min_value=0, max_value=LONGEST_BAKE_SECONDS, required=False, default=0)


class StrategyIn(StrictSerializer):
    """How it rolls out."""

    type = Choice(choices=["all_at_once", "phased"])
    phases = serializers.ListField(child=PhaseIn(), required=False, min_length=1, max_length=MOST_PHASES)
    max_failures = WholeNumber(min_value=0, max_value=MOST_AGENTS, required=False, default=0)
    auto_rollback = Truth(required=False, default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("phases" in attrs) != (attrs["type"] == "phased"):
            raise serializers.ValidationError({"phases": "A phased rollout has phases, no other has."}, code="invalid")
        return attrs


class DeploymentIn(StrictSerializer):
    """POST deployments."""

    bundle_id = Id()
    targets = TargetsIn()
    strategy = StrategyIn(required=False)
    timeout_seconds = WholeNumber(
        min_value=1, max_value=LONGEST_TIMEOUT_SECONDS, required=False, default=DEFAULT_TIMEOUT_SECONDS
    )
    reason = Reason()


class ReasonIn(StrictSerializer):
    """POST rollback, cancel: `{reason?}` or nothing."""

    reason = Reason()


def selector_of(given: Mapping[str, Any]) -> Selector:
    """The checked `targets` as the services take them."""
    return Selector(
        everyone=given.get("all", False),
        agent_ids=tuple(dict.fromkeys(given.get("agent_ids", ()))),
        labels=given.get("labels", {}),
    )


def strategy_of(given: Mapping[str, Any] | None) -> Strategy:
    """The checked `strategy` as the services take it."""
    if given is None:
        return Strategy()
    return Strategy(
        type=given["type"],
        max_failures=given["max_failures"],
        auto_rollback=given["auto_rollback"],
        phases=tuple(Phase(p["percent"], p["bake_seconds"]) for p in given.get("phases", ())),
    )


def _text(value: object | None) -> str | None:
    return str(value) if value is not None else None


def bundle_body(bundle: ConfigBundle) -> dict[str, object]:
    """A config bundle as the API shows it."""
    return {
        "id": str(bundle.pk),
        "version_id": str(bundle.version_id),
        "version_number": bundle.version_number,
        "pipeline_name": bundle.pipeline_name,
        "spec_hash": bundle.spec_hash,
        "config": bundle.config,
        "config_hash": bundle.config_hash,
        "created_by": _text(bundle.created_by),
        "created_by_name": bundle.created_by_name,
        "used_at": rfc3339(bundle.used_at),
        "created_at": rfc3339(bundle.created_at),
    }


def phase_body(report: PhaseReport) -> dict[str, object]:
    """One phase as the API shows it."""
    return {
        "phase": report.number,
        "percent": report.percent,
        "bake_seconds": report.bake_seconds,
        "status": report.state.value,
        "targets": dict(report.counts),
        "started_at": rfc3339(report.started_at),
        "bake_started_at": rfc3339(report.bake_started_at),
        "bake_ends_at": rfc3339(report.bake_ends_at),
        "passed_at": rfc3339(report.passed_at),
    }


def deployment_body(deployment: Deployment, overview: Overview) -> dict[str, object]:
    """A deployment as the API shows it; `bake_ends_at` is set only while it bakes."""
    return {
        "id": str(deployment.pk),
        "status": deployment.status,
        "status_reason": deployment.status_reason,
        "bundle_id": str(deployment.bundle_id),
        "version_id": str(deployment.version_id),
        "version_number": deployment.version_number,
        "pipeline_name": deployment.pipeline_name,
        "spec_hash": deployment.spec_hash,
        "config_hash": deployment.config_hash,
        "capabilities": deployment.capabilities,
        "approval_id": _text(deployment.approval_id),
        "requested_by": _text(deployment.requested_by),
        "requested_by_name": deployment.requested_by_name,
        "reason": deployment.reason,
        "target_selector": deployment.target_selector,
        "strategy": deployment.strategy,
        "timeout_seconds": deployment.timeout_seconds,
        "sequence": deployment.sequence,
        "built_at": deployment.built_at_ms,
        "signing_kid": deployment.signing_kid or None,
        "key_revoked_at": rfc3339(deployment.key_revoked_at),
        "needs_redeployment": overview.needs_redeployment,
        "bundle_sha256": deployment.bundle_sha256 or None,
        "superseded_by": _text(deployment.superseded_by),
        "targets": dict(overview.counts),
        "phase": deployment.phase,
        "phase_started_at": rfc3339(deployment.phase_started_at),
        "bake_started_at": rfc3339(deployment.bake_started_at),
        "bake_ends_at": rfc3339(deployment.bake_ends_at),
        "phases": [phase_body(report) for report in overview.phases],
        "approved_at": rfc3339(deployment.approved_at),
        "deploying_at": rfc3339(deployment.deploying_at),
        "rolling_back_at": rfc3339(deployment.rolling_back_at),
        "settled_at": rfc3339(deployment.settled_at),
        "created_at": rfc3339(deployment.created_at),
        "updated_at": rfc3339(deployment.updated_at),
    }


def target_body(target: Target) -> dict[str, object]:
    """A target as the API shows it."""
    return {
        "id": str(target.pk),
        "agent_id": str(target.agent_id),
        "agent_name": target.agent_name,
        "status": target.status,
        "phase": target.phase,
        "report": target.report,
        "previous_deployment_id": _text(target.previous_deployment_id),
        "previous_bundle_sha256": target.previous_bundle_sha256 or None,
        "phase_started_at": rfc3339(target.phase_started_at),
        "rollback_at": rfc3339(target.rollback_at),
        "settled_at": rfc3339(target.settled_at),
        "created_at": rfc3339(target.created_at),
        "updated_at": rfc3339(target.updated_at),
    }


def event_body(event: DeploymentEvent) -> dict[str, object]:
    """One move as the API shows it."""
    return {
        "id": str(event.pk),
        "from": event.from_status or None,
        "to": event.to_status,
        "actor": event.actor,
        "actor_name": event.actor_name,
        "trigger": event.trigger,
        "reason": event.reason,
        "at": rfc3339(event.created_at),
    }
