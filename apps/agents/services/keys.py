"""Runtime keys: creation, use, rotation, revocation."""

from __future__ import annotations

import datetime as dt

from django.db import models, transaction

from apps.access import tokens
from apps.access.principals import Principal
from apps.agents.models import Agent, AgentKey
from apps.audit import services as audit
from apps.core import clock
from apps.core.db import lock_row
from apps.core.errors import Conflict, Unauthenticated
from apps.core.secrets import Secret
from apps.runtime.faults import fault_point
from apps.tenancy.selectors import scope_of

ROTATION_OVERLAP = dt.timedelta(minutes=10)
USE_NOTED_EVERY = dt.timedelta(minutes=1)


def mint_key(agent: Agent) -> Secret:
    """Create a key of `agent`, in the caller's transaction. Only the caller gets its text."""
    minted = tokens.mint("agt")
    AgentKey.objects.create(agent=agent, sha256=minted.sha256, public_id=minted.public_id)
    return minted.text


def end_keys(agent: Agent, now: dt.datetime) -> None:
    """Revoke every key of `agent` at once, in the caller's transaction."""
    AgentKey.objects.filter(agent=agent, revoked_at__isnull=True).update(revoked_at=now)


def note_key_use(key: AgentKey) -> None:
    """Store the use of `key`, at most once a minute, in its row and in `key`. Its first use starts the expiry of earlier keys."""
    now = clock.now()
    if key.first_used_at is None:
        with transaction.atomic():
            lock_row(Agent.objects.filter(pk=key.agent_id))
            first = AgentKey.objects.filter(pk=key.pk, first_used_at__isnull=True, revoked_at__isnull=True).update(
                first_used_at=now, last_used_at=now
            )
            if first:
                AgentKey.objects.filter(
                    agent_id=key.agent_id, revoked_at__isnull=True, expires_at__isnull=True
                ).exclude(pk=key.pk).update(expires_at=now + ROTATION_OVERLAP)
        key.first_used_at = key.last_used_at = now
        return
    if key.last_used_at is None or key.last_used_at <= now - USE_NOTED_EVERY:
        AgentKey.objects.filter(pk=key.pk).filter(
            models.Q(last_used_at__isnull=True) | models.Q(last_used_at__lte=now - USE_NOTED_EVERY)
        ).update(last_used_at=now)
        key.last_used_at = now


def rotate_key(*, actor: Principal, agent: Agent, key: AgentKey) -> Secret:
    """Create a new key for `agent`. The calling key works until ten minutes after the new one is first used.

    A new key that was never used is replaced by a repeated call. Raises Conflict `key_replaced` if the calling key was
    replaced already: only the newest key can be rotated.
    """
    with transaction.atomic():
        locked = lock_row(Agent.objects.filter(pk=agent.pk, revoked_at__isnull=True))
        current = AgentKey.objects.filter(pk=key.pk, revoked_at__isnull=True).first()
        if locked is None or current is None:
            raise Unauthenticated("This key was revoked.")
        if current.expires_at is not None:
            raise Conflict("A newer key is in use. Rotate with it.", code="key_replaced")
        now = clock.now()
        unused = AgentKey.objects.filter(agent=locked, first_used_at__isnull=True, revoked_at__isnull=True)
        repeated = unused.exclude(pk=current.pk).update(revoked_at=now) > 0
        text = mint_key(locked)
        scope = scope_of(agent.environment)
        audit.record_in(
            scope,
            action="agent.key_rotated",
            actor=actor.ref,
            target=f"agent:{agent.pk}",
            details={"name": agent.name, "repeated": repeated},
        )
        fault_point("agents.rotate_key.before_commit")
    fault_point("agents.rotate_key.after_commit")
    return text
