"""Strict input serializers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.agents.models import NAME_LENGTH
from apps.agents.services.enrollment import LONGEST_LIFETIME, MOST_USES
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

MAX_EXACT_INT = 2**53 - 1
MAX_LOG_TAIL_BYTES = 16 * 1024
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")


class Line(StrictCharField):
    """Text of one line: no control characters."""

    default_error_messages = {"control": "Control characters are not allowed."}

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if any(ord(c) < 32 or ord(c) == 127 for c in text):
            self.fail("control")
        return text


class Sha256(StrictCharField):
    """64 lower-case hex digits."""

    default_error_messages = {"digest": "Must be 64 lower-case hex digits."}

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not _SHA256.match(text):
            self.fail("digest")
        return text


class BoundedText(StrictCharField):
    """Text of at most `max_bytes` bytes of UTF-8, stored unchanged."""

    default_error_messages = {"too_long": "At most {max_bytes} bytes."}

    def __init__(self, *, max_bytes: int, **kwargs: Any) -> None:
        super().__init__(max_length=max_bytes, trim_whitespace=False, allow_blank=True, **kwargs)
        self.max_bytes = max_bytes

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if len(text.encode()) > self.max_bytes:
            self.fail("too_long", max_bytes=self.max_bytes)
        return text


class BoundedObject(JSONObjectField):
    """A JSON object of finite numbers, at most `max_bytes` bytes in compact form."""

    default_error_messages = {
        "too_long": "At most {max_bytes} bytes of JSON.",
        "not_finite": "A number is out of range.",
    }

    def __init__(self, *, max_bytes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_bytes = max_bytes

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        value = super().to_internal_value(data)
        try:
            size = len(json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode())
        except ValueError:
            self.fail("not_finite")
        if size > self.max_bytes:
            self.fail("too_long", max_bytes=self.max_bytes)
        return value


class LabelPatch(JSONObjectField):
    """A JSON Merge Patch of labels (RFC 7396): strings set, null removes."""

    default_error_messages = {"invalid": "Must be an object of short strings or null."}

    def to_internal_value(self, data: Any) -> dict[str, str | None]:
        value = super().to_internal_value(data)
        given = {key: item for key, item in value.items() if item is not None}
        StringMapField().to_internal_value(given)
        return value


def merged_labels(labels: Mapping[str, str], patch: Mapping[str, str | None] | None) -> dict[str, str]:
    """Apply a merge patch to `labels`; None removes all. Raises ValidationError if the result has too many."""
    if patch is None:
        return {}
    after = {key: value for key, value in {**labels, **patch}.items() if value is not None}
    try:
        return StringMapField().to_internal_value(after)
    except serializers.ValidationError as error:
        raise serializers.ValidationError({"labels": error.detail}) from None


class EnrollmentTokenInput(StrictSerializer):
    """POST enrollment-tokens."""

    name = Line(max_length=NAME_LENGTH, required=False, allow_blank=True, default="")
    max_uses = StrictIntegerField(min_value=1, max_value=MOST_USES, required=False, default=1)
    expires_in_seconds = StrictIntegerField(
        min_value=1, max_value=int(LONGEST_LIFETIME.total_seconds()), required=False, default=3600
    )
    labels = StringMapField(required=False, default=dict)


class AgentSerializer(StrictSerializer):
    """Input from an agent. Unknown fields are ignored, because a newer agent may send more."""

    ignores_unknown = True


class EnrollInput(AgentSerializer):
    """POST agents."""

    name = Line(max_length=NAME_LENGTH, required=False, allow_null=True, default=None)
    hostname = Line(max_length=253, required=False, allow_blank=True, default="")
    labels = StringMapField(required=False, default=dict)
    version = Line(max_length=64, required=False, allow_blank=True, default="")


class AgentPatchInput(StrictSerializer):
    """PATCH agent."""

    name = Line(max_length=NAME_LENGTH, required=False)
    labels = LabelPatch(required=False, allow_null=True)


class AgentEmptyInput(AgentSerializer):
    """No input from an agent: `{}` or an empty body."""


class RunningInput(AgentSerializer):
    """The bundle that a host runs."""

    deployment_id = UUIDField()
    bundle_sha256 = Sha256()
    sequence = StrictIntegerField(min_value=0, max_value=MAX_EXACT_INT)


class HealthInput(AgentSerializer):
    """Health of the running bundle."""

    ok = StrictBooleanField()
    detail = StrictCharField(max_length=1000, required=False, allow_blank=True, default="")


class HeartbeatInput(AgentSerializer):
    """POST heartbeat."""

    status = Line(max_length=64)
    version = Line(max_length=64, allow_blank=True)
    running = RunningInput(required=False, allow_null=True, default=None)
    start_id = Line(max_length=64, required=False, allow_blank=True, default="")
    key_set_version = StrictIntegerField(min_value=0, max_value=2**31 - 1)
    health = HealthInput(required=False, allow_null=True, default=None)
    metrics = BoundedObject(max_bytes=64 * 1024, required=False, default=dict)


class ReportInput(AgentSerializer):
    """A status report. Digest and sequence are null only without a bundle, or when none could be read."""

    status = StrictChoiceField(choices=["fetched", "verified", "activated", "failed", "rolled_back", "stopped"])
    bundle_sha256 = Sha256(required=False, allow_null=True, default=None)
    sequence = StrictIntegerField(min_value=0, max_value=MAX_EXACT_INT, required=False, allow_null=True, default=None)
    reason = BoundedText(max_bytes=4096, required=False, allow_null=True, default="")
    tuning = BoundedObject(max_bytes=16 * 1024, required=False, allow_null=True, default=dict)
    log_tail = BoundedText(max_bytes=MAX_LOG_TAIL_BYTES, required=False, allow_null=True, default="")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["status"] not in ("stopped", "failed"):
            missing = {
                name: [serializers.ErrorDetail("Required with this status.", code="required")]
                for name in ("bundle_sha256", "sequence")
                if attrs[name] is None
            }
            if missing:
                raise serializers.ValidationError(missing)
        return attrs
