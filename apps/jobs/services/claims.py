"""Leases: which cluster of workers holds which job, and until when.

A claim writes the lease and nothing else: the job stays `queued` (or `retrying`), no attempt is counted. The worker that gets
the job counts the attempt when it begins (`attempts.begin_attempt`). A claim that never begins is therefore given back unchanged.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import IntegrityError, connection, models, transaction
from django.db.models.expressions import RawSQL

from apps.core import clock, wake
from apps.core.ids import new_id
from apps.jobs.models import Job
from apps.jobs.registry import handler_types
from apps.jobs.services.queue import WAKE_JOBS, wake_chore

LEASE = dt.timedelta(seconds=settings.BYTEOR_JOB_LEASE_SECONDS)
"""How long a lease lasts unless it is renewed: 30 s, shorter only where tests kill workers (local profile)."""
LEASES_CHORE = "job_leases"
RUNNING_PER_ORGANIZATION = 8
NO_LEASE: dict[str, None] = dict.fromkeys(
    ("lease_token", "lease_expires_at", "lease_slot", "lease_cluster", "lease_pid"), None
)
_CONFLICTS = 16
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was leased to this cluster. `lease` is the token that every later write must show."""

    job_id: uuid.UUID
    lease: uuid.UUID
    type: str
    organization_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim found: the jobs, how many workers of the cluster are left free, and when the next job falls due (None where no worker
    is free to wait for it)."""

    claims: list[Claim]
    free: int
    next_due: dt.datetime | None


_served: OrderedDict[uuid.UUID, None] = OrderedDict()
"""The organizations that this process claimed for, the latest last."""


def _remember(organization_id: uuid.UUID) -> None:
    _served[organization_id] = None
    _served.move_to_end(organization_id)
    if len(_served) > _REMEMBERED:
        _served.popitem(last=False)


def waiting_jobs() -> models.QuerySet[Job]:
    """Jobs with a handler that are queued or to be retried, now or later: neither finished nor leased."""
    return Job.objects.filter(finished_at__isnull=True, lease_token__isnull=True, type__in=handler_types())


_FIRST_OF_EACH_ORGANIZATION = """
WITH RECURSIVE first (id) AS (
    SELECT (
        SELECT id FROM jobs_job WHERE finished_at IS NULL AND lease_token IS NULL AND type IN ({types})
        ORDER BY organization_id, run_at, id LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT id FROM jobs_job WHERE finished_at IS NULL AND lease_token IS NULL AND type IN ({types})
        AND organization_id > former.organization_id ORDER BY organization_id, run_at, id LIMIT 1
    )
    FROM first JOIN jobs_job former ON former.id = first.id
)
SELECT id FROM first
"""
"""One look into the index `job_unfinished` for each organization that has waiting jobs, however many of them wait and however
many organizations have none. The ORM has no recursion; without it, a query reads an entry for each job or organization."""


def first_due() -> dict[uuid.UUID, dt.datetime]:
    """{organization: when the first of its waiting jobs is due}, also in the future."""
    types = handler_types()
    if not types:
        return {}
    query = _FIRST_OF_EACH_ORGANIZATION.format(types=", ".join(["%s"] * len(types)))
    first = RawSQL(query, [*types, *types])  # noqa: S611 - only placeholders are put in
    return dict(Job.objects.filter(pk__in=first).values_list("organization_id", "run_at"))


@dataclass(frozen=True, slots=True)
class _Look:
    """What a cluster may claim now: for each job (organization, free slot). `free` counts workers, before the claim. `next_due` is
    when the first job falls due that is not due now."""

    chosen: Sequence[tuple[uuid.UUID, int]]
    free: int
    next_due: dt.datetime | None = None


def _look(cluster: uuid.UUID | None, at_most: int) -> _Look:
    """Choose organizations in turn: first the one with the fewest leases, then the one that was served longest ago, then the one
    whose job has been due longest."""
    slots: defaultdict[uuid.UUID, set[int]] = defaultdict(set)
    free = at_most
    leases = Job.objects.filter(lease_slot__isnull=False)
    for organization_id, slot, holder in leases.values_list("organization_id", "lease_slot", "lease_cluster"):
        slots[organization_id].add(slot)
        free -= cluster is not None and holder == cluster
    if free <= 0:
        return _Look([], 0)
    now, first = clock.now(), first_due()
    turn = {organization_id: number for number, organization_id in enumerate(_served, start=1)}
    chosen: list[tuple[uuid.UUID, int]] = []
    for _ in range(free):
        able = [o for o, at in first.items() if at <= now and len(slots[o]) < RUNNING_PER_ORGANIZATION]
        if not able:
            break
        next_ = min(able, key=lambda o: (len(slots[o]), turn.get(o, 0), first[o], o))
        # at random, so that clusters that claim at the same time seldom choose the same slot
        slot = random.choice([s for s in range(RUNNING_PER_ORGANIZATION) if s not in slots[next_]])  # noqa: S311
        slots[next_].add(slot)
        chosen.append((next_, slot))
    return _Look(chosen, free, min((at for at in first.values() if at > now), default=None))


def _locked(jobs: models.QuerySet[Job]) -> models.QuerySet[Job]:
    if connection.features.has_select_for_update_skip_locked:
        return jobs.select_for_update(skip_locked=True, no_key=True)
    return jobs


@transaction.atomic
def _claim(cluster: uuid.UUID | None, at_most: int) -> Claimed:
    look = _look(cluster, at_most)
    if look.chosen and connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # not written to disk before the delivery: a claim that a crash of the server undoes leaves the job waiting, unchanged
            cursor.execute("SET LOCAL synchronous_commit = off")
    claims = []
    now = clock.now()
    # in one order for all clusters: each waits for a slot that another is taking, so no two wait for each other
    for organization_id, slot in sorted(look.chosen):
        due = waiting_jobs().filter(organization_id=organization_id, run_at__lte=now).order_by("run_at", "id")
        found = _locked(due).values_list("pk", "type").first()
        if found is None:  # another cluster is claiming it
            continue
        (job_id, type_), lease = found, new_id()
        Job.objects.filter(pk=job_id).update(
            lease_token=lease, lease_expires_at=now + LEASE, lease_slot=slot, lease_cluster=cluster
        )
        claims.append(Claim(job_id, lease, type_, organization_id))
    return Claimed(claims, look.free - len(claims), look.next_due)


def claim_jobs(*, cluster: uuid.UUID | None, at_most: int) -> Claimed:
    """Lease due jobs to `cluster`: `at_most`, less those that it holds already, counted and claimed in one transaction.

    No organization holds more than eight leases (a unique constraint refuses a ninth), and organizations take turns, so that
    none starves another. Without a `cluster` no held leases are counted.
    """
    if not connection.features.has_select_for_update:
        # SQLite: a look before the write lock is taken, so that an idle cluster blocks no writer
        look = _look(cluster, at_most)
        if not look.chosen:
            return Claimed([], look.free, look.next_due)
    for _ in range(_CONFLICTS):
        try:
            claimed = _claim(cluster, at_most)
        except IntegrityError:  # another cluster took the same slot of an organization at the same moment
            continue
        for claim in claimed.claims:
            _remember(claim.organization_id)
        return claimed
    return Claimed([], 0, None)


def extend_lease(*, job_id: uuid.UUID, token: uuid.UUID) -> bool:
    """Renew the lease; False when it has passed to another worker."""
    rows = Job.objects.filter(pk=job_id, lease_token=token)
    return bool(rows.update(lease_expires_at=clock.now() + LEASE))


@transaction.atomic
def give_up_leases(*, cluster: uuid.UUID, pid: int | None = None) -> int:
    """End the leases of a dead worker process (or of a whole dead cluster) now; how many there were.

    Attempts that began are ended as failed by the chore `job_leases`, which is woken. Claims that have not begun are given back
    at once; with `pid` also those of the living workers of the cluster, since it is not recorded to which
    worker a claim was sent. A worker that receives such a claim finds that its lease has ended and does nothing.
    """
    leases = Job.objects.filter(lease_slot__isnull=False, lease_cluster=cluster)
    claimed: int = leases.filter(attempt_running=False).update(**NO_LEASE)
    begun = leases.filter(attempt_running=True)
    if pid is not None:
        begun = begun.filter(lease_pid=pid)
    ended: int = begun.update(lease_expires_at=clock.now())
    if claimed:
        wake.notify(WAKE_JOBS)
    if ended:
        wake_chore(LEASES_CHORE)
    return claimed + ended
