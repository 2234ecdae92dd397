"""Building the bundle: what is fixed at its first start, what is made outside of any transaction, what is assigned."""

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
from apps.core.errors import Conflict, NotFound
from apps.deployments.models import ConfigBundle, Deployment, DeploymentStatus, Target
from apps.deployments.selectors import base_of
from apps.deployments.services.aftermath import after_moves
from apps.deployments.services.ending import fail_build
from apps.deployments.services.judging import conclude
from apps.deployments.services.moves import locked_deployment, move
from apps.deployments.services.phases import carry_on
from apps.deployments.services.queue import holders
from apps.pipelines import selectors as pipelines
from apps.runtime.bundle import BuiltBundle, BundleInputs, build_bundle
from apps.runtime.faults import fault_point
from apps.runtime.spec import compile_spec
from apps.runtime.trust import Signer, TrustError
from apps.signing import services as signing
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment, scope_of

S = DeploymentStatus

WAITS = "no-op: it waits for its targets"


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that a build depends on, read in one transaction: same work, same bytes."""

    deployment_id: uuid.UUID
    environment_id: uuid.UUID
    inputs: BundleInputs
    signer: Signer


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """Why there is no build to make; the job ends well and says so."""

    note: str


class UnbuildableError(Exception):
    """This can never be built, however often it is tried."""


def _unfenced(note: str = "") -> None:
    """Stands in where no job is behind a build."""


def start_build(
    *,
    deployment_id: uuid.UUID,
    environment_id: uuid.UUID,
    hold: Callable[[], None] = _unfenced,
    complete: Callable[[str], None] = _unfenced,
) -> Work | NothingToDo:
    """Begin the build, or take up one that a killed worker left in `building`.

    The first time it fixes `sequence` (max(last + 1, Unix ms)), `built_at_ms` and the signing key in the row. A
    credential that is no longer good, or a base that moved since the decision, fails the deployment here. One that must
    still wait for its targets goes back to waiting, and `complete` ends its job in the same transaction: the next one is
    queued when it may be, and never while this one lives. `hold` raises when the job is somebody else's by now: whoever
    lost it begins nothing.
    """
    with transaction.atomic():
        try:
            environment = lock_environment(environment_id)
            hold()
            deployment = locked_deployment(environment, deployment_id)
        except NotFound:
            return NothingToDo("no-op: it is gone")
        if deployment.status not in (S.APPROVED.value, S.BUILDING.value):
            return NothingToDo(f"no-op: it is {deployment.status}")
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        if approval is None:
            return NothingToDo("no-op: its approval is gone")
        agent_ids = list(Target.objects.filter(deployment=deployment).values_list("agent_id", flat=True))
        first = deployment.status == S.APPROVED.value
        if first and set(agent_ids) & set(holders(environment, aside=deployment.pk)):
            Deployment.objects.filter(pk=deployment.pk).update(build_queued_at=None)
            complete(WAITS)
            return NothingToDo(WAITS)
        refusal = _refusal(environment, deployment, approval, agent_ids)
        if refusal is not None:
            fail_build(deployment, actor=SYSTEM_ACTOR, code=refusal[0], detail=refusal[1])
            after_moves(deployment)
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
            try:
                signer = signing.signer_for(environment.organization_id, deployment.signing_kid)
            except Conflict:
                fail_build(deployment, actor=SYSTEM_ACTOR, code="signing_key_revoked")
                after_moves(deployment)
                return NothingToDo("failed: signing_key_revoked")
        fault_point("deployments.build.before_start_commit")
        return Work(deployment.pk, environment.pk, _inputs(environment, deployment, approval), signer)


def _refusal(
    environment: Environment, deployment: Deployment, approval: Approval, agent_ids: list[uuid.UUID]
) -> tuple[str, str] | None:
    """Why it may not be built now: a code and a sentence. None when it may."""
    try:
        approvals.check_credential(approval, at_ms=clock.now_ms())
    except TrustError as error:
        return error.code, error.message
    if deployment.status == S.APPROVED.value:
        base = base_of(environment.pk, agent_ids, aside=deployment.pk)
        moved = [agent_id for agent_id, stands_on in base.items() if approval.base.get(agent_id) != stands_on]
        if moved:
            return "base_moved", f"{len(moved)} of its targets run something else than when it was approved"
    return None


def _next_sequence(environment: Environment) -> int:
    last = Deployment.objects.filter(environment=environment).aggregate(last=Max("sequence"))["last"] or 0
    return max(int(last) + 1, clock.now_ms())


def _inputs(environment: Environment, deployment: Deployment, approval: Approval) -> BundleInputs:
    scope = scope_of(environment)
    bundle = ConfigBundle.objects.filter(pk=deployment.bundle_id, environment=environment).first()
    if bundle is None or deployment.sequence is None or deployment.built_at_ms is None:
        raise UnbuildableError("its config bundle is not there")
    version = pipelines.get_version(scope, deployment.version_id)
    compiled = compile_spec(version.spec)
    if compiled.plan is None or compiled.canonical is None or compiled.spec_hash != deployment.spec_hash:
        raise UnbuildableError("its version does not compile to what was approved")
    return BundleInputs(
        spec_kv=compiled.canonical,
        plan=compiled.plan.as_dict(),
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
    """Compile and sign, outside of any transaction. The same bytes for the same work."""
    return build_bundle(work.inputs, work.signer)


def finish_build(work: Work, built: BuiltBundle, *, complete: Callable[[], None]) -> str | None:
    """Keep the archive, assign the targets of the first phase and move to `deploying`; `complete` ends the job in the
    same transaction.

    When the approval was revoked meanwhile, or somebody else finished, the output is discarded: the answer says so.
    """
    with transaction.atomic():
        try:
            environment = lock_environment(work.environment_id)
            deployment = locked_deployment(environment, work.deployment_id)
        except NotFound:
            return "discarded: it is gone"
        if deployment.status != S.BUILDING.value:
            return f"discarded: it is {deployment.status}"
        blobs.put(environment_id=environment.pk, data=built.archive)
        fault_point("deployments.build.stored")
        now = clock.now()
        progress = carry_on(deployment, now=now)
        fault_point("deployments.build.assigned")
        move(
            deployment,
            "deploy",
            actor=SYSTEM_ACTOR,
            trigger="assigned",
            bundle_sha256=built.sha256,
            deploying_at=now,
        )
        conclude(deployment, progress)
        after_moves(deployment)
        complete()
        fault_point("deployments.build.before_commit")
    fault_point("deployments.build.after_commit")
    return None


def give_up_build(*, deployment_id: uuid.UUID, environment_id: uuid.UUID, error: str) -> None:
    """The build job is dead: `failed`, if it was still to be built. In the transaction that buries the job."""
    try:
        environment = lock_environment(environment_id)
        deployment = locked_deployment(environment, deployment_id)
    except NotFound:
        return
    if deployment.status in (S.APPROVED.value, S.BUILDING.value):
        fail_build(deployment, actor=SYSTEM_ACTOR, code="build_failed", detail=error)
        after_moves(deployment)
