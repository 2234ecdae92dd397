"""Claims of a cluster, deliveries to its workers, and what becomes of a claim that never begins."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import time_machine
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_q.signing import SignedPackage

from apps.core import clock
from apps.core.ids import new_id
from apps.jobs import broker as broker_module
from apps.jobs import process_health, registry, runner
from apps.jobs.broker import JobTableBroker
from apps.jobs.models import Job, JobAttempt, WorkerBeat
from apps.jobs.registry import JobRun, LeaseLost
from apps.jobs.services import (
    Claim,
    begin_attempt,
    claim_jobs,
    complete_in_transaction,
    enqueue,
    finish,
    give_up_leases,
    release_expired,
)
from apps.jobs.services import claims as claims_module
from apps.jobs.services.claims import NO_LEASE, first_due
from apps.tenancy.models import Organization
from tests.support import in_threads

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
TYPE = "test_claims"


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    registry.register_handler(TYPE, lambda run: None, max_attempts=3, timeout_seconds=7)
    yield
    registry._handlers.pop(TYPE)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> uuid.UUID:
    """This process is one of a cluster."""
    cluster = new_id()
    monkeypatch.setenv(process_health.CLUSTER_ENV, str(cluster))
    monkeypatch.setattr(process_health, "_beat_at", float("-inf"))
    return cluster


def queue(tenant: Any, count: int = 1) -> list[Job]:
    place = {"organization_id": tenant.organization.pk, "environment_id": tenant.dev.pk}
    return [enqueue(type=TYPE, **place, subject_id=new_id()) for _ in range(count)]


def columns(job: Job) -> dict[str, Any]:
    return dict(Job.objects.filter(pk=job.pk).values().get())


def claims(cluster: uuid.UUID | None, at_most: int) -> list[Claim]:
    return claim_jobs(cluster=cluster, at_most=at_most).claims


def tasks(delivered: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [SignedPackage.loads(package) for _, package in delivered]


def test_a_claim_writes_the_lease_and_nothing_else(tenant: Any) -> None:
    [job] = queue(tenant)
    before = columns(job)
    [claim] = claims(new_id(), 2)
    after = columns(job)
    assert claim.job_id == job.pk
    assert {name for name in after if after[name] != before[name]} == set(NO_LEASE) - {"lease_pid"}
    assert not JobAttempt.objects.filter(job=job).exists()


def test_a_cluster_claims_as_many_as_it_has_free_workers(tenant: Any) -> None:
    queue(tenant, 6)
    mine, other = new_id(), new_id()
    first = claims(mine, 2)
    assert len(first) == 2
    assert claims(mine, 2) == []
    assert len(claims(other, 3)) == 3
    finish(begin_attempt(first[0].job_id, first[0].lease))
    assert len(claims(mine, 2)) == 1


def test_clusters_that_claim_at_the_same_time_get_different_jobs_and_none_more_than_its_workers(tenant: Any) -> None:
    queue(tenant, 20)
    claimed: list[list[uuid.UUID]] = []

    def claim() -> None:
        cluster, mine = new_id(), []
        for _ in range(4):
            mine += [claim.job_id for claim in claims(cluster, 2)]
        claimed.append(mine)

    assert in_threads(*([claim] * 4)) == [None] * 4
    everything = [job for mine in claimed for job in mine]
    assert max(len(mine) for mine in claimed) <= 2
    assert len(everything) == len(set(everything)) == 8
    slots = Job.objects.filter(lease_slot__isnull=False).values_list("lease_slot", flat=True)
    assert sorted(slots) == list(range(8))


def test_clusters_that_take_slots_of_each_other_do_not_wait_for_each_other(
    tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a slot and, when both have, the slot of the other: if each waited for the other, the database would refuse one."""
    queue(tenant, 4)
    both_have_one = threading.Barrier(2)
    taken = threading.local()

    def lease() -> uuid.UUID:
        taken.count = getattr(taken, "count", 0) + 1
        if taken.count == 2:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_have_one.wait(timeout=1)
        return new_id()

    def claim(slots: list[int]) -> int:
        taken.slots = iter(slots)
        return len(claims(None, 2))

    monkeypatch.setattr(claims_module, "new_id", lease)
    monkeypatch.setattr(claims_module.random, "choice", lambda free: next(taken.slots, free[0]))
    assert in_threads(lambda: claim([0, 1]), lambda: claim([1, 0])) == [2, 2]


def test_a_claim_that_never_begins_is_given_back_unchanged(tenant: Any) -> None:
    [job] = queue(tenant)
    before = columns(job)
    [claim] = claims(new_id(), 1)
    with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
        assert release_expired() == 1
    assert columns(job) == before
    assert runner.perform(claim.job_id, claim.lease) == "lost"
    assert columns(job) == before


