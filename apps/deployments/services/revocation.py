"""What becomes of deployments when a signing key is revoked."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence

from django.db.models import Q

from apps.approvals.models import Approval
from apps.core import clock
from apps.core.actors import ActorRef
from apps.deployments.models import Deployment, DeploymentQuerySet, DeploymentStatus
from apps.deployments.selectors import still_run
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.ending import fail_build
from apps.deployments.services.judging import fail_rollout
from apps.deployments.services.moves import locked_deployment
from apps.deployments.services.rollback import REVOKED
from apps.tenancy.selectors import lock_environments

S = DeploymentStatus

ENDS = (S.APPROVED.value, S.BUILDING.value, S.DEPLOYING.value)
"""What does not go on under a revoked key. What is still to be approved has nothing signed yet."""
NAMED = 10


def under_key(organization_id: uuid.UUID, kid: str) -> DeploymentQuerySet:
    """The organization's deployments whose bundle, or whose approval's credential, `kid` signed.

    A bundle carries its credential, so hosts refuse it for either.
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
    """The deployments that hang on signing keys (`apps.signing.registry.KeyDependents`)."""

    def lock(self, organization_id: uuid.UUID) -> None:
        """No build begins or ends, and nothing is approved, while a key of theirs is being revoked."""
        lock_environments(organization_id)

    def revoked(self, *, actor: ActorRef, organization_id: uuid.UUID, kid: str, reason: str) -> dict[str, int]:
        """Mark all that was ever built under `kid`, and fail (`signing_key_revoked`) what is on its way.

        What runs keeps running. Answers how many failed and how many wait to be deployed again.
        """
        rows = under_key(organization_id, kid)
        concerned: list[uuid.UUID] = list(rows.values_list("pk", flat=True))
        Deployment.objects.filter(pk__in=concerned).update(key_revoked_at=clock.now())
        failed = 0
        for environment in lock_environments(organization_id):
            ending = Deployment.objects.filter(environment=environment, pk__in=concerned, status__in=ENDS)
            ended = [locked_deployment(environment, pk) for pk in ending.order_by("pk").values_list("pk", flat=True)]
            for deployment in ended:
                self._fail(deployment, actor, kid, reason)
            # only now, so that none of them is queued because another made room
            for deployment in ended:
                after_moves(deployment)
            failed += len(ended)
        return {"deployments_failed": failed, "deployments_to_redeploy": len(still_run(concerned))}

    def _fail(self, deployment: Deployment, actor: ActorRef, kid: str, reason: str) -> None:
        detail = f"{kid}: {reason}" if reason else kid
        if deployment.status == S.DEPLOYING.value:
            fail_rollout(deployment, code=REVOKED, detail=detail, actor=actor)
        else:
            fail_build(deployment, actor=actor, code=REVOKED, detail=detail)

    def foresee(self, organization_id: uuid.UUID, kid: str) -> list[str]:
        """What revoking `kid` would do to deployments, in sentences."""
        rows = under_key(organization_id, kid).select_related("environment__project")
        ending: list[Deployment] = list(rows.filter(status__in=ENDS).order_by("pk"))
        concerned = list(rows.values_list("pk", flat=True))
        running: list[Deployment] = list(rows.filter(pk__in=still_run(concerned)).order_by("pk"))
        said = []
        if ending:
            said.append(f"{_count(ending)} on the way and will fail: {_named(ending)}.")
        if running:
            said.append(
                f"{_count(running)} running somewhere, will keep running, can't be gone back to, and must be deployed again: "
                f"{_named(running)}."
            )
        return said or ["No deployment is on the way or running under it."]


def _count(rows: Sequence[Deployment]) -> str:
    return f"{len(rows)} deployment{'s are' if len(rows) != 1 else ' is'}"


def _named(rows: Sequence[Deployment]) -> str:
    by_place: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows[:NAMED]:
        place = f"{row.environment.project.name} / {row.environment.name}"
        by_place[place].append(f"{row.pipeline_name} v{row.version_number}")
    told = "; ".join(f"{', '.join(names)} in {place}" for place, names in by_place.items())
    return told if len(rows) <= NAMED else f"{told}; and {len(rows) - NAMED} more"
