"""From the approving request to `active` with one agent, against the bare sum of the steps on that road measured alone.

The road: `manage.py run_web` and `manage.py run_worker` as shipped, on a PostgreSQL database of their own; a deployment that waits for its
second person; the clock starts when the approval is sent and stops when the agent's `activated` is answered and the deployment is
active. The agent is played here over HTTP: it waits in its poll, checks the directive and the bundle with the reference agent's
own code, and reports `fetched`, `verified`, `activated`; it starts no pipeline.

The baseline: the same steps one after the other by one caller, while no worker runs, in the same run: the approval, what the job
does without the engine around it, the directive asked for without waiting, the bundle, the checks, the three reports. So what the
road costs more is the engine, the two wake-ups (the worker's and the agent's) and what shares the processors. The first
round of each block, which finds everything cold, is not counted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.control_plane import control_plane, log_in_a_file
from bench.measure import report
from tests.flows.world import SPEC, config, free_port, until

BLOCKS, ROUNDS = 4, 6
ROOT = Path(__file__).resolve().parents[1]


class Line:
    """One connection to the web server, kept open, with one credential."""

    def __init__(self, port: int, token: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.token = token

    def call(self, method: str, path: str, body: object = None, expect: int = 200) -> bytes:
        """The body of the answer; SystemExit when it is not what was expected."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != expect:
            raise SystemExit(f"{method} {path}: {answer.status} {content[:500]!r}")
        return content

    def json(self, method: str, path: str, body: object = None, expect: int = 200) -> Any:
        return json.loads(self.call(method, path, body, expect))


class Host:
    """The agent, played."""

    def __init__(self, line: Line, environment_id: str, enrolled: dict[str, Any]) -> None:
        from apps.runtime import trust

        self.line, self.environment_id, self.id = line, environment_id, str(enrolled["agent_id"])
        self.keys = trust.accept_keyset(None, enrolled["signing_keys"]["envelopes"])
        self.last_seq, self.last_digest = 0, None
        self.running: dict[str, Any] | None = None

    def heartbeat(self) -> None:
        """As between two deployments: nothing of it is measured."""
        body = {"status": "running", "version": "1.0", "key_set_version": self.keys.version, "running": self.running}
        self._note(self.line.json("POST", f"/api/v1/agents/{self.id}/heartbeat", body))

    def _note(self, answer: dict[str, Any]) -> Any:
        from apps.core import clock
        from apps.runtime import trust

        found = trust.verify_directive(
            answer["desired"]["envelope"],
            self.keys,
            environment_id=self.environment_id,
            agent_id=self.id,
            now_ms=clock.now_ms(),
            last_seq=self.last_seq,
            last_content_digest=self.last_digest,
        )
        self.last_seq, self.last_digest = found.directive_seq, found.content_digest()
        return found

    def follow(self, wait: int, mark: Callable[[str], None]) -> None:
        """Ask for the directive, at most `wait` seconds, and carry it out; `mark` is called after each step."""
        from apps.runtime.bundle import read_bundle, verify_bundle

        asked = f"/api/v1/agents/{self.id}/deployment?wait={wait}&after={self.last_seq}"
        answer = self.line.json("GET", asked)
        mark("directive")
        directive = self._note(answer)
        data = self.line.call("GET", answer["url"])
        mark("bundle, with the check of the directive")
        checked = verify_bundle(
            read_bundle(data),
            keys=self.keys,
            expected_sha256=directive.bundle_sha256,
            environment_id=self.environment_id,
            deployment_id=directive.deployment_id,
            sequence=directive.sequence,
        )
        mark("check of the bundle")
        where = f"/api/v1/agents/{self.id}/deployments/{directive.for_deployment_id}/status"
        details = {"bundle_sha256": checked.sha256, "sequence": checked.sequence}
        for status in ("fetched", "verified", "activated"):
            self.line.call("POST", where, {"status": status, **details})
        mark("three reports")
        self.running = {"deployment_id": checked.deployment_id, **details}


class Clock:
    """When each step was done: epoch seconds, which the job's row has too."""

    def __init__(self) -> None:
        self.began = time.time()
        self.done: dict[str, float] = {}

    def mark(self, step: str) -> None:
        self.done[step] = time.time()

    def spans(self) -> dict[str, float]:
        """Seconds from each step's end back to the one before it."""
        last, found = self.began, {}
        for step, at in self.done.items():
            found[step], last = at - last, at
        return found


def _command(*command: str, log: Path) -> subprocess.Popen[bytes]:
    from apps.core.processes import die_with_parent

    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            preexec_fn=die_with_parent,
        )