def test_a_retried_job_that_is_claimed_and_never_begins_keeps_its_attempts(tenant: Any) -> None:
    [job] = queue(tenant)
    [claim] = claims(None, 1)
    begin_attempt(claim.job_id, claim.lease)
    with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
        release_expired()
    later = clock.now() + dt.timedelta(minutes=10)
    with time_machine.travel(later, tick=False):
        before = columns(job)
        assert (before["status"], before["attempts"]) == ("retrying", 1)
        assert len(claims(new_id(), 1)) == 1
    with time_machine.travel(later + dt.timedelta(seconds=31), tick=False):
        assert release_expired() == 1
    assert columns(job) == before


def test_a_delivery_that_comes_twice_begins_once(tenant: Any) -> None:
    [job] = queue(tenant)
    [claim] = claims(new_id(), 1)
    begin_attempt(claim.job_id, claim.lease)
    with pytest.raises(LeaseLost):
        begin_attempt(claim.job_id, claim.lease)
    assert columns(job)["attempts"] == 1


@pytest.mark.parametrize("retried", [False, True])
def test_of_deliveries_at_the_same_moment_one_begins(tenant: Any, retried: bool) -> None:
    [job] = queue(tenant)
    [claim] = claims(new_id(), 1)
    later = clock.now()
    if retried:
        begin_attempt(claim.job_id, claim.lease)
        later += dt.timedelta(minutes=10)
        with time_machine.travel(clock.now() + dt.timedelta(seconds=31), tick=False):
            release_expired()
    with time_machine.travel(later):
        if retried:
            [claim] = claims(new_id(), 1)
        found = in_threads(*[lambda: begin_attempt(claim.job_id, claim.lease)] * 4)
    assert sorted(type(each).__name__ for each in found) == ["JobRun", "LeaseLost", "LeaseLost", "LeaseLost"]
    attempts = 2 if retried else 1
    assert columns(job)["attempts"] == attempts
    assert JobAttempt.objects.filter(job=job, number=attempts).count() == 1


def test_of_two_ends_of_an_attempt_at_the_same_moment_one_counts(tenant: Any) -> None:
    """An attempt that ends while its lease passes on ends the job, or finds that the job is another's."""
    [job] = queue(tenant)
    [claim] = claims(new_id(), 1)
    run = begin_attempt(claim.job_id, claim.lease)
    found = in_threads(*[lambda: complete_in_transaction(run)] * 4)
    assert sorted(type(each).__name__ for each in found) == ["LeaseLost", "LeaseLost", "LeaseLost", "NoneType"]
    moves = JobAttempt.objects.filter(job=job).order_by("pk").values_list("from_status", "to_status")
    assert list(moves) == [("queued", "running"), ("running", "completed")]


