"""The approval policy of an environment: schema, defaults by posture, and weakenings."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.db.models import QuerySet

from apps.access.roles import Permission
from apps.access.selectors import people_with
from apps.approvals.models import PolicyWeakening
from apps.core import clock
from apps.core.errors import BadRequest, FieldError, Unprocessable
from apps.tenancy.models import Environment, Posture
from apps.tenancy.registry import EnvironmentSettings, PolicyField, SettingsChange

DEFAULT_REQUIRED = {Posture.DEV.value: 0, Posture.STAGING.value: 1, Posture.PROD.value: 2}
WEAKENED_FOR = dt.timedelta(hours=24)
FIELDS = (
    PolicyField(
        "required_approvals",
        "Approvals needed",
        "How many people must approve a deployment. Default of a new environment: 0 in dev, 1 in staging, 2 in prod.",
        low=0,
        high=20,
    ),
    PolicyField(
        "prevent_self_approval",
        "Requesters can't approve their own requests",
        "Can be disabled in dev only.",
        default=True,
    ),
    PolicyField("require_comment_on_deny", "Denying needs a comment", "It is shown to the requester.", default=True),
    PolicyField(
        "approval_window_hours",
        "Hours to decide",
        "A request that is not decided within this time expires.",
        low=1,
        high=24 * 30,
        default=24,
    ),
    PolicyField(
        "credential_ttl_hours",
        "Hours to build",
        "How long after the approval its bundle can be built.",
        low=1,
        high=24 * 7,
        default=8,
    ),
)
"""The form fields of the policy; their ranges apply to the API too."""
_RANGES = {f.name: (f.low, f.high) for f in FIELDS if f.low is not None and f.high is not None}
_FLAGS = tuple(f.name for f in FIELDS if f.is_switch)


def default_policy(posture: str) -> dict[str, Any]:
    """Return the default policy of an environment."""
    return {
        "required_approvals": DEFAULT_REQUIRED[posture],
        "prevent_self_approval": True,
        "approval_window_hours": 24,
        "credential_ttl_hours": 8,
        "require_comment_on_deny": True,
    }


def _shape_problems(policy: Mapping[str, Any]) -> list[FieldError]:
    problems = []
    for name, value in policy.items():
        pointer = f"/policy/{name}"
        if name in _RANGES:
            low, high = _RANGES[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                problems.append(FieldError(pointer, "invalid", f"Must be an integer from {low} to {high}."))
        elif name in _FLAGS:
            if not isinstance(value, bool):
                problems.append(FieldError(pointer, "invalid", "Must be true or false."))
        else:
            problems.append(FieldError(pointer, "unknown_field", "Unknown field."))
    return problems


def weaker_in(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes `after` weaker than `before`: fewer approvals, self-approval, longer windows, no comment on
    denial."""
    found: dict[str, Any] = {}
    for name in ("required_approvals", *_FLAGS):
        if after[name] < before[name]:
            found[name] = [before[name], after[name]]
    for name in ("approval_window_hours", "credential_ttl_hours"):
        if after[name] > before[name]:
            found[name] = [before[name], after[name]]
    return found


def check_settings(change: SettingsChange) -> EnvironmentSettings:
    """Tenancy's settings check: validate and complete the policy, and record who weakened it.

    Raises BadRequest for an invalid policy, Unprocessable `self_approval_only_in_dev`, and `too_few_reviewers` if
    `required_approvals` exceeds the number of people who can decide.
    """
    actor, scope, before, after = change.actor, change.scope, change.before, change.after
    problems = _shape_problems(after.policy)
    if problems:
        raise BadRequest("The policy is not valid.", code="invalid_input", errors=problems)
    defaults = default_policy(after.posture)
    # a policy that was stored before a member existed has its default
    start, policy = {**defaults, **(before.policy if before is not None else {})}, {**defaults, **after.policy}
    if not policy["prevent_self_approval"] and after.posture != Posture.DEV.value:
        pointer, detail = "/policy/prevent_self_approval", "Self-approval can be enabled in dev only."
        raise Unprocessable.about(pointer, "self_approval_only_in_dev", detail)
    if "policy.required_approvals" in change.explicit and policy["required_approvals"] > 0:
        able = people_with(Permission.OPERATE_ENVIRONMENT, scope).count()
        if policy["required_approvals"] > able:
            detail = f"Only {able} people can decide in this environment."
            raise Unprocessable.about("/policy/required_approvals", "too_few_reviewers", detail)
    weaker = weaker_in(start, policy) if before is not None else {}
    if weaker and actor.acts_for is not None and scope.environment is not None:
        PolicyWeakening.objects.create(environment=scope.environment, user_id=actor.acts_for, details=weaker)
    return replace(after, policy=policy)


def policy_of(environment: Environment) -> dict[str, Any]:
    """Return the complete policy in force."""
    return {**default_policy(environment.posture), **environment.policy}


def weakenings(environment: Environment, now: dt.datetime | None = None) -> QuerySet[PolicyWeakening]:
    """The weakenings of this policy in the last 24 hours."""
    return PolicyWeakening.objects.filter(environment=environment, at__gt=(now or clock.now()) - WEAKENED_FOR)


def weakened_until(environment: Environment, now: dt.datetime | None = None) -> dict[uuid.UUID, dt.datetime]:
    """Return the users who weakened this policy in the last 24 hours, and until when they can't decide."""
    rows = weakenings(environment, now).order_by("at").values_list("user_id", "at")
    return {user_id: at + WEAKENED_FOR for user_id, at in rows}
