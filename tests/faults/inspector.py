"""Looks into a control plane's database and files with its own models: questions and answers, one JSON line each.

A process of its own, because it needs the settings of the control plane that it looks at.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402

from apps.access.roles import Role  # noqa: E402
from apps.agents.models import Agent, AgentKey  # noqa: E402
from apps.agents.registry import desired_source  # noqa: E402
from apps.approvals.models import Approval, ApprovalEvent, Decision  # noqa: E402
from apps.audit.models import AuditEvent  # noqa: E402
from apps.blobs import orphans  # noqa: E402
from apps.blobs.models import StoredBlob  # noqa: E402
from apps.blobs.store import store  # noqa: E402
from apps.console.setup import add_person, bootstrap, find_place  # noqa: E402
from apps.core import clock  # noqa: E402
from apps.core.triggers import Immutable  # noqa: E402
from apps.deployments.models import ConfigBundle, Deployment, DeploymentEvent, Target  # noqa: E402
from apps.jobs.models import Job  # noqa: E402
from apps.jobs.services import wake_chore  # noqa: E402
from apps.pipelines.models import PipelineDraft, PipelineVersion  # noqa: E402
from apps.signing import services as signing  # noqa: E402
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey  # noqa: E402
from apps.tenancy.models import Environment  # noqa: E402
from tests import invariants  # noqa: E402
from tests.support import trigger_operations  # noqa: E402

UNCOUNTED = frozenset({"jobs_jobattempt", "agents_agentkey"})
"""A killed attempt leaves its row and a repeated enrollment ends a key: these tables may hold more than undisturbed."""


def _rank(ids: list[uuid.UUID]) -> Callable[[uuid.UUID | None], int | None]:
    numbers = {pk: number for number, pk in enumerate(ids)}
    return lambda pk: None if pk is None else numbers.get(pk, -1)


def _deployment(row: Deployment, rank: Callable[[uuid.UUID | None], int | None]) -> dict[str, Any]:
    events = DeploymentEvent.objects.filter(deployment=row).order_by("pk")
    targets = Target.objects.filter(deployment=row).order_by("agent_name")
    return {
        "status": row.status,
        "status_reason": row.status_reason,
        "superseded_by": rank(row.superseded_by),
        "built": bool(row.bundle_sha256),
        "events": [[e.from_status, e.to_status, e.trigger, e.actor.partition(":")[0], e.reason] for e in events],
        "targets": [
            {
                "agent": t.agent_name,
                "status": t.status,
                "settled": t.settled_at is not None,
                "reported": t.report.get("status"),
                "previous": rank(t.previous_deployment_id),
            }
            for t in targets
        ],
    }


def _approval(row: Approval) -> dict[str, Any]:
    return {
        "status": row.status,
        "credential": bool(row.credential),
        "events": [
            [e.from_status, e.to_status, e.trigger] for e in ApprovalEvent.objects.filter(approval=row).order_by("pk")
        ],
        "votes": [[d.reviewer_name, d.decision] for d in Decision.objects.filter(approval=row).order_by("pk")],
    }


def _audit(environment_id: str) -> list[str]:
    """What was done below the environment, in order. A repeated enrollment or key rotation is recorded twice, and marked as repeated."""
    rows = AuditEvent.objects.filter(resource_scope__environment_id=environment_id, outcome="allowed").order_by("seq")
    return [row.action for row in rows if not row.details.get("repeated")]


def _below(model: type[models.Model], lookup: str = "") -> Iterator[tuple[type[models.Model], str]]:
    """Every table that is deleted with a row of `model`, with the lookup to that row."""
    for relation in model._meta.related_objects:
        if relation.on_delete is models.CASCADE and isinstance(relation.related_model, type):
            path = f"{relation.field.name}__{lookup}".removesuffix("__")
            yield relation.related_model, path
            yield from _below(relation.related_model, path)


def _rows(environment: Environment) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for model, lookup in dict.fromkeys(_below(Environment)):
        if model._meta.db_table not in UNCOUNTED:
            counts[model._meta.db_table] += model._base_manager.filter(**{lookup: environment}).count()
    return dict(counts)


def snapshot(environment_id: str) -> dict[str, Any]:
    """All that a person would call the state of an environment, without ids, times and chance."""
    here = Environment.objects.get(pk=environment_id)
    mine: dict[str, Any] = {"environment": here}
    deployments: list[Deployment] = list(Deployment.objects.filter(**mine).order_by("pk"))
    rank = _rank([d.pk for d in deployments])
    working = AgentKey.objects.filter(agent__environment=here, revoked_at__isnull=True, expires_at__isnull=True)
    keys = Counter(working.values_list("agent__name", flat=True))
    jobs = Counter(f"{job.type} {job.status}" for job in Job.objects.filter(**mine))
    drafts = PipelineDraft.objects.filter(**mine).order_by("pk")
    bundles = ConfigBundle.objects.filter(**mine).order_by("pk")
    return {
        "drafts": [[d.name, d.status, d.spec_hash] for d in drafts],
        "versions": [[v.number, v.spec_hash] for v in PipelineVersion.objects.filter(**mine).order_by("pk")],
        "bundles": [[b.version_number, b.config_hash, b.used_at is not None] for b in bundles],
        "deployments": [_deployment(row, rank) for row in deployments],
        "approvals": [_approval(row) for row in Approval.objects.filter(**mine).order_by("pk")],
        "agents": [
            [a.name, rank(a.running_deployment_id), keys[a.name], a.revoked_at is not None]
            for a in Agent.objects.filter(**mine).order_by("name")
        ],
        "jobs": dict(sorted(jobs.items())),
        "audit": _audit(environment_id),
        "current": rank(here.current_deployment_id),
        "rows": _rows(here),
    }


def what_is_left(environment_id: str, project_id: str) -> dict[str, Any]:
    """Of a project that was deleted: rows of its environment (by table), files, and the audit rows about it."""
    here = Environment.objects.filter(pk=environment_id).first()
    return {
        "rows": _rows(here) if here else {},
        "environment": here is not None,
        "files": sum(key.startswith(f"{environment_id}/") for key, _ in store().listing()),
        # who repeats a deletion that succeeded is refused, and that is on record too
        "audit": [
            row.action
            for row in AuditEvent.objects.filter(target=f"project:{project_id}", outcome="allowed").order_by("seq")
        ],
    }


def files(environment_id: str) -> dict[str, int]:
    """Stored files of the environment: how many a row names, and how many none does once what is left over was swept."""
    orphans.sweep_orphans(before=clock.now() + dt.timedelta(seconds=1))
    named = set(StoredBlob.objects.filter(environment_id=environment_id).values_list("sha256", flat=True))
    kept = [key for key, _ in store().listing()]
    there = {key.rpartition("/")[2] for key in kept if key.startswith(f"{environment_id}/")}
    drafts = sum(key.startswith(".drafts/") for key in kept)
    return {"rows": len(named), "lost": len(named - there), "orphans": len(there - named) + drafts}


def violations(at_rest: bool) -> list[str]:
    """Broken invariants of the whole database; and whether the write lock is still held."""
    found = invariants.violations(at_rest=at_rest)
    active = SigningKey.objects.filter(status=KeyStatus.ACTIVE).count()
    versions = list(KeySetVersion.objects.order_by("version").values_list("version", flat=True))
    if active != 1 or versions != list(range(1, len(versions) + 1)):
        found.append(f"there are {active} active signing keys, and the key sets are numbered {versions}")
    if at_rest and connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 2000")
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("ROLLBACK")
    return found


def busy(environment_id: str) -> list[str]:
    """Jobs of the environment that are not done."""
    rows = Job.objects.filter(environment_id=environment_id).exclude(status__in=("completed", "dead_letter"))
    return [f"{job.type} {job.status}" for job in rows]


def prepare() -> dict[str, str]:
    """An empty database becomes a tenant with alice, who administers, and bob, who operates: their tokens."""
    call_command("migrate", verbosity=0)
    first = bootstrap(organization="Acme", email="alice@example.com").as_dict()
    organization, _ = find_place(uuid.UUID(str(first["org_id"])), None)
    second = add_person(organization=organization, project=None, email="bob@example.com", role=Role.OPERATOR).as_dict()
    return {"org_id": str(first["org_id"]), "alice": str(first["token"]), "bob": str(second["token"])}


def run_chore(name: str) -> None:
    """Let a chore run now."""
    wake_chore(name)


def move_back(model: str, pk: str, field: str, seconds: int) -> None:
    """Let time pass for one row: move a moment in it into the past."""
    table: dict[str, type[models.Model]] = {"approval": Approval, "target": Target}
    rows = table[model]._base_manager.filter(**{"pk" if model == "approval" else "deployment_id": pk})
    # time does not pass for rows that can't be changed: their rules stand aside for this one
    rules = [op for op in trigger_operations(Immutable) if op.table == rows.model._meta.db_table]
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in (s for op in rules for s in op.drop(connection.vendor)):
            cursor.execute(statement)
        rows.update(**{field: clock.now() - dt.timedelta(seconds=seconds)})
        for statement in (s for op in rules for s in op.create(connection.vendor)):
            cursor.execute(statement)


def key_set_version(organization_id: str) -> int:
    """The newest version of the organization's key set."""
    return signing.key_set_version(uuid.UUID(organization_id))


def directives(environment_id: str) -> dict[str, int | None]:
    """{agent: number of the directive for what it should run now}; None until it has asked for that."""
    rows = Agent.objects.enrolled().filter(environment_id=environment_id)
    wanted = {row: desired_source().desired(row).content() for row in rows}
    return {
        row.name: row.directive_seq if row.directive_content == content else None for row, content in wanted.items()
    }


def fill(environment_id: str, rows: int) -> None:
    """Many drafts, so that deleting what is above them takes a chore and several chunks."""
    here = Environment.objects.get(pk=environment_id)
    PipelineDraft.objects.bulk_create(
        [PipelineDraft(environment=here, name=f"n{n}", spec="") for n in range(rows)], batch_size=1000
    )


QUESTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        prepare,
        key_set_version,
        snapshot,
        what_is_left,
        files,
        violations,
        busy,
        run_chore,
        move_back,
        directives,
        fill,
    )
}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"result": QUESTIONS[asked["question"]](**asked["given"])}
        except Exception as error:  # passed to the test, which fails with it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
