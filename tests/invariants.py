"""What must hold of the stored state at any moment, whatever people, workers, agents and clocks did before.

`check()` reads the whole database once and raises with every broken rule. With `at_rest` it also checks what must hold once
all work has ended: no lease, no lock, no open transaction, nothing that waits for a job that is not there.
Other tests call it after they raced, killed or walked; `python -m tests.invariants [--at-rest]` does the same on the
database of the environment's settings, a line for each broken rule, exit code 1.

The order of what happened is that of the organization's audit chain: one writer at a time holds its head, so it is the
same on every machine, whatever its clock shows.
"""

from __future__ import annotations

import itertools
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
    django.setup()

from django.db import connection, models

from apps.approvals.models import FINAL as APPROVAL_FINAL
from apps.approvals.models import Approval, ApprovalEvent, Decision
from apps.approvals.selectors import digest_of
from apps.audit import services as audit
from apps.audit.models import AuditEvent
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.core.fsm import legal_moves
from apps.deployments.desired import desired_of
from apps.deployments.models import HOLDS_TARGETS, IN_FLIGHT, Deployment, DeploymentEvent, PhaseEvent, Target
from apps.deployments.selectors import assignment_history
from apps.deployments.services.build_queue import BUILD_JOB
from apps.jobs.models import Job, JobAttempt
from apps.runtime import trust
from apps.signing.services import trusted_keys
from apps.tenancy.models import Environment
from apps.tenancy.selectors import scope_of

LIVE_JOB = ("queued", "running", "failed", "retrying")
HOLDING = {str(status) for status in HOLDS_TARGETS}
FLYING = {str(status) for status in IN_FLIGHT}


@dataclass(frozen=True, slots=True)
class Step:
    """One move of a deployment or an approval, as the audit chain has it."""

    kind: str
    id: uuid.UUID
    from_: str
    to: str


class Snapshot:
    """Everything that the rules look at, each table read once."""

    def __init__(self) -> None:
        self.environments = {
            e.pk: e for e in Environment.objects.select_related("project__organization").filter(deleted_at__isnull=True)
        }
        here = {"environment_id__in": list(self.environments)}
        self.deployments: dict[uuid.UUID, Deployment] = {d.pk: d for d in Deployment.objects.filter(**here)}
        self.approvals: dict[uuid.UUID, Approval] = {a.pk: a for a in Approval.objects.filter(**here)}
        self.events = _grouped(DeploymentEvent.objects.filter(deployment__in=self.deployments), "deployment_id")
        self.approval_events = _grouped(ApprovalEvent.objects.filter(approval__in=self.approvals), "approval_id")
        self.decisions = _grouped(Decision.objects.filter(approval__in=self.approvals), "approval_id")
        self.targets = _grouped(Target.objects.filter(deployment__in=self.deployments), "deployment_id")
        self.phase_events = _grouped(PhaseEvent.objects.filter(deployment__in=self.deployments), "deployment_id")
        self.jobs: list[Job] = list(Job.objects.filter(**here).order_by("pk"))
        self.attempts = _grouped(JobAttempt.objects.filter(job__in=[j.pk for j in self.jobs]), "job_id")

    @cached_property
    def steps(self) -> list[Step]:
        """The moves of what is here, in the order in which they were made (within each organization)."""
        rows = AuditEvent.objects.filter(outcome="allowed").filter(
            models.Q(action__startswith="deployment.") | models.Q(action__startswith="approval.")
        )
        steps = []
        for target, details in rows.order_by("chain", "seq").values_list("target", "details"):
            kind, _, text = target.partition(":")
            known: Any = self.deployments if kind == "deployment" else self.approvals
            if "to" in details and uuid.UUID(text) in known:
                steps.append(Step(kind, uuid.UUID(text), details["from"], details["to"]))
        return steps

    def agents_of(self, deployment: Deployment) -> set[uuid.UUID]:
        return {target.agent_id for target in self.targets[deployment.pk]}

    def builds_of(self, deployment: Deployment, *statuses: str) -> list[Job]:
        return [j for j in self.jobs if j.type == BUILD_JOB and j.subject_id == deployment.pk and j.status in statuses]