def test_the_next_job_of_each_organization_is_found_however_many_organizations_there_are(
    tenant: Any, transactional_db: None
) -> None:
    """A claim looks into the index of waiting jobs once for each organization that has some, and reads no other table."""
    Organization.objects.bulk_create(Organization(name=f"Idle {n}", slug=f"idle-{n}") for n in range(500))
    [mine, *_] = queue(tenant, 3)
    theirs = enqueue(
        type=TYPE,
        organization_id=tenant.other_organization.pk,
        environment_id=tenant.other_environment.pk,
        subject_id=new_id(),
        run_at=clock.now() + dt.timedelta(hours=1),
    )
    place = {"type": TYPE, "organization": tenant.organization, "run_at": clock.now() + dt.timedelta(days=1)}
    Job.objects.bulk_create(Job(**place, subject_id=new_id()) for _ in range(2000))
    Job.objects.create(
        type="nobody handles it", organization=tenant.organization, subject_id=new_id(), run_at=mine.run_at
    )
    assert first_due() == {
        tenant.organization.pk: columns(mine)["run_at"],
        tenant.other_organization.pk: columns(theirs)["run_at"],
    }
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(connection) as captured:
        assert len(claims(new_id(), 2)) == 2
    asked = [query["sql"] for query in captured]
    assert not any("tenancy_organization" in sql for sql in asked)
    look = next(sql for sql in asked if "WITH RECURSIVE" in sql)
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # so few rows are read whole; of many, by an index
        cursor.execute(("EXPLAIN " if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN ") + look)
        plan = str(cursor.fetchall())
    assert plan.count("job_unfinished") >= 2, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN jobs_job'" not in plan, plan


def test_a_dead_worker_costs_its_own_attempt_and_no_other(tenant: Any) -> None:
    """Claims that have not begun go back to the queue; a living worker's attempt keeps its lease."""
    cluster = new_id()
    queue(tenant, 3)
    dead, living, waiting = claims(cluster, 3)
    for claim, pid in ((dead, 111), (living, 222)):
        begin_attempt(claim.job_id, claim.lease)
        Job.objects.filter(pk=claim.job_id).update(lease_pid=pid)
    assert give_up_leases(cluster=cluster, pid=111) == 2
    assert release_expired() == 1
    found = {job.pk: job for job in Job.objects.all()}
    assert (found[dead.job_id].status, found[dead.job_id].error_class) == ("retrying", "LeaseExpired")
    assert (found[living.job_id].status, found[living.job_id].lease_token) == ("running", living.lease)
    untouched = found[waiting.job_id]
    assert (untouched.status, untouched.attempts, untouched.lease_token) == ("queued", 0, None)


def test_the_broker_hands_out_a_task_for_each_free_worker(tenant: Any, cluster: uuid.UUID) -> None:
    jobs = queue(tenant, 3)
    delivered = tasks(JobTableBroker().dequeue())
    assert [task["func"] for task in delivered] == ["apps.jobs.runner.perform"] * 2
    assert {task["timeout"] for task in delivered} == {7}
    assert [task["args"][0] for task in delivered] == [job.pk for job in jobs[:2]]
    assert Job.objects.filter(lease_cluster=cluster, status="queued", attempts=0).count() == 2
    assert [runner.perform(*task["args"]) for task in delivered] == ["completed"] * 2
    assert WorkerBeat.objects.filter(pk=cluster).exists(), "a delivered job is a heartbeat"


def test_an_idle_broker_waits_at_most_half_a_second_and_sends_a_heartbeat_through_the_queue(
    tenant: Any, cluster: uuid.UUID
) -> None:
    broker = JobTableBroker()
    [beat] = tasks(broker.dequeue())
    assert beat["func"] == "apps.jobs.process_health.beat"
    assert broker_module.LONGEST_WAIT <= 0.5
    began = time.monotonic()
    assert broker.dequeue() == []
    assert time.monotonic() - began < 20


def delivered_after(broker: JobTableBroker, act: Callable[[], object]) -> list[Any]:
    """The tasks of a broker that waits for a long time while `act` commits."""

    def later() -> None:
        time.sleep(0.5)
        act()
        connection.close()

    thread = threading.Thread(target=later)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not (delivered := broker.dequeue()):
            assert time.monotonic() < deadline, "the broker slept through the commit"
    finally:
        thread.join()
    return tasks(delivered)


def test_a_job_that_is_queued_ends_the_wait(tenant: Any, cluster: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "LONGEST_WAIT", 60.0)
    broker = JobTableBroker()
    broker.dequeue()
    assert delivered_after(broker, lambda: queue(tenant))[0]["func"] == "apps.jobs.runner.perform"


def test_a_finished_job_ends_the_wait_for_a_free_worker(
    tenant: Any, cluster: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(tenant, 3)
    broker = JobTableBroker()
    first, _second = (task["args"] for task in tasks(broker.dequeue()))
    run = begin_attempt(*first)
    monkeypatch.setattr(broker_module, "LONGEST_WAIT", 60.0)
    assert len(delivered_after(broker, lambda: finish(run))) == 1


@pytest.mark.parametrize("error", [DatabaseError("away"), RuntimeError("a bug"), KeyError("x")])
def test_the_broker_never_raises_and_goes_on_when_the_trouble_is_over(
    tenant: Any, cluster: uuid.UUID, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    queue(tenant)
    broker = JobTableBroker()

    def broken(**_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(broker_module, "claim_jobs", broken)
        assert broker.dequeue() == []
    assert len(broker.dequeue()) == 1


def test_a_worker_that_is_away_from_the_database_leaves_the_claim_to_run_out(
    tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = queue(tenant)
    [claim] = claims(new_id(), 1)

    def away(*_: Any) -> JobRun:
        raise DatabaseError("away")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "begin_attempt", away)
        assert runner.perform(claim.job_id, claim.lease) == "lost"
    assert (columns(job)["status"], columns(job)["attempts"]) == ("queued", 0)


def test_a_long_queue_is_not_read_to_find_the_next_job(tenant: Any) -> None:
    """The claim looks into the index of waiting jobs, on either database."""
    [job] = queue(tenant)
    due = job.run_at
    Job.objects.bulk_create(
        Job(type=TYPE, organization=tenant.organization, subject_id=new_id(), run_at=due + dt.timedelta(days=1))
        for _ in range(2000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    from apps.jobs.services.claims import waiting_jobs

    jobs = waiting_jobs().filter(organization_id=tenant.organization.pk, run_at__lte=due).order_by("run_at", "id")
    plan = jobs[:1].explain()
    assert "job_unfinished" in plan
    assert "SCAN jobs_job" not in plan
    assert "Seq Scan" not in plan
