"""Calling a deployment off."""

from __future__ import annotations

import uuid

from django.db import transaction

from apps.access.principals import Principal
from apps.approvals import services as approvals
from apps.approvals.models import Approval
from apps.deployments.models import Deployment
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.ending import take_back
from apps.deployments.services.moves import locked_deployment
from apps.runtime.faults import fault_point
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment


def cancel(*, actor: Principal, scope: Scope, deployment_id: uuid.UUID, reason: str = "") -> Deployment:
    """Call it off: `denied` before it was handed out, `rolling_back` while deploying. Its approval is revoked with it.

    Raises NotFound; Conflict `deployment_completed` once it is past that, StateConflict when it was denied already.
    """
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        deployment = locked_deployment(environment, deployment_id)
        take_back(deployment, actor=actor.ref, trigger="cancelled", reason=reason)
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if approval is not None:
            approvals.revoke_for_subject(actor=actor, approval=approval, comment=reason, trigger="cancelled")
        after_moves(deployment)
        fault_point("deployments.cancel.before_commit")
        return locked_deployment(environment, deployment_id)