def _grouped(rows: models.QuerySet[Any], by: str) -> dict[uuid.UUID, list[Any]]:
    groups: dict[uuid.UUID, list[Any]] = defaultdict(list)
    for row in rows.order_by("pk"):
        groups[getattr(row, by)].append(row)
    return groups


def _chain(moves: list[tuple[str, str]], now: str, legal: Any, start: str) -> Iterator[str]:
    """What is wrong with `moves`, which must begin at nothing and lead to `now` by legal moves without a gap."""
    if not moves or moves[0] != ("", start):
        yield f"does not begin as {start}: {moves}"
        return
    for (_, came), (left, to) in itertools.pairwise(moves):
        if left != came:
            yield f"has a gap between {came} and {left}: {moves}"
        elif to not in legal.get(left, ()):
            yield f"went from {left} to {to}, which is no move"
    if moves[-1][1] != now:
        yield f"is {now}, and its last event says {moves[-1][1]}"


def every_state_of_a_deployment_is_in_its_events_in_order(world: Snapshot) -> Iterator[str]:
    """From `pending_approval` to what it is now, by legal moves, without a gap: in its events and in the audit chain."""
    legal = legal_moves(Deployment)
    audited = defaultdict(list)
    for step in world.steps:
        if step.kind == "deployment":
            audited[step.id].append((step.from_, step.to))
    for pk, deployment in world.deployments.items():
        moves = [(e.from_status, e.to_status) for e in world.events[pk]]
        for problem in _chain(moves, str(deployment.status), legal, "pending_approval"):
            yield f"deployment {pk} {problem}"
        if audited[pk] != moves:
            yield f"deployment {pk} has events {moves}, and in the audit {audited[pk]}"


def every_state_of_an_approval_is_in_its_events_in_order(world: Snapshot) -> Iterator[str]:
    """The same for approvals."""
    legal = legal_moves(Approval)
    audited = defaultdict(list)
    for step in world.steps:
        if step.kind == "approval":
            audited[step.id].append((step.from_, step.to))
    for pk, approval in world.approvals.items():
        moves = [(e.from_status, e.to_status) for e in world.approval_events[pk]]
        for problem in _chain(moves, str(approval.status), legal, "pending"):
            yield f"approval {pk} {problem}"
        if audited[pk] != moves:
            yield f"approval {pk} has events {moves}, and in the audit {audited[pk]}"


def every_state_of_a_job_is_in_its_rows_in_order(world: Snapshot) -> Iterator[str]:
    """Rows lead from `queued` to what it is now without a gap, and every counted attempt has its row."""
    legal = legal_moves(Job)
    for job in world.jobs:
        at, begun = "queued", 0
        for row in world.attempts[job.pk]:
            again = row.from_status == row.to_status == "retrying"
            if row.from_status != at:
                yield f"job {job.pk} was {at} and moved from {row.from_status}"
            if not again and row.to_status not in legal.get(row.from_status, ()):
                yield f"job {job.pk} went from {row.from_status} to {row.to_status}, which is no move"
            at = row.to_status
            begun = 0 if at == "queued" else begun + (again or at == "running")
        if at != job.status:
            yield f"job {job.pk} is {job.status}, and its rows end in {at}"
        if begun != job.attempts:
            yield f"job {job.pk} counts {job.attempts} attempts and has rows of {begun}"
        if job.attempt_running and job.lease_token is None:
            yield f"job {job.pk} runs without a lease"
        if job.status in ("completed", "dead_letter") and (job.lease_token or job.attempt_running):
            yield f"job {job.pk} is {job.status} and still leased"


def _claims(approval: Approval) -> trust.CredentialClaims:
    """The claims of its credential, its signature checked under any key the organization ever had. Raises TrustError."""
    scope = scope_of(approval.environment)
    keys = {kid: replace(key, status="retired") for kid, key in trusted_keys(scope.organization_id).items()}
    issued = trust.decode_credential(approval.credential)[1]["issued_at"]
    return trust.verify_credential(
        approval.credential,
        keys=keys,
        spec_hash=approval.spec_hash,
        environment_id=str(approval.environment_id),
        posture=approval.environment.posture,
        at_ms=issued,
        capabilities=approval.capabilities,
        config_hash=approval.config_hash,
        subject=approval.subject,
        expected_targets_sha256=trust.targets_sha256(approval.target_agent_ids),
    )


