"""Cancellation of a deployment."""

from __future__ import annotations

import uuid

from django.db import transaction

from apps.access.principals import Principal
from apps.approvals import services as approvals
from apps.approvals.models import Approval
from apps.approvals.services.expiry_and_revocation import refuse_withdrawal, require_comment
from apps.deployments.models import Deployment, DeploymentStatus
from apps.deployments.services.denial_and_failure import cancel_or_roll_back
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment

PENDING = DeploymentStatus.PENDING_APPROVAL.value
TAKEN_BACK = (
    DeploymentStatus.APPROVED.value,
    DeploymentStatus.BUILDING.value,
    DeploymentStatus.DEPLOYING.value,
)
"""Statuses in which cancelling also revokes the approval."""


def cancel(*, actor: Principal, scope: Scope, deployment_id: uuid.UUID, reason: str = "") -> Deployment:
    """Cancel the deployment and revoke its approval: `denied` before delivery, `rolling_back` while deploying.

    While approval is pending, only the requester may cancel; afterwards a reason is required. Raises NotFound; Forbidden
    `permission_denied`; Unprocessable `comment_required`; Conflict `deployment_completed` after deploying; StateConflict
    when it is already denied.
    """
    found = Deployment.objects.filter(pk=deployment_id, environment=scope.require_environment()).first()
    if found is not None and found.status == PENDING and found.requested_by != actor.acts_for:
        refuse_withdrawal(actor=actor, scope=scope, target=f"deployment:{deployment_id}", action="deployment.cancel")
    reason = reason.strip()
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        deployment = locked_deployment(environment, deployment_id)
        if deployment.status in TAKEN_BACK:
            require_comment(reason)
        cancel_or_roll_back(deployment, actor=actor.ref, trigger="cancelled", reason=reason)
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if approval is not None:
            approvals.revoke_for_subject(actor=actor, approval=approval, comment=reason, trigger="cancelled")
        reconcile_after_transition(deployment)
        fault_point("deployments.cancel.before_commit")
        return locked_deployment(environment, deployment_id)
