"""The job engine against a bare SKIP LOCKED + NOTIFY loop and against procrastinate, in one run.

Every contender has two worker processes, a database of its own on one server, and the same effect (a record in a file). Ours is
the product as shipped: `manage.py run_worker`, jobs queued by `enqueue` in a transaction, claimed, counted, completed, each
transition recorded. Rate: four hundred jobs are queued in one transaction; from its commit to the last effect. Idle latency: one job at a
time, from the return of its commit to its effect. All workers are up all the time and the rounds alternate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.jobs_effect import FILE_ENV, Effects
from bench.measure import report

ROUNDS, JOBS, SINGLES, WARM = 5, 400, 30, 50
RATE_WANTED, LATENCY_WANTED = "<= 1 (procrastinate's rate)", "<= 4"
ROOT = Path(__file__).resolve().parents[1]

Put = Callable[[Sequence[uuid.UUID]], None]


@dataclass
class Contender:
    """One queue with its workers running: how to put jobs in, and where their effects are seen."""

    name: str
    put: Put
    effects: Effects
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def burst(self, jobs: int = JOBS) -> None:
        """Queue `jobs` at once and wait for them; keeps the seconds that one took."""
        before = self.effects.count()
        self.put([uuid.uuid4() for _ in range(jobs)])
        start = time.monotonic_ns()
        self.effects.wait(before + jobs)
        done = self.effects.since(before)
        if len(done) != jobs:
            raise SystemExit(f"{self.name}: {jobs} jobs, {len(done)} effects")
        self.rates.append((max(done.values()) - start) / 1e9 / jobs)

    def single(self) -> None:
        """Queue one while idle; keeps the seconds until its effect."""
        time.sleep(random.uniform(0.02, 0.06))  # noqa: S311 - no rhythm that a poll could fall in with
        before, key = self.effects.count(), uuid.uuid4()
        self.put([key])
        start = time.monotonic_ns()
        self.effects.wait(before + 1)
        self.latencies.append((self.effects.since(before)[key] - start) / 1e9)

    def round(self) -> None:
        """One round of both; the median of its latencies is one figure."""
        self.burst()
        singles, self.latencies = self.latencies, []
        for _ in range(SINGLES):
            self.single()
        self.latencies = [*singles, statistics.median(self.latencies)]

    def warm(self) -> None:
        """Let every process have worked once, and forget that."""
        self.burst(WARM)
        time.sleep(0.5)
        self.rates.clear()


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _database(server: str, name: str) -> Iterator[str]:
    made = f"byteor_bench_{name}_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {made}")
    try:
        yield f"{server.rsplit('/', 1)[0]}/{made}"
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {made} WITH (FORCE)")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _clean_environment(home: Path, effects: Effects) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_"))}
    return {
        **kept,
        FILE_ENV: str(effects.path),
        "BYTEOR_CLOUD_DATA_DIR": str(home / "data"),
        "BYTEOR_CLOUD_WORKER_BIND_ADDR": f"127.0.0.1:{_free_port()}",
        "DJANGO_SETTINGS_MODULE": "bench.jobs_settings",
    }


@contextlib.contextmanager
def ours(home: Path, database_url: str | None) -> Iterator[Contender]:
    """The product on a database of its own: PostgreSQL by URL, else a file. This process becomes its producer."""
    home.mkdir(parents=True, exist_ok=True)
    effects = Effects(home / "effects")
    environment = _clean_environment(home, effects)
    if database_url:
        environment["BYTEOR_CLOUD_DATABASE_URL"] = database_url
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v", "0"], cwd=ROOT, env=environment, check=True)
    os.environ.update({k: v for k, v in environment.items() if k.startswith(("BYTEOR_CLOUD_", "DJANGO_"))})
    import django

    django.setup()
    from django.db import connection, transaction

    from apps.core.actors import SYSTEM_ACTOR
    from apps.jobs.models import Job
    from apps.jobs.services import enqueue
    from apps.tenancy.services import create_organization
    from bench.jobs_handler import TYPE

    organization = create_organization(actor=SYSTEM_ACTOR, name="Bench")

    def put(keys: Sequence[uuid.UUID]) -> None:
        with transaction.atomic():
            for key in keys:
                enqueue(type=TYPE, organization_id=organization.pk, environment_id=None, subject_id=key)

    with _process([*manage, "run_worker"], environment, home / "log"):
        yield Contender("ours", put, effects)
        time.sleep(0.5)
        left = Job.objects.exclude(status="completed", attempts=1).count()
        if left:
            raise SystemExit(f"ours: {left} jobs did not complete at their first attempt")
        connection.close()


@contextlib.contextmanager
def rival(name: str, home: Path, url: str, put: Put, workers: int) -> Iterator[Contender]:
    """Another one, with as many worker processes."""
    home.mkdir(parents=True, exist_ok=True)
    effects = Effects(home / "effects")
    command = [sys.executable, "-m", "bench.jobs_rivals", name, url]
    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(_process(command, _clean_environment(home, effects), home / "log"))
        yield Contender(name, put, effects)


def _compare(mine: Contender, others: list[Contender]) -> None:
    for contender in [mine, *others]:
        contender.warm()
    for _ in range(ROUNDS):
        for contender in [mine, *others]:
            contender.round()
    for contender in [mine, *others]:
        rate, wait = 1 / statistics.median(contender.rates), statistics.median(contender.latencies)
        print(f"  {contender.name:16} {rate:8.0f} jobs/s   idle latency p50 {wait * 1000:6.2f} ms", flush=True)
    for other in others:
        known = other.name == "procrastinate"
        report(
            f"seconds a job, ours / {other.name}",
            list(zip(mine.rates, other.rates, strict=True)),
            wanted=RATE_WANTED if known else "",
        )
        report(
            f"idle latency, ours / {other.name}",
            list(zip(mine.latencies, other.latencies, strict=True)),
            wanted=LATENCY_WANTED if known else "",
        )


def on_postgres(home: Path, server: str, workers: int) -> None:
    """Ours, the bare loop and procrastinate, each on a database of its own."""
    logging.disable(logging.INFO)  # procrastinate's line a job, which only the producer's screen would show
    from bench.jobs_rivals import BARE_SCHEMA, bare_put, procrastinate_app

    with contextlib.ExitStack() as stack:
        urls = {n: stack.enter_context(_database(server, n)) for n in ("ours", "bare", "procrastinate")}
        with psycopg.connect(urls["bare"]) as raw:
            for statement in BARE_SCHEMA:
                raw.execute(statement)
        mine = stack.enter_context(ours(home / "ours", urls["ours"]))
        app = procrastinate_app(urls["procrastinate"])
        producer = stack.enter_context(app.open())
        producer.schema_manager.apply_schema()
        noop = app.tasks["noop"]

        def put(keys: Sequence[uuid.UUID]) -> None:
            noop.batch_defer(*({"key": str(key)} for key in keys))

        bare = rival("bare", home / "bare", urls["bare"], lambda keys: bare_put(urls["bare"], keys), workers)
        theirs = rival("procrastinate", home / "procrastinate", urls["procrastinate"], put, workers)
        _compare(mine, [stack.enter_context(bare), stack.enter_context(theirs)])


def on_sqlite(home: Path, workers: int) -> None:
    """Ours and the bare loop, each on a file of its own."""
    from bench.jobs_rivals import SQLITE_SCHEMA, sqlite_connection

    path = str(home / "bare.sqlite3")
    raw = sqlite_connection(path)
    for statement in SQLITE_SCHEMA:
        raw.execute(statement)

    def put(keys: Sequence[uuid.UUID]) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany("INSERT INTO bare_jobs (key) VALUES (?)", [(str(key),) for key in keys])
        raw.execute("COMMIT")

    with (
        ours(home / "ours", None) as mine,
        rival("bare_sqlite", home / "bare", path, put, workers) as bare,
    ):
        _compare(mine, [bare])


def main() -> None:
    """Each database in a process of its own: the settings are read once in a process."""
    if len(sys.argv) == 1 or sys.argv[-1] not in ("postgres", "sqlite"):
        for name in ("postgres", "sqlite"):
            subprocess.run([sys.executable, "-m", "bench.jobs", name], cwd=ROOT, check=True)
        return
    from byteor.config import JOB_WORKERS as WORKERS
    from tests.services import Missing, postgres

    print(f"-- {sys.argv[-1]}, {WORKERS} worker processes each --", flush=True)
    with tempfile.TemporaryDirectory(prefix="byteor-bench-") as folder:
        if sys.argv[-1] == "sqlite":
            on_sqlite(Path(folder), WORKERS)
            return
        try:
            with postgres(durable=True) as server:
                on_postgres(Path(folder), server, WORKERS)
        except Missing as missing:
            print(f"SKIPPED {missing}", flush=True)


if __name__ == "__main__":
    main()