def an_approval_has_one_outcome_and_one_credential(world: Snapshot) -> Iterator[str]:
    """Granted once, by as many different people as the policy wants, each on exactly the digest that was frozen."""
    for pk, approval in world.approvals.items():
        approval.environment = world.environments[approval.environment_id]
        moves = Counter(e.to_status for e in world.approval_events[pk])
        granted = moves["approved"]
        if granted + moves["denied"] + moves["expired"] > 1:
            yield f"approval {pk} had more than one outcome: {dict(moves)}"
        if bool(approval.credential) != bool(granted):
            yield f"approval {pk} was granted {granted} times and {'has' if approval.credential else 'lacks'} a credential"
        if digest_of(approval, approval.base) != approval.shown_digest:
            yield f"approval {pk} names another digest than that of its content"
        rows = world.decisions[pk]
        if len({(d.reviewer_id, d.digest) for d in rows}) != len(rows):
            yield f"approval {pk} counts somebody twice"
        denials = [d for d in rows if d.decision == "deny"]
        if len(denials) != moves["denied"]:
            yield f"approval {pk} has {len(denials)} denials and was denied {moves['denied']} times"
        if not granted:
            continue
        try:
            claims = _claims(approval)
        except trust.TrustError as error:
            yield f"approval {pk} has a credential that does not verify: {error.code}"
            continue
        if claims.approval_id != str(pk):
            yield f"approval {pk} has the credential of {claims.approval_id}"
        in_favour = {str(d.reviewer_id) for d in rows if d.decision == "approve" and d.digest == approval.shown_digest}
        if approval.required_approvals == 0:
            if claims.issued_by != ("policy",):
                yield f"approval {pk} needed nobody and was issued by {claims.issued_by}"
            continue
        issuers = set(claims.issued_by)
        if len(claims.issued_by) != len(issuers) or len(issuers) < approval.required_approvals or issuers - in_favour:
            yield f"approval {pk} wants {approval.required_approvals}, issued by {claims.issued_by}, voted {in_favour}"
        if approval.policy["prevent_self_approval"] and str(approval.requested_by) in issuers:
            yield f"approval {pk} was granted by who asked for it"


def nothing_is_built_without_a_live_approval_for_exactly_that(world: Snapshot) -> Iterator[str]:
    """Whenever a build began or ended the approval stood, covered this very content, and its credential had not run out."""
    stood: dict[uuid.UUID, str] = {}
    for step in world.steps:
        if step.kind == "approval":
            stood[step.id] = step.to
            continue
        deployment = world.deployments[step.id]
        if step.to not in ("building", "deploying") or deployment.sequence is None:
            continue
        approval = world.approvals.get(deployment.approval_id)
        if approval is None or stood.get(approval.pk) != "approved":
            yield f"deployment {step.id} became {step.to} while its approval was {stood.get(deployment.approval_id)}"
            continue
        approval.environment = world.environments[approval.environment_id]
        try:
            claims = _claims(approval)
        except trust.TrustError as error:
            yield f"deployment {step.id} was built under a credential that does not verify: {error.code}"
            continue
        if claims.subject != f"deployment:{step.id}" or deployment.built_at_ms is None:
            yield f"deployment {step.id} was built for {claims.subject} at {deployment.built_at_ms}"
        elif not claims.issued_at <= deployment.built_at_ms <= claims.expires_at:
            yield f"deployment {step.id} was built outside of its credential's time"
        if (approval.spec_hash, approval.config_hash) != (deployment.spec_hash, deployment.config_hash):
            yield f"deployment {step.id} is of other content than what was approved"
        if set(approval.target_agent_ids) != {str(a) for a in world.agents_of(deployment)}:
            yield f"deployment {step.id} goes to other agents than those approved"


