"""Input of bundles and deployments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.api.serializers import (
    JSONObjectField,
    StrictBooleanField,
    StrictCharField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    StringMapField,
    UUIDField,
)
from apps.deployments.models import DEFAULT_TIMEOUT_SECONDS
from apps.deployments.rollout import FULL, Phase
from apps.deployments.services.requests import LONGEST_BAKE_SECONDS, LONGEST_TIMEOUT_SECONDS, Selector, Strategy

MOST_AGENTS = 10_000
MOST_PHASES = 20
REASON_LENGTH = 2000


class ReasonField(StrictCharField):
    """Free text without control characters other than line breaks and tabs."""

    default_error_messages = {"control": "Control characters are not allowed."}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=REASON_LENGTH, allow_blank=True, required=False, default="", **kwargs)

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if any((ord(c) < 32 and c not in "\n\r\t") or ord(c) == 127 for c in text):
            self.fail("control")
        return text


class BundleInput(StrictSerializer):
    """POST bundles."""

    version_id = UUIDField()
    config = JSONObjectField()


class TargetsInput(StrictSerializer):
    """Selector of agents: exactly one of `all`, `agent_ids`, `labels`."""

    all = StrictBooleanField(required=False)
    agent_ids = serializers.ListField(child=UUIDField(), required=False, min_length=1, max_length=MOST_AGENTS)
    labels = StringMapField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError("Exactly one of all, agent_ids, labels is expected.", code="one_selector")
        if attrs.get("all") is False:
            raise serializers.ValidationError({"all": "Only true is allowed."}, code="invalid")
        if attrs.get("labels") == {}:
            raise serializers.ValidationError({"labels": "At least one label is expected."}, code="invalid")
        return attrs


class PhaseInput(StrictSerializer):
    """One phase of a phased rollout."""

    percent = StrictIntegerField(min_value=1, max_value=FULL)
    bake_seconds = StrictIntegerField(min_value=0, max_value=LONGEST_BAKE_SECONDS, required=False, default=0)


class StrategyInput(StrictSerializer):
    """Rollout strategy: all at once, or phased."""

    type = StrictChoiceField(choices=["all_at_once", "phased"])
    phases = serializers.ListField(child=PhaseInput(), required=False, min_length=1, max_length=MOST_PHASES)
    max_failures = StrictIntegerField(min_value=0, max_value=MOST_AGENTS, required=False, default=0)
    auto_rollback = StrictBooleanField(required=False, default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("phases" in attrs) != (attrs["type"] == "phased"):
            raise serializers.ValidationError(
                {"phases": "Phases are required for phased, and not allowed otherwise."}, code="invalid"
            )
        return attrs


class DeploymentInput(StrictSerializer):
    """POST deployments."""

    bundle_id = UUIDField()
    targets = TargetsInput()
    strategy = StrategyInput(required=False)
    timeout_seconds = StrictIntegerField(
        min_value=1, max_value=LONGEST_TIMEOUT_SECONDS, required=False, default=DEFAULT_TIMEOUT_SECONDS
    )
    reason = ReasonField()


class ReasonInput(StrictSerializer):
    """Body of rollback and cancel: `{reason?}` or empty."""

    reason = ReasonField()


def selector_of(given: Mapping[str, Any]) -> Selector:
    """Convert validated `targets` to the services' Selector."""
    return Selector(
        everyone=given.get("all", False),
        agent_ids=tuple(dict.fromkeys(given.get("agent_ids", ()))),
        labels=given.get("labels", {}),
    )


def strategy_of(given: Mapping[str, Any] | None) -> Strategy:
    """Convert a validated `strategy` to the services' Strategy."""
    if given is None:
        return Strategy()
    return Strategy(
        type=given["type"],
        max_failures=given["max_failures"],
        auto_rollback=given["auto_rollback"],
        phases=tuple(Phase(p["percent"], p["bake_seconds"]) for p in given.get("phases", ())),
    )
