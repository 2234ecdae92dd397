"""Build of a bundle: start it (one transaction), make the archive (no transaction), store and assign it (one transaction)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Max

from apps.approvals import services as approvals
from apps.approvals.models import Approval
from apps.blobs import services as blobs
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import NotFound
from apps.deployments.models import ConfigBundle, Deployment, DeploymentStatus, Target
from apps.deployments.selectors import base_of
from apps.deployments.services.build_queue import busy_agents
from apps.deployments.services.denial_and_failure import fail_build
from apps.deployments.services.phases import advance_phases
from apps.deployments.services.progress import apply_progress
from apps.deployments.services.reconcile import reconcile_after_transition
from apps.deployments.services.transitions import lock_deployment, locked_deployment, move
from apps.pipelines import selectors as pipelines
from apps.runtime.bundle import BuiltBundle, BundleFacts, build_bundle
from apps.runtime.faults import fault_point
from apps.runtime.spec import compile_spec
from apps.runtime.trust import Signer, TrustError
from apps.signing import services as signing
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment, scope_of

S = DeploymentStatus

WAITS = "no-op: the deployment waits for its targets"


@dataclass(frozen=True, slots=True)
class Work:
    """All inputs of a build, read in one transaction. The same inputs yield the same bytes."""

    deployment_id: uuid.UUID
    environment_id: uuid.UUID
    spec: str
    facts: BundleFacts
    signer: Signer


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """Why there is nothing to build; the job completes with this note."""

    note: str


class UnbuildableError(Exception):
    """Raised for a deployment whose build can never succeed."""


def _unfenced(note: str = "") -> None:
    """Default for a build without a job."""


def start_build(
    *,
    deployment_id: uuid.UUID,
    environment_id: uuid.UUID,
    hold: Callable[[], None] = _unfenced,
    complete: Callable[[str], None] = _unfenced,
) -> Work | NothingToDo:
    """Start the build, or resume one that a killed worker left in `building`.

    The first start fixes `sequence` (max(last + 1, Unix ms)), `built_at_ms` and the signing key in the row. A credential
    that is no longer valid, or a base that changed since the decision, fails the deployment. A deployment that must still
    wait for its targets returns to waiting, and `complete` ends its job in the same transaction, so that at most one build
    job exists. `hold` raises when the job's lease was lost; nothing is started then.
    """
    with transaction.atomic():
        try:
            environment = lock_environment(environment_id)
            hold()
            deployment = locked_deployment(environment, deployment_id)
        except NotFound:
            return NothingToDo("no-op: the deployment was deleted")
        if deployment.status not in (S.APPROVED.value, S.BUILDING.value):
            return NothingToDo(f"no-op: the deployment is {deployment.status}")
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if approval is None:
            return NothingToDo("no-op: the approval was deleted")
        agent_ids = list(Target.objects.filter(deployment=deployment).values_list("agent_id", flat=True))
        first = deployment.status == S.APPROVED.value
        if first and set(agent_ids) & set(busy_agents(environment, exclude=deployment.pk)):
            Deployment.objects.filter(pk=deployment.pk).update(build_queued_at=None)
            complete(WAITS)
            return NothingToDo(WAITS)
        refusal = _refusal(environment, deployment, approval, agent_ids)
        if refusal is not None:
            fail_build(deployment, actor=SYSTEM_ACTOR, code=refusal[0], detail=refusal[1])
            reconcile_after_transition(deployment)
            return NothingToDo(f"failed: {refusal[0]}")
        if first:
            signer = signing.active_signer(environment.organization_id)
            move(
                deployment,
                "start_build",
                actor=SYSTEM_ACTOR,
                trigger="build_started",
                sequence=_next_sequence(environment),
                built_at_ms=clock.now_ms(),
                signing_kid=signer.kid,
                build_queued_at=None,
            )
        else:
            # not revoked: a revocation fails the builds under its key in its own transaction
            signer = signing.signer_for(environment.organization_id, deployment.signing_kid)
        fault_point("deployments.build.before_start_commit")
        spec = pipelines.get_version(scope_of(environment), deployment.version_id).spec
        return Work(deployment.pk, environment.pk, spec, _facts(environment, deployment, approval), signer)


def _refusal(
    environment: Environment, deployment: Deployment, approval: Approval, agent_ids: list[uuid.UUID]
) -> tuple[str, str] | None:
    """Why the deployment must not be built, as a code and a sentence; None when it can be."""
    try:
        approvals.check_credential(approval, at_ms=clock.now_ms())
    except TrustError as error:
        return error.code, error.message
    if deployment.status == S.APPROVED.value:
        base = base_of(environment.pk, agent_ids, exclude=deployment.pk)
        moved = [agent_id for agent_id, base_id in base.items() if approval.base.get(agent_id) != base_id]
        if moved:
            return "base_moved", f"the base of {len(moved)} of its targets changed after it was approved"
    return None


def _next_sequence(environment: Environment) -> int:
    last = Deployment.objects.filter(environment=environment).aggregate(last=Max("sequence"))["last"] or 0
    return max(int(last) + 1, clock.now_ms())


def _facts(environment: Environment, deployment: Deployment, approval: Approval) -> BundleFacts:
    scope = scope_of(environment)
    bundle = ConfigBundle.objects.filter(pk=deployment.bundle_id, environment=environment).first()
    if bundle is None or deployment.sequence is None or deployment.built_at_ms is None:
        raise UnbuildableError("its config bundle was deleted")
    return BundleFacts(
        config=bundle.config,
        approval_cred=approval.credential,
        org_id=str(scope.organization_id),
        project_id=str(scope.project_id),
        environment_id=str(environment.pk),
        posture=environment.posture,
        deployment_id=str(deployment.pk),
        spec_hash=deployment.spec_hash,
        config_hash=deployment.config_hash,
        sequence=deployment.sequence,
        built_at_ms=deployment.built_at_ms,
    )


def make_archive(work: Work) -> BuiltBundle:
    """Compile and sign the bundle, outside of any transaction. Deterministic. Raises UnbuildableError."""
    compiled = compile_spec(work.spec)
    if compiled.plan is None or compiled.canonical is None or compiled.spec_hash != work.facts.spec_hash:
        raise UnbuildableError("its version does not compile to the approved spec hash")
    inputs = work.facts.with_pipeline(spec_kv=compiled.canonical, plan=compiled.plan.as_dict())
    return build_bundle(inputs, work.signer)


def finish_build(work: Work, built: BuiltBundle, *, complete: Callable[[], None]) -> str | None:
    """Store the archive; then, in one transaction, assign the targets of the first phase, move to `deploying`, and end the job.

    The archive is discarded, and a note about it returned, when the approval was revoked or another worker finished the
    build. Raises StorageUnavailable; nothing is changed then.
    """
    status = Deployment.objects.filter(pk=work.deployment_id).values_list("status", flat=True).first()
    if status != S.BUILDING.value:  # checked again under the lock; this check avoids a useless upload
        return f"discarded: the deployment is {status or 'deleted'}"
    stored = blobs.store_file(environment_id=work.environment_id, data=built.archive)
    with transaction.atomic():
        deployment = lock_deployment(work.environment_id, work.deployment_id)
        if deployment is None:
            return "discarded: the deployment is deleted"
        if deployment.status != S.BUILDING.value:
            return f"discarded: the deployment is {deployment.status}"
        blobs.record_file(stored)
        fault_point("deployments.build.stored")
        now = clock.now()
        # the directives of the first phase name it; the transition below stores it
        deployment.bundle_sha256 = built.sha256
        progress = advance_phases(deployment, now=now)
        fault_point("deployments.build.assigned")
        move(
            deployment,
            "deploy",
            actor=SYSTEM_ACTOR,
            trigger="assigned",
            bundle_sha256=built.sha256,
            deploying_at=now,
        )
        apply_progress(deployment, progress)
        reconcile_after_transition(deployment)
        complete()
        fault_point("deployments.build.before_commit")
    fault_point("deployments.build.after_commit")
    return None


def give_up_build(*, deployment_id: uuid.UUID, environment_id: uuid.UUID, error: str) -> None:
    """Move to `failed` when the build job is dead, unless the build is done. In the transaction that buries the job."""
    deployment = lock_deployment(environment_id, deployment_id)
    if deployment is not None and deployment.status in (S.APPROVED.value, S.BUILDING.value):
        fail_build(deployment, actor=SYSTEM_ACTOR, code="build_failed", detail=error)
        reconcile_after_transition(deployment)
