"""Enrollment of hosts with one-time tokens."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from django.db import models, transaction

from apps.access import tokens
from apps.access.policy import require_person
from apps.access.principals import Principal
from apps.agents.models import NAME_LENGTH, Agent, EnrollmentToken
from apps.agents.services.keys import end_keys, mint_key
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import delete_in_chunks
from apps.core.errors import BadRequest, Conflict, FieldError, NotFound, Unauthenticated
from apps.core.secrets import Secret
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of

DEFAULT_LIFETIME = dt.timedelta(hours=1)
LONGEST_LIFETIME = dt.timedelta(days=7)
MOST_USES = 1000
REPEAT_WINDOW = dt.timedelta(minutes=10)
ENDED_KEPT = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Result of an enrollment: the agent and its key, which is shown only here."""

    agent: Agent
    api_key: Secret


def _out_of_range(name: str, detail: str) -> BadRequest:
    return BadRequest(
        "The input is not valid.",
        code="invalid_input",
        errors=[FieldError(f"/{name}", "out_of_range", detail)],
    )


def create_enrollment_token(
    *,
    actor: Principal,
    scope: Scope,
    name: str = "",
    max_uses: int = 1,
    expires_in: dt.timedelta = DEFAULT_LIFETIME,
    labels: Mapping[str, str] | None = None,
) -> tuple[EnrollmentToken, Secret]:
    """Create a token for `max_uses` enrollments in the scope's environment. Returns it with its text, which is shown
    only here.

    Valid for an hour by default and seven days at most (BadRequest above). Raises Forbidden `person_required`, and NotFound
    if the environment is deleted.
    """
    require_person(actor)
    if not dt.timedelta(seconds=1) <= expires_in <= LONGEST_LIFETIME:
        raise _out_of_range("expires_in_seconds", "Must be from 1 second to 7 days.")
    if not 1 <= max_uses <= MOST_USES:
        raise _out_of_range("max_uses", f"Must be from 1 to {MOST_USES}.")
    minted = tokens.mint("enr")
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        token = EnrollmentToken.objects.create(
            environment=environment,
            name=name,
            sha256=minted.sha256,
            public_id=minted.public_id,
            max_uses=max_uses,
            labels=dict(labels or {}),
            expires_at=clock.now() + expires_in,
            created_by=actor.id,
            created_by_name=actor.name[:200],
        )
        audit.record_in(
            scope,
            action="enrollment_token.created",
            actor=actor.ref,
            target=f"enrollment_token:{token.pk}",
            details={
                "name": name,
                "public_id": token.public_id,
                "max_uses": max_uses,
                "labels": token.labels,
                "expires_at": clock.rfc3339(token.expires_at),
            },
        )
    return token, minted.text


def delete_enrollment_token(*, actor: Principal, scope: Scope, token_id: uuid.UUID) -> None:
    """Delete a token. Agents that enrolled with it stay. Raises NotFound."""
    with transaction.atomic():
        lock_environment(scope.require_environment().pk)
        changed = EnrollmentToken.objects.filter(
            pk=token_id, environment=scope.require_environment(), revoked_at__isnull=True
        ).update(revoked_at=clock.now())
        if not changed:
            raise NotFound()
        audit.record_in(
            scope,
            action="enrollment_token.deleted",
            actor=actor.ref,
            target=f"enrollment_token:{token_id}",
        )


def request_digest(idempotency_key: str | None) -> str:
    """Return the stored form of an Idempotency-Key; empty for none."""
    return hashlib.sha256(idempotency_key.encode()).hexdigest() if idempotency_key else ""


def delete_ended_tokens(now: dt.datetime) -> int:
    """Delete the enrollment tokens revoked or expired 30 days ago. Returns their number. Their audit events stay."""
    before = now - ENDED_KEPT
    return delete_in_chunks(
        EnrollmentToken.objects.filter(models.Q(revoked_at__lt=before) | models.Q(expires_at__lt=before))
    )


def _earlier(token: EnrollmentToken, request: str, now: dt.datetime) -> Agent | None:
    """Return the agent that the same request created recently and that has not reported since."""
    if not request:
        return None
    return (
        Agent.objects.enrolled()
        .select_related("environment__project__organization")
        .filter(
            enrollment_token_id=token.pk,
            enrollment_request=request,
            last_seen_at__isnull=True,
            created_at__gt=now - REPEAT_WINDOW,
        )
        .order_by("-pk")
        .first()
    )


