"""What approvals are about. The rooms above register how their subject is described and what a decision does to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from apps.approvals.models import Approval
from apps.core.actors import ActorRef
from apps.core.errors import NotFound


@dataclass(frozen=True, slots=True)
class SubjectDescription:
    """What a reviewer is told of the subject."""

    title: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class ApprovalSubject(Protocol):
    """A kind of thing that needs agreement. The `on_…` methods run in the decision's transaction, the environment locked."""

    def present_base(self, approval: Approval) -> dict[str, str | None]:
        """What each target stands on now, by agent id."""
        ...

    def on_approved(self, *, approval: Approval, actor: ActorRef) -> None: ...

    def on_denied(self, *, approval: Approval, actor: ActorRef, trigger: str, reason: str) -> None:
        """`trigger` is denied, expired or withdrawn."""

    def on_revoked(self, *, approval: Approval, actor: ActorRef, reason: str) -> None:
        """An approval that was given is taken back. May raise Conflict to refuse."""

    def on_credential_expired(self, *, approval: Approval) -> None: ...


_subjects: dict[str, ApprovalSubject] = {}


def register_subject(action: str, subject: ApprovalSubject) -> None:
    """Let `subject` speak for approvals of `action`."""
    _subjects[action] = subject


def subject_of(approval: Approval) -> ApprovalSubject:
    """Who speaks for this approval."""
    try:
        return _subjects[approval.action]
    except KeyError:
        raise NotFound(f"Nothing speaks for approvals of {approval.action}.") from None
