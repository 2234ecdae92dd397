"""What an agent is told: numbered when it changes, signed each time it is said."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Value
from django.db.models.functions import Greatest

from apps.agents.lane import note_told
from apps.agents.models import Agent
from apps.agents.registry import Desired, desired_source
from apps.core import clock, wake
from apps.core.errors import NotFound
from apps.runtime import trust
from apps.runtime.faults import fault_point
from apps.signing import services as signing
from apps.tenancy.scope import Scope

DIRECTIVE_TTL_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True)
class SignedDirective:
    """A directive as it is given out: the DSSE envelope, the same in plain, its number.

    `bundle_deployment_id` is the deployment whose bundle it asks to run, None for `stop` and `none`.
    """

    envelope: dict[str, Any]
    plain: dict[str, Any]
    seq: int
    bundle_deployment_id: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class NumberedDirective:
    """What is wanted and the number it was given."""

    desired: Desired
    seq: int


def number_directive(agent: Agent) -> NumberedDirective:
    """What `agent` shall do now, with its number: `max(last + 1, Unix ms)` when it changed, else the one it had.

    Two at once agree: the number is moved by a guarded UPDATE, and who loses it looks again. Call it outside
    of a transaction. NotFound when the agent is gone.
    """
    while True:
        row = Agent.objects.filter(pk=agent.pk).values("directive_seq", "directive_content").first()
        if row is None:
            raise NotFound()
        last = row["directive_seq"]
        # read after the row: who sees somebody's number also sees what that number stands for
        desired = desired_source().desired(agent)
        content = desired.content()
        if content == row["directive_content"]:
            return _told(agent, desired, last)
        seq = max(last + 1, clock.now_ms())
        with transaction.atomic():
            changed = Agent.objects.filter(pk=agent.pk, directive_seq=last).update(
                directive_seq=seq, directive_content=content
            )
            if changed:
                # no process may go on with the one before
                announce([agent.pk])
        if changed:
            fault_point("agents.directive.numbered")
            return _told(agent, desired, seq)


def _told(agent: Agent, desired: Desired, seq: int) -> NumberedDirective:
    note_told(agent.pk, seq)
    return NumberedDirective(desired, seq)


def sign_for(
    *, agent_id: uuid.UUID, environment_id: uuid.UUID, desired: Desired, seq: int, signer: trust.Signer
) -> SignedDirective:
    """The directive numbered `seq`, signed by `signer`, valid for ten minutes from now."""
    now = clock.now_ms()
    directive = trust.Directive(
        environment_id=str(environment_id),
        agent_id=str(agent_id),
        directive=desired.directive,
        deployment_id=str(desired.deployment_id) if desired.deployment_id else None,
        for_deployment_id=str(desired.for_deployment_id) if desired.for_deployment_id else None,
        bundle_sha256=desired.bundle_sha256,
        sequence=desired.sequence,
        directive_seq=seq,
        issued_at=now,
        expires_at=now + DIRECTIVE_TTL_MS,
    )
    runs = desired.directive in ("activate", "rollback")
    return SignedDirective(
        envelope=trust.sign_directive(directive, signer),
        plain=directive.as_dict(),
        seq=seq,
        bundle_deployment_id=desired.deployment_id if runs else None,
    )


def sign_directive(agent: Agent, numbered: NumberedDirective) -> SignedDirective:
    """The directive signed with the organization's active key, valid for ten minutes from now."""
    return sign_for(
        agent_id=agent.pk,
        environment_id=agent.environment_id,
        desired=numbered.desired,
        seq=numbered.seq,
        signer=signing.active_signer(agent.environment.project.organization_id),
    )


def answer_body(agent_id: uuid.UUID, signed: SignedDirective, *, prefix: str, key_set_version: int) -> dict[str, Any]:
    """What a heartbeat or a poll is answered with. `prefix` is the caller's own: `/api/v1` or `/v1`."""
    url = None
    if signed.bundle_deployment_id is not None:
        url = f"{prefix}/agents/{agent_id}/deployments/{signed.bundle_deployment_id}/bundle"
    return {
        "desired": {"envelope": signed.envelope, "directive": signed.plain},
        "url": url,
        "heartbeat_seconds": settings.BYTEOR_HEARTBEAT_SECONDS,
        "key_set_version": key_set_version,
    }


def directive_for(agent: Agent) -> SignedDirective:
    """What `agent` shall do now, numbered and signed. See `number_directive`."""
    return sign_directive(agent, number_directive(agent))


def channel_of(agent_id: uuid.UUID) -> str:
    """The wake channel on which an agent's waiting poll listens."""
    return f"agent:{agent_id}"


def announce(agent_ids: Iterable[uuid.UUID]) -> None:
    """Wake the waiting polls of these agents when the caller's transaction commits."""
    wake.notify(*map(channel_of, agent_ids))


def announce_keys(organization_id: uuid.UUID) -> None:
    """Wake every waiting poll of the organization: there is a new version of its key set to follow."""
    agents = Agent.objects.enrolled().filter(environment__project__organization=organization_id)
    announce(agents.values_list("pk", flat=True))


def announce_scope(scope: Scope) -> None:
    """Wake every waiting poll below `scope`: their credentials have just ended."""
    agents = Agent.objects.enrolled()
    if scope.environment is not None:
        agents = agents.filter(environment=scope.environment)
    elif scope.project is not None:
        agents = agents.filter(environment__project=scope.project)
    else:
        agents = agents.filter(environment__project__organization=scope.organization)
    announce(agents.values_list("pk", flat=True))


def note_assigned(agent_ids: Iterable[uuid.UUID], sequence: int) -> None:
    """Remember that `sequence` was assigned to these agents, in the caller's transaction."""
    Agent.objects.filter(pk__in=list(agent_ids)).update(
        ever_assigned=True,
        highest_assigned_sequence=Greatest(F("highest_assigned_sequence"), Value(sequence)),
    )
