"""Input shapes, strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.agents.models import NAME_LENGTH
from apps.agents.services.enrollment import LONGEST_LIFETIME, MOST_USES
from apps.core.api import Choice, Id, JSONObject, StrictSerializer, StringMap, Text, Truth, WholeNumber

MAX_EXACT_INT = 2**53 - 1
MAX_LOG_TAIL_BYTES = 16 * 1024
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")


class Line(Text):
    """Text of one line: no control characters."""

    default_error_messages = {"control": "Control characters are not taken here."}

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if any(ord(c) < 32 or ord(c) == 127 for c in text):
            self.fail("control")
        return text


class Sha256(Text):
    """64 lower-case hex digits."""

    default_error_messages = {"digest": "64 lower-case hex digits are expected."}

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not _SHA256.match(text):
            self.fail("digest")
        return text


class BoundedText(Text):
    """Text kept as it is, at most `max_bytes` of UTF-8."""

    default_error_messages = {"too_long": "At most {max_bytes} bytes."}

    def __init__(self, *, max_bytes: int, **kwargs: Any) -> None:
        super().__init__(max_length=max_bytes, trim_whitespace=False, allow_blank=True, **kwargs)
        self.max_bytes = max_bytes

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if len(text.encode()) > self.max_bytes:
            self.fail("too_long", max_bytes=self.max_bytes)
        return text


class BoundedObject(JSONObject):
    """A JSON object of finite numbers, at most `max_bytes` when written compactly."""

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


class LabelPatch(JSONObject):
    """A merge patch of labels (RFC 7396): strings set, null removes."""

    default_error_messages = {"invalid": "An object of short strings or null is expected."}

    def to_internal_value(self, data: Any) -> dict[str, str | None]:
        value = super().to_internal_value(data)
        given = {key: item for key, item in value.items() if item is not None}
        StringMap().to_internal_value(given)
        return value


def merged_labels(labels: Mapping[str, str], patch: Mapping[str, str | None] | None) -> dict[str, str]:
    """`labels` after a merge patch, None removing all. ValidationError when there are too many then."""
    if patch is None:
        return {}
    after = {key: value for key, value in {**labels, **patch}.items() if value is not None}
    try:
        return StringMap().to_internal_value(after)
    except serializers.ValidationError as error:
        raise serializers.ValidationError({"labels": error.detail}) from None


class EnrollmentTokenIn(StrictSerializer):
    """POST enrollment-tokens."""

    name = Line(max_length=NAME_LENGTH, required=False, allow_blank=True, default="")
    max_uses = WholeNumber(min_value=1, max_value=MOST_USES, required=False, default=1)
    expires_in_seconds = WholeNumber(
        min_value=1, max_value=int(LONGEST_LIFETIME.total_seconds()), required=False, default=3600
    )
    labels = StringMap(required=False, default=dict)


class EnrollIn(StrictSerializer):
    """POST agents."""

    name = Line(max_length=NAME_LENGTH, required=False, allow_null=True, default=None)
    hostname = Line(max_length=253, required=False, allow_blank=True, default="")
    labels = StringMap(required=False, default=dict)
    version = Line(max_length=64, required=False, allow_blank=True, default="")


class AgentPatchIn(StrictSerializer):
    """PATCH agent."""

    name = Line(max_length=NAME_LENGTH, required=False)
    labels = LabelPatch(required=False, allow_null=True)


class EmptyIn(StrictSerializer):
    """`{}` or nothing."""


class RunningIn(StrictSerializer):
    """What runs on a host."""

    deployment_id = Id()
    bundle_sha256 = Sha256()
    sequence = WholeNumber(min_value=0, max_value=MAX_EXACT_INT)


class HealthIn(StrictSerializer):
    """How what runs there is doing."""

    ok = Truth()
    detail = Text(max_length=1000, required=False, allow_blank=True, default="")


class HeartbeatIn(StrictSerializer):
    """POST heartbeat."""

    status = Line(max_length=64)
    version = Line(max_length=64, allow_blank=True)
    running = RunningIn(required=False, allow_null=True, default=None)
    key_set_version = WholeNumber(min_value=0, max_value=2**31 - 1)
    health = HealthIn(required=False, allow_null=True, default=None)
    metrics = BoundedObject(max_bytes=16 * 1024, required=False, default=dict)


class ReportIn(StrictSerializer):
    """POST status: digest and sequence are null only where no bundle is meant or none was read."""

    status = Choice(choices=["fetched", "verified", "activated", "failed", "rolled_back", "stopped"])
    bundle_sha256 = Sha256(required=False, allow_null=True, default=None)
    sequence = WholeNumber(min_value=0, max_value=MAX_EXACT_INT, required=False, allow_null=True, default=None)
    reason = BoundedText(max_bytes=4096, required=False, allow_null=True, default="")
    tuning = BoundedObject(max_bytes=16 * 1024, required=False, allow_null=True, default=dict)
    log_tail = BoundedText(max_bytes=MAX_LOG_TAIL_BYTES, required=False, allow_null=True, default="")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["status"] not in ("stopped", "failed"):
            missing = {
                name: [serializers.ErrorDetail("This is needed with this status.", code="required")]
                for name in ("bundle_sha256", "sequence")
                if attrs[name] is None
            }
            if missing:
                raise serializers.ValidationError(missing)
        return attrs