@contextlib.contextmanager
def _running(*command: str, log: Path, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process of the product, wait until its `ready` URL answers, and end it at the end of the block."""
    process = _command(*command, log=log)

    def well() -> bool:
        if process.poll() is not None:
            raise SystemExit(log.read_text()[-2000:])
        try:
            with urllib.request.urlopen(ready, timeout=2):  # noqa: S310  (our own)
                return True
        except OSError:
            return False

    try:
        until(well, 60)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Road:
    """One environment with one agent, where one person asks and another approves."""

    def __init__(self, port: int) -> None:
        from apps.access import services as access
        from apps.access.principals import person_principal
        from apps.jobs.runner import drain
        from tests.support import make_tenant

        tenant = make_tenant()

        def line(name: str) -> Line:
            token = access.create_token(actor=person_principal(tenant.people[name]), name="bench").text.reveal()
            return Line(port, token)

        self.alice, self.bob = line("alice"), line("bob")
        self.where = f"/api/v1{tenant.path(tenant.staging)}"
        draft = self.alice.json("POST", f"{self.where}/drafts", {"name": "orders", "spec": SPEC}, 201)
        drain()
        self.version = self.alice.json("POST", f"{self.where}/drafts/{draft['id']}/promote", {}, 201)["id"]
        token = self.alice.json("POST", f"{self.where}/enrollment-tokens", {}, 201)["token"]
        enrolled = Line(port, token).json("POST", f"{self.where}/agents", {"name": "host", "hostname": "host"}, 201)
        self.host = Host(Line(port, enrolled["api_key"]), str(tenant.staging.pk), enrolled)
        self.environment_id = tenant.staging.pk
        self.number = 0

    def ask(self) -> tuple[str, str, dict[str, str]]:
        """A deployment that waits for its second person: (its id, the path of the approval, what is sent there)."""
        self.host.heartbeat()
        self.number += 1
        given = {"version_id": self.version, "config": config(f"email:mask={self.number % 9 + 1}:4:*")}
        bundle = self.alice.json("POST", f"{self.where}/bundles", given, 201)
        wanted = {"bundle_id": bundle["id"], "targets": {"all": True}, "reason": "measured"}
        made = self.alice.json("POST", f"{self.where}/deployments", wanted, 201)
        approval = self.bob.json("GET", f"{self.where}/approvals/{made['approval_id']}")
        return (
            made["id"],
            f"{self.where}/approvals/{approval['id']}/approve",
            {"shown_digest": approval["shown_digest"]},
        )

    def must_be_active(self, deployment_id: str) -> None:
        found = self.alice.json("GET", f"{self.where}/deployments/{deployment_id}")["status"]
        if found != "active":
            raise SystemExit(f"it is {found}")

    def bare(self) -> dict[str, float]:
        """Each step alone, no worker running: its seconds."""
        from django.db import connection

        from apps.deployments.services.builds import NothingToDo, finish_build, make_archive, start_build

        deployment_id, path, digest = self.ask()
        watch = Clock()
        self.bob.call("POST", path, digest)
        watch.mark("approval")
        work = start_build(deployment_id=uuid.UUID(deployment_id), environment_id=self.environment_id)
        if isinstance(work, NothingToDo):
            raise SystemExit(work.note)
        finish_build(work, make_archive(work), complete=lambda: None)
        watch.mark("build")
        self.host.follow(0, watch.mark)
        self.must_be_active(deployment_id)
        with connection.cursor() as cursor:  # its job is done; a worker that starts must not find it
            cursor.execute("DELETE FROM jobs_job WHERE subject_id = %s", [deployment_id])
        return watch.spans()

    def whole(self) -> tuple[float, dict[str, float]]:
        """The road as it is walked: (seconds, seconds of each step in the order in which they end)."""
        from apps.jobs.models import Job

        deployment_id, path, digest = self.ask()
        watch, failed = Clock(), []

        def follow() -> None:
            try:
                self.host.follow(30, watch.mark)
            except BaseException as error:
                failed.append(error)

        agent = threading.Thread(target=follow)
        agent.start()
        time.sleep(0.1)  # it waits in its poll
        watch.began = time.time()
        self.bob.call("POST", path, digest)
        approved = time.time()
        agent.join()
        if failed:
            raise failed[0]
        self.must_be_active(deployment_id)
        job = Job.objects.get(subject_id=deployment_id)
        if job.started_at is None or job.finished_at is None:
            raise SystemExit("the build has no times")
        watch.done = {
            "job claimed": job.started_at.timestamp(),
            "build": job.finished_at.timestamp(),
            **watch.done,
        }
        total = watch.done["three reports"] - watch.began
        return total, {"approval, answered": approved - watch.began, **watch.spans()}


def _show(title: str, rounds: list[dict[str, float]]) -> None:
    """The median of each step."""
    by_step: defaultdict[str, list[float]] = defaultdict(list)
    for each in rounds:
        for step, seconds in each.items():
            by_step[step].append(seconds)
    print(f"  {title}", flush=True)
    for step, seconds_each in by_step.items():
        print(f"    {step:48} {statistics.median(seconds_each) * 1000:7.1f} ms", flush=True)


def _measure() -> None:
    port, worker_port = free_port(), free_port()
    os.environ |= {
        "BYTEOR_CLOUD_API_BIND_ADDR": f"127.0.0.1:{port}",
        "BYTEOR_CLOUD_WORKER_BIND_ADDR": f"127.0.0.1:{worker_port}",
    }
    logs = Path(os.environ["BYTEOR_CLOUD_DATA_DIR"])
    pairs: list[tuple[float, float]] = []
    alone: list[dict[str, float]] = []
    walked: list[dict[str, float]] = []
    ready = f"http://127.0.0.1:{port}/healthz"
    with _running("manage.py", "run_web", log=logs / "web.log", ready=ready):
        road = Road(port)
        for _ in range(BLOCKS):
            baseline = [road.bare() for _ in range(ROUNDS + 1)][1:]
            ready = f"http://127.0.0.1:{worker_port}/readyz"
            with _running("manage.py", "run_worker", log=logs / "worker.log", ready=ready):
                whole = [road.whole() for _ in range(ROUNDS + 1)][1:]
            pairs += [(mine[0], sum(theirs.values())) for mine, theirs in zip(whole, baseline, strict=True)]
            alone += baseline
            walked += [steps for _, steps in whole]
    report("approving request to active / the bare sum of its steps", pairs)
    _show("the road, each step from the end of the one before it (the approval's answer: from the start)", walked)
    _show("each step alone", alone)


def main() -> None:
    """Measure and print."""
    with control_plane(), log_in_a_file():
        _measure()


if __name__ == "__main__":
    main()
