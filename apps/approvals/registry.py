"""Registry of the kinds of objects that need approval, filled by other apps."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol

from apps.approvals.models import Approval
from apps.core.actors import ActorRef
from apps.core.errors import NotFound


class ApprovalSubject(Protocol):
    """A kind of object that needs approval. The `on_…` methods run in the decision's transaction, with the environment
    locked."""

    def present_bases(self, approvals: Sequence[Approval]) -> dict[uuid.UUID, dict[str, str | None]]:
        """Return the current deployment of each target of each approval, by agent id. The number of queries is
        constant."""
        ...

    def on_approved(self, *, approval: Approval, actor: ActorRef) -> None: ...

    def on_denied(self, *, approval: Approval, actor: ActorRef, trigger: str, reason: str) -> None:
        """Called after denial, expiry or withdrawal, which `trigger` names."""

    def on_revoked(self, *, approval: Approval, actor: ActorRef, reason: str) -> None:
        """Called when an approval is revoked. May raise Conflict to refuse."""

    def on_credential_expired(self, *, approval: Approval) -> None: ...


_subjects: dict[str, ApprovalSubject] = {}


def register_subject(action: str, subject: ApprovalSubject) -> None:
    """Register the kind of object for approvals of `action`."""
    _subjects[action] = subject


def subject_of(approval: Approval) -> ApprovalSubject:
    """Return the registered subject of this approval."""
    try:
        return _subjects[approval.action]
    except KeyError:
        raise NotFound(f"No subject is registered for approvals of {approval.action}.") from None