def an_approval_and_its_deployment_agree(world: Snapshot) -> Iterator[str]:
    """A pending approval keeps its deployment waiting; one that ended without a grant denied it; a revoked one undoes it."""
    fits = {
        "pending": {"pending_approval"},
        "approved": set(legal_moves(Deployment)) - {"pending_approval", "denied"},
        "denied": {"denied"},
        "expired": {"denied"},
        "revoked": {"denied", "rolling_back", "rolled_back", "failed"},
    }
    for pk, approval in world.approvals.items():
        deployment = world.deployments.get(approval.deployment_id) if approval.deployment_id else None
        if deployment is None:
            if approval.deployment_id:
                yield f"approval {pk} has no deployment"
        elif deployment.status not in fits[str(approval.status)]:
            yield f"approval {pk} is {approval.status} and its deployment {deployment.status}"
        elif deployment.status == "denied" and approval.status not in APPROVAL_FINAL:
            yield f"deployment {deployment.pk} is denied and its approval {approval.status}"


def one_deployment_at_a_time_changes_a_target(world: Snapshot) -> Iterator[str]:
    """At no moment were two deployments building, deploying or rolling back on the same agent."""
    holder: dict[uuid.UUID, uuid.UUID] = {}
    for step in world.steps:
        if step.kind != "deployment":
            continue
        deployment = world.deployments[step.id]
        mine = world.agents_of(deployment)
        if step.to not in HOLDING:
            for agent in [a for a, by in holder.items() if by == step.id]:
                del holder[agent]
        elif deployment.sequence is not None:  # without one it passed through on its way to failed, and touched nothing
            for agent in mine:
                if holder.setdefault(agent, step.id) != step.id:
                    yield f"{step.id} became {step.to} on {agent} while {holder[agent]} was changing it"


def the_cap_held_at_every_request(world: Snapshot) -> Iterator[str]:
    """When a deployment was requested, no more than the environment's cap were in flight, it included."""
    caps = {pk: e.max_in_flight_deployments for pk, e in world.environments.items()}
    for details in AuditEvent.objects.filter(action="environment.updated").values_list("target", "details"):
        pk = uuid.UUID(details[0].partition(":")[2])
        for side in ("before", "after"):
            value = details[1].get(side, {}).get("max_in_flight_deployments")
            if value is not None and pk in caps:
                caps[pk] = max(caps[pk], int(value))
    flying: dict[uuid.UUID, set[uuid.UUID]] = defaultdict(set)
    for step in world.steps:
        if step.kind != "deployment":
            continue
        here = world.deployments[step.id].environment_id
        (flying[here].add if step.to in FLYING else flying[here].discard)(step.id)
        if not step.from_ and len(flying[here]) > caps[here]:
            yield f"environment {here} let in {step.id} as number {len(flying[here])} of {caps[here]}"


def sequences_only_grow(world: Snapshot) -> Iterator[str]:
    """Builds of an environment are numbered in the order in which they began, and targets carry their deployment's number."""
    last: dict[uuid.UUID, int] = {}
    for step in world.steps:
        if step.kind != "deployment" or step.to != "building":
            continue
        deployment = world.deployments[step.id]
        if deployment.sequence is None:
            continue
        if deployment.sequence <= last.get(deployment.environment_id, 0):
            yield f"deployment {step.id} was numbered {deployment.sequence}, after {last.get(deployment.environment_id, 0)}"
        last[deployment.environment_id] = deployment.sequence
    for pk, deployment in world.deployments.items():
        wrong = [t for t in world.targets[pk] if t.sequence not in (None, deployment.sequence)]
        if wrong:
            yield f"deployment {pk} has targets of another sequence"


