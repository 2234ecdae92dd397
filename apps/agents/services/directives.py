"""Directives for agents: numbered when they change, signed each time they are sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Value
from django.db.models.functions import Greatest

from apps.agents.models import Agent
from apps.agents.registry import Desired, desired_source
from apps.core import clock, wake
from apps.core.db import update_each
from apps.core.errors import NotFound
from apps.runtime import trust
from apps.runtime.faults import fault_point
from apps.signing import services as signing
from apps.tenancy.scope import Scope

DIRECTIVE_TTL_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True)
class SignedDirective:
    """A directive as it is sent: the DSSE envelope, its content, and its number.

    `bundle_deployment_id` is the deployment whose bundle the agent should run, None for `stop` and `none`.
    """

    envelope: dict[str, Any]
    plain: dict[str, Any]
    seq: int
    bundle_deployment_id: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class NumberedDirective:
    """The desired state and its number."""

    desired: Desired
    seq: int


def number_directive(agent: Agent, *, just_read: bool = False) -> NumberedDirective:
    """Return the directive of `agent` with its number: `max(last + 1, Unix ms)` if it changed, else the same number.

    Concurrent calls agree: a guarded UPDATE sets the number, and the loser reads again. With `just_read`, `agent` was
    read for this request and is not read again at first. Call it outside transactions. Raises NotFound if the agent was
    deleted.
    """
    row: tuple[int, Any] | None = (agent.directive_seq, agent.directive_content) if just_read else None
    while True:
        row = row or Agent.objects.filter(pk=agent.pk).values_list("directive_seq", "directive_content").first()
        if row is None:
            raise NotFound()
        last, last_content = row
        row = None
        # read after the row: a reader that sees a number also sees the content it belongs to
        desired = desired_source().desired(agent)
        content = desired.content()
        if content == last_content:
            return NumberedDirective(desired, last)
        seq = max(last + 1, clock.now_ms())
        with transaction.atomic():
            changed = Agent.objects.filter(pk=agent.pk, directive_seq=last).update(
                directive_seq=seq, directive_content=content
            )
            if changed:
                # no process may keep using the previous one
                announce([agent.pk])
        if changed:
            fault_point("agents.directive.numbered")
            return NumberedDirective(desired, seq)


def sign_for(
    *, agent_id: uuid.UUID, environment_id: uuid.UUID, desired: Desired, seq: int, signer: trust.Signer
) -> SignedDirective:
    """Sign the directive `seq` with `signer`, valid for ten minutes."""
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


def sign_directive(
    agent: Agent, numbered: NumberedDirective, *, key_set_version: int | None = None
) -> tuple[SignedDirective, int]:
    """Sign the directive with the organization's active key, valid for ten minutes. Returns it with the key set
    version.

    Pass `key_set_version` if the caller has just read it.
    """
    organization_id = agent.environment.project.organization_id
    if key_set_version is None:
        signer, version = signing.active_signer_and_version(organization_id)
    else:
        signer, version = signing.signer_at(organization_id, key_set_version)
    signed = sign_for(
        agent_id=agent.pk,
        environment_id=agent.environment_id,
        desired=numbered.desired,
        seq=numbered.seq,
        signer=signer,
    )
    return signed, version


def directive_document(
    agent_id: uuid.UUID, signed: SignedDirective, *, prefix: str, key_set_version: int
) -> dict[str, Any]:
    """Return the response to a heartbeat or a poll. `prefix` is the request's own: `/api/v1` or `/v1`."""
    url = None
    if signed.bundle_deployment_id is not None:
        url = f"{prefix}/agents/{agent_id}/deployments/{signed.bundle_deployment_id}/bundle"
    return {
        "desired": {"envelope": signed.envelope, "directive": signed.plain},
        "url": url,
        "heartbeat_seconds": settings.BYTEOR_HEARTBEAT_SECONDS,
        "key_set_version": key_set_version,
    }


def channel_of(agent_id: uuid.UUID) -> str:
    """Return the notification channel of an agent's long poll."""
    return f"agent:{agent_id}"


def announce(agent_ids: Iterable[uuid.UUID]) -> None:
    """Wake the long polls of these agents when the caller's transaction commits."""
    wake.notify(*map(channel_of, agent_ids))


def announce_keys(organization_id: uuid.UUID) -> None:
    """Wake every long poll of the organization: it has a new key set version."""
    agents = Agent.objects.enrolled().filter(environment__project__organization=organization_id)
    announce(agents.values_list("pk", flat=True))


def announce_scope(scope: Scope) -> None:
    """Wake every long poll below `scope`: their credentials were revoked."""
    agents = Agent.objects.enrolled().filter(scope.below("environment__"))
    announce(agents.values_list("pk", flat=True))


def note_assigned(agent_ids: Iterable[uuid.UUID], desired: Desired, *, sequence: int) -> None:
    """Record that `sequence` was assigned to these agents, and number their directives, in the caller's transaction.

    The directives of a whole fleet are numbered at once, so that its polls then only read. If `desired` is not what an agent
    should run when it polls, `number_directive` assigns another number.
    """
    update_each(
        Agent.objects.all(),
        agent_ids,
        ever_assigned=True,
        highest_assigned_sequence=Greatest(F("highest_assigned_sequence"), Value(sequence)),
        directive_seq=Greatest(F("directive_seq") + 1, Value(clock.now_ms())),
        directive_content=desired.content(),
    )
