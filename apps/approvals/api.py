"""Approvals over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import PersonView, ScopedView
from apps.access.roles import Permission
from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.selectors import effective_status, get_approval, present, waiting_for
from apps.approvals.services import decide, revoke
from apps.core.api import StrictSerializer, Text, keyset_page, rfc3339, status_filter
from apps.core.errors import NotFound


class DecisionInput(StrictSerializer):
    """`{comment?, shown_digest}`."""

    comment = Text(max_length=2000, required=False, allow_blank=True)
    shown_digest = Text(max_length=80)


class RevokeInput(StrictSerializer):
    """`{comment?}`."""

    comment = Text(max_length=2000, required=False, allow_blank=True)


def decision_document(row: Decision, counts: bool) -> dict[str, object]:
    """A vote; `counts` is false for one on a former digest or by somebody who lost the role."""
    return {
        "reviewer_id": str(row.reviewer_id),
        "reviewer_name": row.reviewer_name,
        "decision": row.decision,
        "comment": row.comment,
        "digest": row.digest,
        "decided_at": rfc3339(row.decided_at),
        "counts": counts,
    }


def approval_document(approval: Approval) -> dict[str, object]:
    """An approval as the API shows it, with the digest to decide on now."""
    now = present(approval)
    scope = approval.environment
    return {
        "id": str(approval.pk),
        "environment_id": str(scope.pk),
        "status": effective_status(approval),
        "action": approval.action,
        "deployment_id": str(approval.deployment_id) if approval.deployment_id else None,
        "replay_id": str(approval.replay_id) if approval.replay_id else None,
        "requested_by": str(approval.requested_by) if approval.requested_by else None,
        "requested_by_name": approval.requested_by_name,
        "reason": approval.reason,
        "policy": approval.policy,
        "required_approvals": approval.required_approvals,
        "decisions": [
            *(decision_document(row, True) for row in now.counting),
            *(decision_document(row, False) for row in now.stale),
        ],
        "expires_at": rfc3339(approval.expires_at),
        "decided_at": rfc3339(approval.decided_at),
        "credential_expires_at": rfc3339(approval.credential_expires_at),
        "spec_hash": approval.spec_hash,
        "config_hash": approval.config_hash,
        "capabilities": approval.capabilities,
        "strategy": approval.strategy,
        "target_agent_ids": approval.target_agent_ids,
        "base": now.base,
        "shown_digest": now.shown_digest,
        "created_at": rfc3339(approval.created_at),
    }


_STATUS = {"status": status_filter(ApprovalStatus.values)}


class ApprovalsView(ScopedView):
    """GET: the approvals of the environment."""

    def get(self, request: Request, **ids: uuid.UUID) -> Response:
        rows = Approval.objects.select_related("environment__project__organization").filter(
            environment=self.environment
        )
        return keyset_page(request, rows, approval_document, filters=_STATUS)


class _OneApproval(ScopedView):
    finds = get_approval
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        # who may decide is the service's to say, so that each refusal has its own code
        "POST": Permission.VIEW_ENVIRONMENT,
    }


class ApprovalView(_OneApproval):
    """GET: one approval."""

    def get(self, request: Request, approval_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        return Response(approval_document(get_approval(self.scope, approval_id)))


class ApproveView(_OneApproval):
    """POST: approve what the digest stands for."""

    decision = "approve"

    def post(self, request: Request, approval_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        get_approval(self.scope, approval_id)
        body = self.read(DecisionInput)
        row = decide(
            actor=self.principal,
            scope=self.scope,
            approval_id=approval_id,
            decision=self.decision,
            comment=body.get("comment", ""),
            shown_digest=body["shown_digest"],
        )
        return Response(approval_document(row))


class DenyView(ApproveView):
    """POST: deny."""

    decision = "deny"


class RevokeView(_OneApproval):
    """POST: withdraw, or take the grant back."""

    def post(self, request: Request, approval_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        get_approval(self.scope, approval_id)
        body = self.read(RevokeInput)
        row = revoke(actor=self.principal, scope=self.scope, approval_id=approval_id, comment=body.get("comment", ""))
        return Response(approval_document(row))


class CredentialView(_OneApproval):
    """GET: the credential that the approval minted."""

    permissions: ClassVar[Mapping[str, Permission]] = {"GET": Permission.OPERATE_ENVIRONMENT}

    def get(self, request: Request, approval_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        approval = get_approval(self.scope, approval_id)
        if not approval.credential:
            raise NotFound("No credential was minted.")
        return Response({"credential": approval.credential})


class MyApprovalsView(PersonView):
    """GET: what waits for me."""

    def get(self, request: Request) -> Response:
        return keyset_page(request, waiting_for(self.principal), approval_document)