def every_awaited_build_has_a_job(world: Snapshot) -> Iterator[str]:
    """One job builds what is to be built; what is approved and has none waits for a target that another deployment holds."""
    for here in world.environments:
        rows = [d for d in world.deployments.values() if d.environment_id == here]
        taken = {a for d in rows if d.status in HOLDING for a in world.agents_of(d)}
        approved = sorted((d for d in rows if d.status == "approved"), key=lambda d: (d.approved_at, d.pk))
        taken |= {a for d in approved if d.build_queued_at for a in world.agents_of(d)}
        for deployment in rows:
            live = world.builds_of(deployment, *LIVE_JOB)
            if len(live) > 1:
                yield f"deployment {deployment.pk} has {len(live)} builds on their way"
            wanted = deployment.status == "building" or (deployment.status == "approved" and deployment.build_queued_at)
            if wanted and not live:
                yield f"deployment {deployment.pk} is {deployment.status} and nobody builds it"
        for deployment in approved:
            mine = world.agents_of(deployment)
            if not deployment.build_queued_at and not mine & taken:
                yield f"deployment {deployment.pk} is approved, its targets are free, and no build is queued"
            taken |= mine


def what_runs_was_built_and_kept(world: Snapshot) -> Iterator[str]:
    """Whatever was handed to agents has a bundle whose bytes are kept, and its targets know when nothing is to come."""
    kept = set(StoredBlob.objects.values_list("environment_id", "sha256"))
    for pk, deployment in world.deployments.items():
        if deployment.bundle_sha256 and (deployment.environment_id, deployment.bundle_sha256) not in kept:
            yield f"deployment {pk} names a bundle that is not kept"
        if deployment.status in ("active", "rolled_back"):
            audited = [t for t in world.targets[pk] if t.sequence is not None or deployment.status == "active"]
            waiting = [t for t in audited if t.settled_at is None and t.agent_gone_at is None]
            if waiting:
                yield f"deployment {pk} is {deployment.status} and still waits for {len(waiting)} targets"


def phases_come_one_after_the_other(world: Snapshot) -> Iterator[str]:
    """A phase starts when the one before it passed, bakes at most once and as long as asked, and only while it is deploying
    under a valid approval; no agent of a phase that did not start ever got a directive."""
    for pk, deployment in world.deployments.items():
        marks = [(e.phase, e.mark) for e in world.phase_events[pk]]
        expected = [
            (number, mark)
            for number, phase in enumerate(deployment.phases)
            for mark in ("started", *(["baking"] if phase.bake_seconds else []), "passed")
        ]
        if not deployment.phased:
            expected = []
        if marks != expected[: len(marks)] or (deployment.status == "active" and marks != expected):
            yield f"deployment {pk} is {deployment.status} and went by {marks}"
        if marks and marks[-1][0] != deployment.phase:
            yield f"deployment {pk} says phase {deployment.phase} and went by {marks}"
        at = {(e.phase, e.mark): e.created_at for e in world.phase_events[pk]}
        for number, phase in enumerate(deployment.phases):
            began, passed = at.get((number, "baking")), at.get((number, "passed"))
            if began and passed and passed < began + phase.bake:
                yield f"phase {number} of deployment {pk} baked from {began} to {passed}, not {phase.bake_seconds} s"
        reached = -1 if deployment.phase is None else deployment.phase
        for target in world.targets[pk]:
            audited = (target.sequence, target.phase_started_at, target.handed_out_at, target.rollback_at) != (
                None,
            ) * 4
            if target.phase > reached and (audited or target.status not in ("pending", "failed")):
                yield f"target {target.pk} of phase {target.phase} is {target.status}, and its phase did not start"
    yield from _phases_began_only_while_it_was_deploying(world)


def _phases_began_only_while_it_was_deploying(world: Snapshot) -> Iterator[str]:
    status: dict[str, str] = {}
    rows = AuditEvent.objects.filter(outcome="allowed").filter(
        models.Q(action__startswith="deployment.") | models.Q(action__startswith="approval.")
    )
    for action, target, details in rows.order_by("chain", "seq").values_list("action", "target", "details"):
        if "to" in details:
            status[target] = details["to"]
        deployment = world.deployments.get(uuid.UUID(target.partition(":")[2]))
        if not action.startswith("deployment.phase_") or deployment is None:
            continue
        granted = status.get(f"approval:{deployment.approval_id}")
        if (status.get(target), granted) != ("deploying", "approved"):
            yield f"{target} was {status.get(target)}, its approval {granted}, at {action} {details['phase']}"


