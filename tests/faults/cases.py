"""Which road leads by which fault point, and who dies there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import roads
from tests.faults.journey import Journey

Road = Callable[[Journey], None]


@dataclass(frozen=True)
class Case:
    """Kill at `point` on `road`, the first time or after `skip` times; the agent's points are reached on its host."""

    point: str
    road: Road
    skip: int = 0

    @property
    def name(self) -> str:
        return f"{self.point}{f'+{self.skip}' if self.skip else ''}"

    @property
    def on_host(self) -> bool:
        return self.point.startswith("agent.")


def _on(road: Road, *points: str) -> list[Case]:
    """Cases on one road; `point+n` lets n go by."""
    return [Case(name, road, int(skip or 0)) for name, _, skip in (point.partition("+") for point in points)]


CASES = [
    *_on(
        roads.author,
        "pipelines.draft.before_commit",
        "pipelines.draft.after_commit",
        "jobs.claim.after_commit",
        "jobs.begin.after_commit",
        "pipelines.ingest.compiled",
        "jobs.finish.before_commit",
        "pipelines.ingest.before_commit",
        "pipelines.ingest.after_commit",
        "jobs.handler.returned",
        "jobs.finish.after_commit",
        "pipelines.promote.before_commit",
        "pipelines.promote.after_commit",
        "deployments.bundle.before_commit",
        "deployments.bundle.after_commit",
    ),
    *_on(roads.abandoned, "jobs.lease.after_release"),
    *_on(
        roads.deploy,
        "agents.enroll.before_commit",
        "agents.enroll.after_commit",
        "agents.directive.numbered",
        "deployments.request.before_commit",
        "deployments.request.after_commit",
        "approvals.vote.written",
        "approvals.credential.minted",
        "deployments.build.enqueued",
        "approvals.decide.before_commit",
        "approvals.decide.after_commit",
        "deployments.build.before_start_commit",
        "deployments.build.started",
        "deployments.build.signed",
        "blobs.store.before_rename",
        "blobs.put.before_row",
        "deployments.build.stored",
        "deployments.build.assigned",
        "deployments.build.before_commit",
        "deployments.build.after_commit",
        "deployments.bundle.handed_out",
        "deployments.report.before_commit",
        "deployments.report.after_commit",
        "deployments.report.before_commit+1",
        "deployments.report.after_commit+1",
        "deployments.rollout.activated",
        "deployments.report.before_commit+2",
        "deployments.report.after_commit+2",
    ),
    *_on(
        roads.deploy,
        "agent.state.before_rename",
        "agent.enroll.answered",
        "agent.enroll.keys_kept",
        "agent.enroll.identity_kept",
        "agent.state.before_rename+2",
        "agent.directive.believed+1",
        "agent.bundle.fetched",
        "agent.report.queued",
        "agent.report.sent",
        "agent.bundle.verified",
        "agent.switch.bundle_kept",
        "agent.switch.new_stands",
        "agent.switch.noted",
        "agent.switch.done",
        "agent.report.sent+2",
        "agent.directive.carried_out+1",
        "agent.record.processed+9",
        "agent.records.out",
    ),
    *_on(
        roads.rollback,
        "agent.switch.old_stopped+1",
        "agent.switch.noted+1",
        "deployments.rollback.begun",
        "deployments.rollback.before_commit",
        "agents.directive.numbered+1",
        "agent.switch.bundle_kept+2",
        "agent.switch.noted+2",
        "agent.report.sent+8",
        "deployments.rollback.confirmed",
    ),
    *_on(roads.stop, "agent.stop.noted"),
    *_on(roads.auto_rollback, "deployments.rollout.failed"),
    *_on(
        roads.phased,
        "deployments.phase.begun",
        "deployments.phase.baking",
        "deployments.bake_end.before_commit",
        "deployments.phase.begun+1",
        "deployments.bake_end.after_commit",
    ),
    *_on(roads.unhealthy_agents, "deployments.unhealthy.before_commit", "deployments.unhealthy.after_commit"),
    *_on(
        roads.expired,
        "jobs.chore.taken",
        "jobs.chore.ran",
        "approvals.expire.before_commit",
        "approvals.expire.after_commit",
    ),
    *_on(roads.credential_expired, "approvals.credential_expiry.before_commit"),
    *_on(roads.silent, "deployments.timeout.before_commit", "deployments.timeout.after_commit"),
    *_on(roads.cancelled, "deployments.cancel.before_commit"),
    *_on(roads.withdrawn, "approvals.revoke.before_commit"),
    *_on(roads.removed, "agents.remove.before_commit", "agents.remove.after_commit"),
    *_on(roads.new_key, "agents.rotate_key.before_commit", "agents.rotate_key.after_commit"),
    *_on(
        roads.signing_keys,
        "signing.rotate.before_commit",
        "signing.rotate.after_commit",
        "agent.key_set.accepted",
        "signing.revoke.before_commit",
        "signing.revoke.after_commit",
    ),
    *_on(
        roads.deleted_at_once, "tenancy.delete.before_commit", "tenancy.delete.tombstoned", "blobs.purge.files_deleted"
    ),
    *_on(roads.deleted, "blobs.purge.between_chunks", "blobs.purge.between_chunks+2"),
]
