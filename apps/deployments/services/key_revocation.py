"""Effects of a signing key's revocation on deployments."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence

from django.db.models import Q

from apps.approvals.models import Approval
from apps.core import clock
from apps.core.actors import ActorRef
from apps.deployments.models import Deployment, DeploymentQuerySet, DeploymentStatus
from apps.deployments.selectors import running_deployments
from apps.deployments.services.denial_and_failure import fail_build
from apps.deployments.services.progress import fail_rollout
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.rollback import REVOKED
from apps.deployments.services.transitions import locked_deployment
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environments

S = DeploymentStatus

ENDS = (S.APPROVED.value, S.BUILDING.value, S.DEPLOYING.value)
"""Statuses that a key revocation fails. A deployment that is pending approval has nothing signed yet."""
NAMED = 10


def under_key(organization_id: uuid.UUID, kid: str) -> DeploymentQuerySet:
    """The organization's deployments whose bundle or approval credential is signed by `kid`.

    A bundle contains its credential, so hosts refuse it when either key is revoked.
    """
    credentials = Approval.objects.filter(
        credential_kid=kid, environment__project__organization_id=organization_id, deployment_id__isnull=False
    )
    rows: DeploymentQuerySet = Deployment.objects.filter(
        Q(signing_kid=kid) | Q(approval_id__in=credentials.values("pk")),
        environment__project__organization_id=organization_id,
        environment__deleted_at__isnull=True,
    )
    return rows


class DeploymentsUnderKey:
    """Deployments as dependents of signing keys (`apps.signing.registry.KeyDependents`)."""

    def lock(self, organization_id: uuid.UUID) -> None:
        """Lock the environments, so that no build starts or ends and nothing is approved during a revocation."""
        lock_environments(organization_id)

    def revoked(self, *, actor: ActorRef, organization_id: uuid.UUID, kid: str, reason: str) -> dict[str, int]:
        """Mark every deployment that was built under `kid`, and fail those in progress (`signing_key_revoked`).

        Running bundles keep running. Returns how many deployments failed and how many need redeployment.
        """
        rows = under_key(organization_id, kid)
        rows.update(key_revoked_at=clock.now())
        failed = 0
        # all of them are locked: an environment that was created since has nothing under the key
        concerned = Environment.objects.filter(pk__in=rows.filter(status__in=ENDS).values("environment"))
        for environment in concerned.select_related("project__organization").order_by("pk"):
            ending = rows.filter(environment=environment, status__in=ENDS)
            ended = [locked_deployment(environment, pk) for pk in ending.order_by("pk").values_list("pk", flat=True)]
            for deployment in ended:
                self._fail(deployment, actor, kid, reason)
            # after all failures, so that a failure does not queue the build of another one
            for deployment in ended:
                reconcile_after_transition(deployment)
            failed += len(ended)
        return {"deployments_failed": failed, "deployments_to_redeploy": running_deployments(rows).count()}

    def _fail(self, deployment: Deployment, actor: ActorRef, kid: str, reason: str) -> None:
        detail = f"{kid}: {reason}" if reason else kid
        if deployment.status == S.DEPLOYING.value:
            fail_rollout(deployment, code=REVOKED, detail=detail, actor=actor)
        else:
            fail_build(deployment, actor=actor, code=REVOKED, detail=detail)

    def preview_revocation(self, organization_id: uuid.UUID, kid: str) -> list[str]:
        """Describe the effects of revoking `kid` on deployments."""
        rows = under_key(organization_id, kid).select_related("environment__project")
        ending: list[Deployment] = list(rows.filter(status__in=ENDS).order_by("pk"))
        running: list[Deployment] = list(running_deployments(rows).order_by("pk"))
        effects = []
        if ending:
            effects.append(f"{_count(ending)} in progress and will fail: {_named(ending)}.")
        if running:
            effects.append(
                f"{_count(running)} running, will keep running, can't be rolled back to, and must be redeployed: "
                f"{_named(running)}."
            )
        return effects or ["No deployment signed by this key is in progress or running."]


def _count(rows: Sequence[Deployment]) -> str:
    return f"{len(rows)} deployment{'s are' if len(rows) != 1 else ' is'}"


def _named(rows: Sequence[Deployment]) -> str:
    by_place: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows[:NAMED]:
        place = f"{row.environment.project.name} / {row.environment.name}"
        by_place[place].append(f"{row.pipeline_name} v{row.version_number}")
    text = "; ".join(f"{', '.join(names)} in {place}" for place, names in by_place.items())
    return text if len(rows) <= NAMED else f"{text}; and {len(rows) - NAMED} more"