def directives_name_only_what_was_assigned(world: Snapshot) -> Iterator[str]:
    """What an agent should run was built, was not rolled back, and was assigned to this agent."""
    for agent_id in {t.agent_id for rows in world.targets.values() for t in rows}:
        desired = desired_of(assignment_history(agent_id))
        if desired.deployment_id is None:
            continue
        deployment = world.deployments.get(desired.deployment_id)
        if deployment is None or agent_id not in world.agents_of(deployment):
            yield f"agent {agent_id} shall run {desired.deployment_id}, which is not for it"
        elif deployment.status not in ("deploying", "active", "failed") or deployment.rolling_back_at is not None:
            yield f"agent {agent_id} shall run {deployment.pk}, which is {deployment.status}"


def the_current_deployment_is_the_newest_that_holds(world: Snapshot) -> Iterator[str]:
    """`current_deployment_id` is the active deployment of the highest sequence that is not superseded."""
    for here, environment in world.environments.items():
        active = [
            d
            for d in world.deployments.values()
            if d.environment_id == here and d.status == "active" and d.superseded_by is None
        ]
        newest = max(active, key=lambda d: d.sequence or 0, default=None)
        if environment.current_deployment_id != (newest.pk if newest else None):
            yield f"environment {here} names {environment.current_deployment_id} as current, and {newest} is"


def every_audit_chain_verifies(world: Snapshot) -> Iterator[str]:
    """Each organization's chain, and the system's."""
    organizations = {e.project.organization_id for e in world.environments.values()}
    for organization_id in [None, *organizations]:
        verified = audit.verify(organization_id)
        if not verified.ok:
            yield f"the audit chain of {organization_id} is broken at {verified.broken_at}: {verified.problem}"


INVARIANTS: tuple[Callable[[Snapshot], Iterator[str]], ...] = (
    every_state_of_a_deployment_is_in_its_events_in_order,
    every_state_of_an_approval_is_in_its_events_in_order,
    every_state_of_a_job_is_in_its_rows_in_order,
    an_approval_has_one_outcome_and_one_credential,
    nothing_is_built_without_a_live_approval_for_exactly_that,
    an_approval_and_its_deployment_agree,
    one_deployment_at_a_time_changes_a_target,
    the_cap_held_at_every_request,
    sequences_only_grow,
    every_awaited_build_has_a_job,
    what_runs_was_built_and_kept,
    phases_come_one_after_the_other,
    directives_name_only_what_was_assigned,
    the_current_deployment_is_the_newest_that_holds,
    every_audit_chain_verifies,
)


def nothing_is_held(world: Snapshot) -> Iterator[str]:
    """All work has ended, so no job is leased, half done or due, and no other connection holds a lock or a transaction."""
    for job in Job.objects.exclude(lease_token__isnull=True, attempt_running=False):
        yield f"job {job.pk} ({job.type}) is {job.status} and still leased"
    for job in Job.objects.filter(status__in=LIVE_JOB, run_at__lte=clock.now(), lease_token__isnull=True):
        yield f"job {job.pk} ({job.type}) is {job.status}, due, and nobody's"
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )
            yield from (f"a connection is {state} after {query[:200]}" for state, query in cursor.fetchall())
            cursor.execute(
                "SELECT locktype, mode FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE d.datname = current_database() AND l.pid <> pg_backend_pid() AND locktype = 'advisory'"
            )
            yield from (f"somebody holds a lock: {kind} {mode}" for kind, mode in cursor.fetchall())


def violations(*, at_rest: bool = False) -> list[str]:
    """Every broken rule, in words; empty when all hold."""
    world = Snapshot()
    rules = (*INVARIANTS, nothing_is_held) if at_rest else INVARIANTS
    return [f"{rule.__name__.replace('_', ' ')}: {problem}" for rule in rules for problem in rule(world)]


def check(*, at_rest: bool = False) -> None:
    """Raise AssertionError naming every broken rule."""
    broken = violations(at_rest=at_rest)
    assert not broken, "\n".join(broken)


if __name__ == "__main__":
    found = violations(at_rest="--at-rest" in sys.argv[1:])
    print("\n".join(found) or "every invariant holds")
    sys.exit(1 if found else 0)
