"""A project of 1,000,000 rows deleted as the product does it, against raw SQL that deletes the same rows child-first.

Ours: `purge_node` on a tombstone: every table below the project by the foreign keys of the models, in short transactions, the
stored files too. Raw: one DELETE a table in the best order, each committed by itself, by psycopg; no files, no chunks. Both delete
a project of the same make out of the same tables, which hold a sibling of the same size; the order changes from round to round.
The ids are UUIDv7 in the order of making, as everywhere in the product. Constraints and triggers are on for both, both commit, and
before each of the two the tables are vacuumed and a checkpoint is made.
The longest transaction is what `purge_node` took between BEGIN and the end of COMMIT.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import psycopg

from bench.control_plane import control_plane, log_in_a_file
from bench.measure import report

ROUNDS = 3
DEPLOYMENTS, TARGETS, EVENTS = 10_000, 40, 5
JOBS, ATTEMPTS = 100_000, 4
AGENTS = 20_000
APPROVALS, DECISIONS = 10_000, 2

# one DELETE each, deepest first; the environments are given by id
BELOW = (
    ("jobs_jobattempt", "job_id", "jobs_job"),
    ("jobs_job", "environment_id", None),
    ("blobs_storedblob", "environment_id", None),
    ("approvals_decision", "approval_id", "approvals_approval"),
    ("approvals_approvalevent", "approval_id", "approvals_approval"),
    ("approvals_approval", "environment_id", None),
    ("agents_agentkey", "agent_id", "agents_agent"),
    ("agents_agent", "environment_id", None),
    ("deployments_target", "deployment_id", "deployments_deployment"),
    ("deployments_deploymentevent", "deployment_id", "deployments_deployment"),
    ("deployments_phaseevent", "deployment_id", "deployments_deployment"),
    ("deployments_deployment", "environment_id", None),
    ("deployments_confirmation", "environment_id", None),
)


def main() -> None:
    """Measure and print."""
    with control_plane() as url, log_in_a_file():
        _measure(url)


def _project(organization: Any) -> tuple[Any, uuid.UUID]:
    """A project with one environment."""
    from apps.core.actors import SYSTEM_ACTOR
    from apps.tenancy import services as tenancy

    project = tenancy.create_project(actor=SYSTEM_ACTOR, organization=organization, name="Large")
    environment = tenancy.create_environment(actor=SYSTEM_ACTOR, project=project, name="dev", posture="dev")
    return project, environment.pk


NEW_ID = (
    "(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || "
    "substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid"
)


def _copies(raw: Any, table: str, template: uuid.UUID, count: str, **columns: str) -> None:
    """Insert copies of the row `template`: one for each row of the FROM clause `count`, with these columns by expression."""
    names = [
        r[0]
        for r in raw.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table,),
        )
    ]
    chosen = ", ".join(columns.get(name, f't."{name}"') for name in names)
    listed = ", ".join(f'"{name}"' for name in names)
    raw.execute(
        f"INSERT INTO {table} ({listed}) SELECT {chosen} FROM {table} AS t CROSS JOIN {count} WHERE t.id = %s",
        (template,),
    )


def _fill(raw: Any, organization_id: uuid.UUID, environment_id: uuid.UUID) -> int:
    """A million rows below the environment, by SQL, from one template row a table; how many."""
    from apps.agents.models import Agent, AgentKey
    from apps.approvals.models import Approval, Decision
    from apps.deployments.models import Deployment, DeploymentEvent, Target
    from apps.jobs.models import Job, JobAttempt

    here: dict[str, Any] = {"environment_id": environment_id}
    job = Job.objects.create(organization_id=organization_id, type="spec_ingest", subject_id=uuid.uuid4(), **here)
    attempt = JobAttempt.objects.create(job=job, number=1, from_status="queued", to_status="running")
    agent = Agent.objects.create(name="template", **here)
    key = AgentKey.objects.create(agent=agent, sha256=uuid.uuid4().hex, public_id="agt_x")
    shape: dict[str, Any] = {"version_id": uuid.uuid4(), "version_number": 1, "pipeline_name": "orders"}
    deployment = Deployment.objects.create(
        bundle_id=uuid.uuid4(),
        spec_hash="",
        config_hash="",
        approval_id=uuid.uuid4(),
        target_selector={"all": True},
        strategy={"type": "all_at_once"},
        **shape,
        **here,
    )
    target = Target.objects.create(deployment=deployment, agent_id=agent.pk, agent_name="template")
    event = DeploymentEvent.objects.create(deployment=deployment, to_status="pending_approval", actor="x", trigger="x")
    approval = Approval.objects.create(
        action="deploy",
        deployment_id=deployment.pk,
        policy={},
        required_approvals=1,
        expires_at=deployment.created_at,
        **here,
    )
    decision = Decision.objects.create(approval=approval, reviewer_id=uuid.uuid4(), decision="approve")

    fresh, many = {"id": NEW_ID}, "generate_series(1, {}) AS n"
    _copies(raw, "jobs_job", job.pk, many.format(JOBS), **fresh)
    parents = f"(SELECT id AS parent FROM jobs_job WHERE environment_id = '{environment_id}') AS p"
    _copies(
        raw, "jobs_jobattempt", attempt.pk, f"{parents} CROSS JOIN {many.format(ATTEMPTS)}", job_id="p.parent", **fresh
    )
    _copies(raw, "agents_agent", agent.pk, many.format(AGENTS), name="'host-' || n", **fresh)
    parents = (
        f"(SELECT id AS parent FROM agents_agent WHERE environment_id = '{environment_id}' AND id <> '{agent.pk}') AS p"
    )
    sha = {"sha256": "replace(gen_random_uuid()::text, '-', '')"}
    _copies(raw, "agents_agentkey", key.pk, parents, agent_id="p.parent", **sha, **fresh)
    _copies(raw, "deployments_deployment", deployment.pk, many.format(DEPLOYMENTS), **fresh)
    parents = f"(SELECT id AS parent FROM deployments_deployment WHERE environment_id = '{environment_id}') AS p"
    each = {"deployment_id": "p.parent", **fresh}
    towards = {"agent_id": "gen_random_uuid()"}
    _copies(raw, "deployments_target", target.pk, f"{parents} CROSS JOIN {many.format(TARGETS)}", **towards, **each)
    _copies(raw, "deployments_deploymentevent", event.pk, f"{parents} CROSS JOIN {many.format(EVENTS)}", **each)
    _copies(raw, "approvals_approval", approval.pk, many.format(APPROVALS), deployment_id="gen_random_uuid()", **fresh)
    parents = f"(SELECT id AS parent FROM approvals_approval WHERE environment_id = '{environment_id}') AS p"
    who = {"approval_id": "p.parent", "reviewer_id": "gen_random_uuid()"}
    _copies(raw, "approvals_decision", decision.pk, f"{parents} CROSS JOIN {many.format(DECISIONS)}", **who, **fresh)
    total = 0
    for table, column, parent in BELOW:
        total += raw.execute(
            f"SELECT count(*) FROM {table} WHERE {_where(column, parent)}", ([environment_id],)
        ).fetchone()[0]
    return int(total)


def _where(column: str, parent: str | None) -> str:
    if parent is None:
        return f"{column} = ANY(%s)"
    return f"{column} IN (SELECT id FROM {parent} WHERE environment_id = ANY(%s))"


def _settle(raw: Any) -> None:
    """Leave neither of the two what the other, or the filling, left behind."""
    raw.execute("VACUUM ANALYZE")
    raw.execute("CHECKPOINT")


def _raw_delete(raw: Any, environment_id: uuid.UUID) -> float:
    began = time.perf_counter()
    for table, column, parent in BELOW:
        raw.execute(f"DELETE FROM {table} WHERE {_where(column, parent)}", ([environment_id],))
    raw.execute("DELETE FROM tenancy_environment WHERE id = %s", (environment_id,))
    return time.perf_counter() - began


def _own_delete(project: Any) -> tuple[float, float, int]:
    """(seconds, the longest transaction, how many there were)."""
    from django.db import transaction

    from apps.blobs import purge

    spans: list[float] = []

    class Timed(transaction.Atomic):
        def __enter__(self) -> None:
            self.began = time.perf_counter()
            super().__enter__()

        def __exit__(self, *raised: Any) -> None:
            super().__exit__(*raised)
            spans.append(time.perf_counter() - self.began)

    kept = purge.transaction
    purge.transaction = type("Timed", (), {"atomic": staticmethod(lambda: Timed(None, True, False))})  # type: ignore[misc, assignment]
    began = time.perf_counter()
    try:
        purge.purge_node(project)
    finally:
        purge.transaction = kept  # type: ignore[misc]
    return time.perf_counter() - began, max(spans), len(spans)


def _measure(url: str) -> None:
    from tests.support import make_tenant

    organization = make_tenant().organization
    raw = psycopg.connect(url, autocommit=True)
    _fill(raw, organization.pk, _project(organization)[1])  # the sibling, which stays
    pairs, longest, several = [], 0.0, 0
    for number in range(ROUNDS):
        (mine, here), (_, there) = _project(organization), _project(organization)
        rows = _fill(raw, organization.pk, here)
        _fill(raw, organization.pk, there)
        _settle(raw)
        if number % 2:
            theirs = _raw_delete(raw, there)
            _settle(raw)
        seconds, slowest, several = _own_delete(mine)
        if not number % 2:
            _settle(raw)
            theirs = _raw_delete(raw, there)
        pairs.append((seconds, theirs))
        longest = max(longest, slowest)
        print(
            f"  {rows:,} rows: ours {seconds:.1f} s, raw {theirs:.1f} s; {several} transactions, longest {slowest * 1000:.0f} ms",
            flush=True,
        )
    report("1,000,000 rows purged / raw DELETEs", pairs, wanted="<= 1.5")
    print(f"{'longest transaction of all rounds':52} {longest * 1000:6.0f} ms   wanted <= 250", flush=True)
    raw.close()


if __name__ == "__main__":
    main()
