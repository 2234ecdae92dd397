"""The approval policy of an environment: its shape, its defaults by posture, and who weakened it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apps.access.roles import Permission
from apps.access.selectors import people_with
from apps.approvals.models import PolicyWeakening
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.errors import BadRequest, FieldError, Unprocessable
from apps.tenancy.models import Environment, Posture
from apps.tenancy.registry import EnvironmentSettings
from apps.tenancy.scope import Scope

DEFAULT_REQUIRED = {Posture.DEV.value: 0, Posture.STAGING.value: 1, Posture.PROD.value: 2}
WEAKENED_FOR = dt.timedelta(hours=24)
_RANGES = {"required_approvals": (0, 20), "approval_window_hours": (1, 24 * 30), "credential_ttl_hours": (1, 24 * 7)}
_FLAGS = ("prevent_self_approval", "require_comment_on_deny")


def default_policy(posture: str) -> dict[str, Any]:
    """The policy of an environment that says nothing else."""
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
                problems.append(FieldError(pointer, "invalid", f"A whole number from {low} to {high}."))
        elif name in _FLAGS:
            if not isinstance(value, bool):
                problems.append(FieldError(pointer, "invalid", "true or false."))
        else:
            problems.append(FieldError(pointer, "unknown_field", "This field is not known here."))
    return problems


def weaker_in(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `after` weaker than `before`: fewer approvals, self-approval allowed, longer windows, no comment on deny."""
    found: dict[str, Any] = {}
    for name in ("required_approvals", *_FLAGS):
        if after[name] < before[name]:
            found[name] = [before[name], after[name]]
    for name in ("approval_window_hours", "credential_ttl_hours"):
        if after[name] > before[name]:
            found[name] = [before[name], after[name]]
    return found


def check_settings(
    *,
    actor: ActorRef,
    scope: Scope,
    before: EnvironmentSettings | None,
    after: EnvironmentSettings,
    explicit: frozenset[str],
) -> EnvironmentSettings:
    """Tenancy's settings check: refuse a policy of a wrong shape, complete it, and note who weakened it.

    Raises BadRequest on the shape; Unprocessable `self_approval_only_in_dev`, and `too_few_reviewers` when
    `required_approvals` is set above the number of people who could decide.
    """
    problems = _shape_problems(after.policy)
    if problems:
        raise BadRequest("The policy is not valid.", code="invalid_input", errors=problems)
    start = default_policy(after.posture) if before is None else before.policy or default_policy(after.posture)
    policy = {**default_policy(after.posture), **after.policy}
    if not policy["prevent_self_approval"] and after.posture != Posture.DEV.value:
        detail = "Self-approval may be switched on in dev only."
        raise Unprocessable(
            detail,
            code="self_approval_only_in_dev",
            errors=[FieldError("/policy/prevent_self_approval", "self_approval_only_in_dev", detail)],
        )
    if "policy.required_approvals" in explicit and policy["required_approvals"] > 0:
        able = people_with(Permission.OPERATE_ENVIRONMENT, scope).count()
        if policy["required_approvals"] > able:
            detail = f"{able} people could decide here."
            raise Unprocessable(
                detail,
                code="too_few_reviewers",
                errors=[FieldError("/policy/required_approvals", "too_few_reviewers", detail)],
            )
    weaker = weaker_in(start, policy) if before is not None else {}
    if weaker and actor.kind == "person" and actor.id and scope.environment is not None:
        PolicyWeakening.objects.create(environment=scope.environment, user_id=uuid.UUID(actor.id), details=weaker)
    return replace(after, policy=policy)


def policy_of(environment: Environment) -> dict[str, Any]:
    """The policy in force, complete."""
    return {**default_policy(environment.posture), **environment.policy}


def weakeners(environment: Environment, now: dt.datetime | None = None) -> set[uuid.UUID]:
    """People who weakened this environment's policy in the last 24 hours."""
    since = (now or clock.now()) - WEAKENED_FOR
    rows = PolicyWeakening.objects.filter(environment=environment, at__gt=since)
    return set(rows.values_list("user_id", flat=True))
