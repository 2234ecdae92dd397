"""Long polls of agents: their waits, and rechecks of many polls at once. The server does the waiting
(`apps.core.waits`)."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import close_old_connections

from apps.agents.registry import Desired, desired_source
from apps.agents.selectors import working_keys
from apps.agents.services.directives import channel_of, directive_document, sign_for
from apps.core import clock, wake
from apps.core.errors import ServiceError
from apps.core.waits import RecheckResult, Wait
from apps.signing import services as signing


@dataclass(frozen=True, slots=True)
class Poll:
    """An agent's poll: its key (SHA-256), the number of its directive, and its key set version (0: not given).

    `prefix` is the prefix of its path.
    """

    agent_id: uuid.UUID
    key: str
    after: int
    key_set_version: int
    prefix: str

    def is_news(self, seq: int, key_set_version: int) -> bool:
        """Return whether the directive or the key set is newer than the agent's."""
        return seq > self.after or key_set_version > self.key_set_version > 0


def wait_ticket(agent_id: uuid.UUID) -> int:
    """Return the ticket of the agent's channel. Take it before reading anything of the agent, its key included."""
    return wake.ticket(channel_of(agent_id))


def wait_for_directive(poll: Poll, seconds: int, *, seen: int) -> Wait:
    """Return a wait of at most `seconds` for the agent's next directive, key set, or the end of its key, from the
    ticket `seen`."""
    channel = channel_of(poll.agent_id)
    return Wait(
        channel=channel,
        seen=seen,
        seconds=seconds,
        holder=channel,
        retry_after=int(settings.BYTEOR_HEARTBEAT_SECONDS),
        subject=poll,
        recheck=recheck_directives,
    )


def recheck_directives(polls: Sequence[Poll]) -> list[bytes | RecheckResult]:
    """Return the response of each poll in three queries for all.

    The view is called for a poll whose key or agent has ended, or whose directive has to be numbered first.
    """
    close_old_connections()
    numbered = {row.key: row for row in _numbered([poll.key for poll in polls])}
    # read after the numbers: a number read before belongs to this content or to older content
    desired = desired_source().desired_of_each([row.agent_id for row in numbered.values()])
    return [_answer(poll, numbered.get(poll.key), desired.get(poll.agent_id)) for poll in polls]


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A key that is not revoked, and the last directive of its agent."""

    key: str
    expires_at: dt.datetime | None
    agent_id: uuid.UUID
    environment_id: uuid.UUID
    organization_id: uuid.UUID
    seq: int
    content: object
    key_set_version: int | None


def _numbered(keys: Sequence[str]) -> Iterator[_Numbered]:
    organization = "agent__environment__project__organization_id"
    rows = working_keys().filter(sha256__in=keys)
    for row in rows.values_list(
        "sha256",
        "expires_at",
        "agent_id",
        "agent__environment_id",
        organization,
        "agent__directive_seq",
        "agent__directive_content",
        signing.newest_version_of(organization),
    ):
        yield _Numbered(*row)


def _answer(poll: Poll, row: _Numbered | None, desired: Desired | None) -> bytes | RecheckResult:
    if row is None or desired is None or row.agent_id != poll.agent_id or desired.content() != row.content:
        return RecheckResult.CALL_VIEW
    if row.expires_at is not None and row.expires_at <= clock.now():
        return RecheckResult.CALL_VIEW
    if not poll.is_news(row.seq, row.key_set_version or 0):
        return RecheckResult.NOTHING_NEW
    try:
        signer, version = signing.signer_at(row.organization_id, row.key_set_version or 0)
    except ServiceError:
        return RecheckResult.CALL_VIEW
    signed = sign_for(
        agent_id=row.agent_id, environment_id=row.environment_id, desired=desired, seq=row.seq, signer=signer
    )
    document = directive_document(row.agent_id, signed, prefix=poll.prefix, key_set_version=version)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