def _refusal(token: EnrollmentToken | None, now: dt.datetime) -> Unauthenticated | None:
    if token is None or token.revoked_at is not None:
        return Unauthenticated("Unknown enrollment token.")
    if token.uses >= token.max_uses:
        return Unauthenticated("This enrollment token was used.", code="token_used")
    if token.expires_at <= now:
        return Unauthenticated("This enrollment token has expired.", code="token_expired")
    return None


def usable_token(sha256: str, *, idempotency_key: str | None) -> EnrollmentToken:
    """Return the token with this digest, if an enrollment with it can succeed (a repetition of the same request
    included).

    Raises Unauthenticated: `invalid_token` if it is unknown, deleted, or of a deleted environment; `token_used`;
    `token_expired`.
    """
    now = clock.now()
    token = (
        EnrollmentToken.objects.select_related("environment__project__organization")
        .filter(sha256=sha256, environment__deleted_at__isnull=True)
        .first()
    )
    refusal = _refusal(token, now)
    if token is None or refusal is not None:
        known = token is not None and token.revoked_at is None
        if token is None or not (known and _earlier(token, request_digest(idempotency_key), now)):
            raise refusal or Unauthenticated()
    return token


def note_refused_enrollment(sha256: str, *, reason: str) -> None:
    """Record the refusal of an existing token. An unknown token leaves no event."""
    token = EnrollmentToken.objects.select_related("environment__project__organization").filter(sha256=sha256).first()
    if token is None:
        return
    scope = scope_of(token.environment)
    audit.record_denial(
        organization_id=scope.organization_id,
        action="agent.enroll",
        actor=ActorRef("enrollment", str(token.pk), token.name),
        target=f"environment:{token.environment_id}",
        reason=reason,
        scope=scope.as_dict(),
    )


def enroll(
    *,
    actor: Principal,
    token: EnrollmentToken,
    idempotency_key: str | None = None,
    name: str | None = None,
    hostname: str = "",
    reported_labels: Mapping[str, str] | None = None,
    version: str = "",
) -> Enrollment:
    """Enroll a host: exactly `max_uses` times, under any concurrency.

    The same request (token and Idempotency-Key) repeated within ten minutes and before the first heartbeat returns the
    same agent with a new key. Raises Unauthenticated `token_used`, `token_expired` or `invalid_token`, and Conflict
    `name_taken` for a name that another agent of the environment has.
    """
    request = request_digest(idempotency_key)
    with transaction.atomic():
        environment = lock_environment(token.environment_id)
        scope = scope_of(environment)
        now = clock.now()
        current = EnrollmentToken.objects.filter(pk=token.pk).first()
        agent = _earlier(token, request, now) if current and current.revoked_at is None else None
        repeated = agent is not None
        if agent is not None:
            end_keys(agent, now)
        else:
            used = EnrollmentToken.objects.filter(
                pk=token.pk, revoked_at__isnull=True, expires_at__gt=now, uses__lt=models.F("max_uses")
            ).update(uses=models.F("uses") + 1, last_used_at=now)
            if not used:
                raise _refusal(current, now) or Unauthenticated()
            taken = Agent.objects.filter(environment=environment)
            if name is not None and taken.filter(name=name).exists():
                raise Conflict(f"An agent named '{name}' already exists. Delete it first.", code="name_taken")
            agent = Agent.objects.create(
                environment=environment,
                name=name if name is not None else _free_name(taken, hostname),
                labels=dict(token.labels),
                reported_labels=dict(reported_labels or {}),
                hostname=hostname,
                version=version,
                enrollment_token_id=token.pk,
                enrollment_request=request,
            )
        api_key = mint_key(agent)
        audit.record_in(
            scope,
            action="agent.enrolled",
            actor=actor.ref,
            target=f"agent:{agent.pk}",
            details={"name": agent.name, "labels": agent.labels, "hostname": hostname, "repeated": repeated},
        )
        fault_point("agents.enroll.before_commit")
    fault_point("agents.enroll.after_commit")
    return Enrollment(agent, api_key)


def _free_name(taken: models.QuerySet[Agent], hostname: str) -> str:
    """Return a name derived from the host name's first label, with a number if another agent has it."""
    base = re.sub(r"[^a-z0-9-]+", "-", hostname.split(".", 1)[0].lower()).strip("-")[: NAME_LENGTH - 8] or "agent"
    names = set(taken.filter(name__startswith=base).values_list("name", flat=True))
    if base not in names:
        return base
    return next(n for i in range(2, len(names) + 3) if (n := f"{base}-{i}") not in names)
