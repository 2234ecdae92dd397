"""The states of a job, leases, retries, fairness, chores. Real worker processes are in tests/recovery."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
import time_machine
from django.db import DatabaseError, IntegrityError, connection, transaction

from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import StateConflict
from apps.core.fsm import advance, legal_moves
from apps.core.ids import new_id
from apps.jobs import chores, registry, runner
from apps.jobs.models import Chore, Job, JobAttempt, JobStatus
from apps.jobs.registry import JobRun, LeaseLost, PermanentJobError
from apps.jobs.services import (
    Claimed,
    attempts,
    claim_jobs,
    complete_in_transaction,
    enqueue,
    finish,
    release_expired,
    take_job,
)
from apps.jobs.services.claims import NO_LEASE
from tests.support import in_threads, run_due_chores

pytestmark = pytest.mark.django_db
effects: list[uuid.UUID] = []
dead: list[uuid.UUID] = []


def handler(run: JobRun) -> str | None:
    match run.payload.get("do"):
        case "fail":
            raise ValueError("a secret in here")
        case "never":
            raise PermanentJobError("it can not work")
        case "in transaction":
            with transaction.atomic():
                effects.append(run.subject_id)
                complete_in_transaction(run, "done inside")
            return None
    run.progress(50)
    effects.append(run.subject_id)
    return "well"


@pytest.fixture(autouse=True)
def _handler():
    effects.clear(), dead.clear()
    registry.register_handler(
        "test",
        handler,
        max_attempts=3,
        base_seconds=0,
        cap_seconds=0,
        timeout_seconds=5,
        on_dead=lambda j: dead.append(j.pk),
    )
    yield
    registry._handlers.pop("test")


def queued(tenant, **payload) -> Job:
    return enqueue(
        type="test",
        organization_id=tenant.organization.pk,
        environment_id=tenant.dev.pk,
        subject_id=new_id(),
        payload=payload,
    )


def theirs(tenant) -> Job:
    return enqueue(type="test", organization_id=tenant.other_organization.pk, environment_id=None, subject_id=new_id())


WAYS = {
    "running": "begin",
    "failed": "fail",
    "retrying": "retry",
    "dead_letter": "bury",
    "completed": "complete",
    "queued": "requeue",
}
ROADS = {
    "queued": [],
    "running": ["begin"],
    "failed": ["begin", "fail"],
    "retrying": ["begin", "fail", "retry"],
    "completed": ["begin", "complete"],
    "dead_letter": ["begin", "fail", "retry", "bury"],
}


@pytest.mark.postgres
@pytest.mark.parametrize(("source", "target"), [(a, b) for a in JobStatus.values for b in JobStatus.values])
def test_every_pair_of_states(tenant, source, target):
    job = queued(tenant)
    for step in ROADS[source]:
        advance(job, step)
    legal = target in legal_moves(Job)[source]
    with pytest.raises(AttributeError):
        job.status = target
    with pytest.raises(AttributeError):
        Job.objects.filter(pk=job.pk).update(status=target)
    if not legal and source != target:
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE jobs_job SET status = %s WHERE status = %s", [target, source])
    if legal:
        advance(job, WAYS[target])
    else:
        with pytest.raises(StateConflict):
            advance(job, WAYS[target])
    assert Job.objects.get(pk=job.pk).status == (target if legal else source)


def moves(job: Job) -> list[tuple[int, str, str]]:
    return list(JobAttempt.objects.filter(job=job).order_by("pk").values_list("number", "from_status", "to_status"))


@pytest.mark.parametrize("do", ["", "in transaction"])
def test_a_job_that_works_is_done_once_with_a_row_for_each_move(tenant, do):
    job = queued(tenant, do=do)
    assert runner.drain() == 1
    job.refresh_from_db()
    assert (job.status, job.attempts, job.progress) == ("completed", 1, 100)
    assert effects == [job.subject_id]
    assert moves(job) == [(1, "queued", "running"), (1, "running", "completed")]


def test_a_job_that_fails_is_tried_again_and_then_dead_and_can_be_retried_by_hand(tenant):
    job = queued(tenant, do="fail")
    assert runner.drain() == 3
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error_class) == ("dead_letter", 3, "ValueError")
    assert "secret" not in job.error
    assert dead == [job.pk]
    assert moves(job) == [
        (1, "queued", "running"), (1, "running", "failed"), (1, "failed", "retrying"),
        (2, "retrying", "retrying"), (3, "retrying", "retrying"), (3, "retrying", "dead_letter"),
    ]  # fmt: skip
    assert AuditEvent.objects.filter(action="job.dead_letter").count() == 1
    path = f"{tenant.path()}/jobs/{job.pk}"
    for who, status in (("vera", 403), ("charlie", 404)):
        assert tenant.caller(who).post(f"{path}/retry", {}).status_code == status
    assert tenant.caller("bob").post(f"{path}/retry", {}).json()["status"] == "queued"
    assert tenant.caller("bob").post(f"{path}/retry", {}).json()["code"] == "invalid_transition"
    assert AuditEvent.objects.filter(action="job.retried").count() == 1


def test_what_can_never_succeed_passes_to_dead_letter_at_once(tenant):
    job = queued(tenant, do="never")
    assert runner.drain() == 1
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error) == ("dead_letter", 1, "it can not work")
    assert [m[1:] for m in moves(job)] == [
        ("queued", "running"), ("running", "failed"), ("failed", "retrying"), ("retrying", "dead_letter")
    ]  # fmt: skip


def test_a_newer_one_supersedes_an_older_one_that_waits(tenant):
    subject = new_id()
    place = {"organization_id": tenant.organization.pk, "environment_id": tenant.dev.pk, "subject_id": subject}
    old = enqueue(type="test", **place, supersede=True)
    enqueue(type="test", **place, supersede=True)
    runner.drain()
    old.refresh_from_db()
    assert effects == [subject]
    assert "superseded" in old.note


def test_a_lease_that_ran_out_is_an_attempt_that_failed_and_its_late_end_is_fenced(tenant):
    job = queued(tenant)
    run = take_job()
    with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
        assert release_expired() == 1
    job.refresh_from_db()
    assert (job.status, job.error_class) == ("retrying", "LeaseExpired")
    for late in (lambda: finish(run, "late"), lambda: run.progress(5), run.ensure_lease):
        with pytest.raises(LeaseLost):
            late()
    assert runner.run_attempt(run) == "lost"
    with time_machine.travel(clock.now() + dt.timedelta(seconds=40)):
        runner.drain()
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("completed", 2)


def test_a_claim_that_ends_before_its_attempt_begins_is_claimed_anew(tenant, monkeypatch):
    job = queued(tenant)
    ended = []

    def claim_and_expire(**given):
        claimed = claim_jobs(**given)
        if not ended:
            with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
                ended.append(release_expired())
        return claimed

    monkeypatch.setattr(attempts, "claim_jobs", claim_and_expire)
    run = take_job()
    assert ended == [1]
    assert (run.job_id, run.attempt) == (job.pk, 1)
    assert moves(job) == [(1, "queued", "running")]


def test_an_attempt_is_counted_before_any_of_it_runs(tenant):
    job = queued(tenant)
    take_job()
    job.refresh_from_db()
    assert (job.status, job.attempts, job.attempt_running) == ("running", 1, True)
    assert moves(job) == [(1, "queued", "running")]


@pytest.mark.postgres
def test_no_tenant_takes_more_than_its_share(tenant):
    for _ in range(12):
        queued(tenant)
    other = theirs(tenant)
    taken = [run for run in (take_job() for _ in range(13)) if run is not None]
    assert len(taken) == 9
    assert other.pk in {run.job_id for run in taken}
    finish(taken[0])
    assert take_job() is not None
    assert take_job() is None


@pytest.mark.postgres
def test_a_single_worker_lets_tenants_take_turns_however_long_ones_queue_is(tenant):
    for _ in range(20):
        queued(tenant)
    for _ in range(3):
        theirs(tenant)
    order = []
    while len(order) < 8:
        run = take_job()
        order.append(run.organization_id)
        runner.run_attempt(run)
    mine, other = tenant.organization.pk, tenant.other_organization.pk
    assert order in ([mine, other] * 3 + [mine, mine], [other, mine] * 3 + [mine, mine])


@pytest.mark.postgres
def test_the_database_itself_refuses_a_second_job_in_one_place(tenant):
    for _ in range(2):
        queued(tenant)
    first = take_job()
    place = Job.objects.get(pk=first.job_id).lease_slot
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.exclude(pk=first.job_id).update(lease_slot=place)


@pytest.mark.postgres
def test_what_is_due_later_is_left_alone_and_known(tenant):
    now = clock.now()
    assert claim_jobs(cluster=None, at_most=1) == Claimed([], 1, None)
    place = {"organization_id": tenant.organization.pk, "environment_id": None, "subject_id": new_id()}
    enqueue(type="test", **place, run_at=now + dt.timedelta(minutes=5))
    enqueue(type="test", **place, run_at=now + dt.timedelta(minutes=2))
    found = claim_jobs(cluster=None, at_most=1)
    assert (found.claims, found.free) == ([], 1)
    assert abs((found.next_due - now).total_seconds() - 120) < 0.01


@pytest.mark.postgres
@pytest.mark.parametrize("do", ["", "fail"])
def test_every_way_an_attempt_goes_is_a_move_of_the_transition_table(tenant, do):
    job = queued(tenant, do=do)
    while runner.drain():
        pass
    legal = legal_moves(Job)
    for source, target in JobAttempt.objects.filter(job=job).values_list("from_status", "to_status"):
        assert target in legal[source] or source == target == "retrying"
    job.refresh_from_db()
    assert [getattr(job, name) for name in NO_LEASE] == [None] * len(NO_LEASE)
    assert not job.attempt_running


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_two_workers_on_one_job_make_one_effect(tenant):
    for _ in range(5):
        queued(tenant)
    assert not [found for found in in_threads(*([runner.drain] * 4)) if isinstance(found, BaseException)]
    assert len(effects) == len(set(effects)) == 5
    assert set(Job.objects.values_list("status", "attempts")) == {("completed", 1)}


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_chore_that_is_due_runs_in_one_process_only(monkeypatch):
    ran: list[int] = []
    monkeypatch.setattr(registry, "_chores", {})
    registry.register_chore("test_chore", every_seconds=60, run=lambda now: ran.append(1) or 1)
    Chore.objects.create(name="test_chore", next_run_at=clock.now())
    assert sorted(in_threads(*([run_due_chores] * 4))) == [0, 0, 0, 1]
    assert ran == [1]


def test_a_chore_whose_lease_is_renewed_meanwhile_stays_its_process_own(monkeypatch):
    monkeypatch.setattr(registry, "_chores", {})
    registry.register_chore("test_chore", every_seconds=60, run=lambda now: 1)
    [spec], now = registry.chores(), clock.now()
    held = {"lease_token": new_id(), "next_run_at": now, "lease_expires_at": now - dt.timedelta(seconds=1)}
    read = Chore.objects.create(name="test_chore", **held)
    Chore.objects.update(lease_expires_at=now + dt.timedelta(seconds=30))  # late, but before it is taken
    assert chores._take(spec, read, now) is None
    read.refresh_from_db()
    assert chores._take(spec, read, now) is not None


def test_a_chore_that_breaks_is_recorded_and_stops_no_other(monkeypatch):
    monkeypatch.setattr(registry, "_chores", {})
    registry.register_chore("broken", every_seconds=60, run=lambda now: 1 // 0)
    registry.register_chore("fine", every_seconds=60, run=lambda now: 7)
    assert run_due_chores() == 2
    assert dict(Chore.objects.values_list("name", "last_error")) == {"broken": "ZeroDivisionError", "fine": ""}
