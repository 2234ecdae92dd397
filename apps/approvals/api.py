"""API of approvals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TypedDict

from django.db.models import QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.base import ApiView, ScopedView
from apps.api.documents import document
from apps.api.operations import operation
from apps.api.parameters import choice_filter
from apps.api.serializers import StrictCharField, StrictSerializer
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.selectors import (
    CurrentFacts,
    approvals_to_decide,
    current_facts,
    current_facts_of_all,
    effective_status,
    facts_and_blocked_reason,
    with_effective_status,
)
from apps.approvals.services import decide, revoke
from apps.core.errors import NotFound


class RevokeInput(StrictSerializer):
    """An optional `comment`."""

    comment = StrictCharField(max_length=2000, required=False, allow_blank=True)


class DecisionInput(RevokeInput):
    """Input of a decision: digest and comment."""

    shown_digest = StrictCharField(max_length=80)


class DecisionDocument(TypedDict):
    """A vote. `counts` is false for a former digest or a voter without the role."""

    reviewer_id: str
    reviewer_name: str
    decision: str
    comment: str
    digest: str
    decided_at: str
    counts: bool


class ApprovalDocument(TypedDict):
    """An approval, with its votes and the digest to decide on."""

    id: str
    environment_id: str
    status: str
    action: str
    deployment_id: str | None
    replay_id: str | None
    requested_by: str | None
    requested_by_name: str
    reason: str
    policy: Mapping[str, object]
    required_approvals: int
    decisions: list[DecisionDocument]
    expires_at: str
    decided_at: str | None
    credential_expires_at: str | None
    spec_hash: str
    config_hash: str
    capabilities: list[str]
    strategy: Mapping[str, object]
    target_agent_ids: list[str]
    base: Mapping[str, object]
    shown_digest: str
    created_at: str


class ApprovalDetail(ApprovalDocument):
    """One approval, with `status_reason`: why it can't be approved now (a code, then a sentence), or empty."""

    status_reason: str


class CredentialDocument(TypedDict):
    """The signed credential that was issued at approval."""

    credential: object


def decision_document(row: Decision, counts: bool) -> DecisionDocument:
    """Return the API representation of a vote. `counts` is false for a former digest or a voter without the role."""
    return document(DecisionDocument, row, counts=counts)


def approval_detail(approval: Approval) -> ApprovalDetail:
    """Return an approval with `status_reason`: why it can't be approved now (a code, then a sentence), or empty."""
    now, reason = facts_and_blocked_reason(approval)
    return {**approval_document(approval, now), "status_reason": reason}


def approval_document(approval: Approval, facts: CurrentFacts | None = None) -> ApprovalDocument:
    """Return the API representation of an approval, with the digest to decide on."""
    now = facts or current_facts(approval)
    counting = [decision_document(row, True) for row in now.counting]
    return document(
        ApprovalDocument,
        approval,
        status=effective_status(approval),
        decisions=counting + [decision_document(row, False) for row in now.stale],
        base=now.base,
        shown_digest=now.shown_digest,
    )


VIEW, OPERATE = Permission.VIEW_ENVIRONMENT, Permission.OPERATE_ENVIRONMENT
DECISION_ERRORS = (
    "person_required",
    "self_approval",
    "policy_recently_weakened",
    "reviewer_recently_added",
    "approval_expired",
    "stale_decision",
    "already_decided",
    "comment_required",
)


def approval_page(view: ApiView, rows: QuerySet[Approval]) -> Response:
    """Respond with a page of approvals, with the current facts of all read together."""
    facts: dict[uuid.UUID, CurrentFacts] = {}
    return view.page(
        rows,
        lambda approval: approval_document(approval, facts[approval.pk]),
        prepare=lambda page: facts.update(current_facts_of_all(page)),
    )


class ApprovalsView(ScopedView):
    """Approvals of an environment."""

    @operation(
        VIEW, lists=ApprovalDocument, filters={"status": choice_filter(ApprovalStatus.values, with_effective_status)}
    )
    def get(self, request: Request) -> Response:
        """List the approvals of the environment."""
        rows = Approval.objects.select_related("environment__project__organization")
        return approval_page(self, rows.filter(environment=self.environment))


class MyApprovalsView(ApiView):
    """Approvals that need your decision."""

    @operation(lists=ApprovalDocument)
    def get(self, request: Request) -> Response:
        """List the approvals that need your decision."""
        return approval_page(self, approvals_to_decide(self.principal))


class _ApprovalView(ScopedView):
    """Base of the views of one approval."""

    queryset = Approval.objects.all()
    found: Approval

    def decide(self, decision: str) -> Response:
        """Record the caller's vote. The service checks who may decide, so that each refusal has its own code."""
        row = decide(
            actor=self.principal,
            scope=self.scope,
            approval_id=self.found.pk,
            decision=decision,
            comment=self.given.get("comment", ""),
            shown_digest=self.given["shown_digest"],
        )
        return Response(approval_detail(row))


class ApprovalView(_ApprovalView):
    """An approval."""

    @operation(VIEW, answer=ApprovalDetail)
    def get(self, request: Request) -> Response:
        """Return an approval with its votes."""
        return Response(approval_detail(self.found))


class ApproveView(_ApprovalView):
    """Approving votes."""

    @operation(OPERATE, body=DecisionInput, answer=ApprovalDetail, errors=DECISION_ERRORS)
    def post(self, request: Request) -> Response:
        """Approve exactly what `shown_digest` identifies."""
        return self.decide("approve")


class DenyView(_ApprovalView):
    """Denying votes."""

    @operation(OPERATE, body=DecisionInput, answer=ApprovalDetail, errors=DECISION_ERRORS)
    def post(self, request: Request) -> Response:
        """Deny what `shown_digest` identifies."""
        return self.decide("deny")


class RevokeView(_ApprovalView):
    """Withdrawal and revocation of approvals."""

    @operation(
        OPERATE,
        body=RevokeInput,
        answer=ApprovalDetail,
        errors=("person_required", "approval_expired", "comment_required", "deployment_completed"),
    )
    def post(self, request: Request) -> Response:
        """Withdraw your own pending request, or revoke an approval that was granted."""
        row = revoke(
            actor=self.principal,
            scope=self.scope,
            approval_id=self.found.pk,
            comment=self.given.get("comment", ""),
        )
        return Response(approval_detail(row))


class CredentialView(_ApprovalView):
    """Credentials of approvals."""

    @operation(OPERATE, answer=CredentialDocument)
    def get(self, request: Request) -> Response:
        """Return the credential that was issued at approval."""
        if not self.found.credential:
            raise NotFound("No credential was issued.")
        return Response({"credential": self.found.credential})
