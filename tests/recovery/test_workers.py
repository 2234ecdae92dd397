"""The worker's processes killed, poisoned jobs, stale workers, stuck chores, a tenant with a long queue: real processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from pathlib import Path

import pytest

from tests.flows.world import SPEC, Api, until
from tests.flows.world import running as up
from tests.recovery.plant import Plant, children_of

pytestmark = [pytest.mark.alone, pytest.mark.faults, pytest.mark.timeout(480)]


@pytest.mark.parametrize(
    ("running", "role"),
    [
        ("sqlite", "worker"), ("sqlite", "monitor"), ("sqlite", "chores"),
        ("postgres", "worker"), ("postgres", "pusher"), ("postgres", "sentinel"),
    ],
    indirect=["running"],
)  # fmt: skip
def test_an_idle_process_that_is_killed_is_replaced_and_what_is_queued_meanwhile_is_done_once(
    running: Plant, role: str
) -> None:
    before = running.whole()
    for pid in before[role]:
        os.kill(pid, signal.SIGKILL)
    running.all_once(running.hand("queue", organization="Acme", count=3))
    until(lambda: not set(before[role]) & set(running.whole()[role]), 30)
    until(running.well, 30)


@pytest.mark.parametrize(
    ("running", "role"),
    [("sqlite", "pusher"), ("sqlite", "sentinel"), ("postgres", "worker"), ("postgres", "monitor")],
    indirect=["running"],
)
def test_a_process_that_is_killed_under_load_loses_no_job_and_repeats_no_effect(running: Plant, role: str) -> None:
    before = running.whole()
    subjects = running.hand("queue", organization="Acme", count=150)
    until(lambda: set(subjects) & set(running.hand("effects")))
    os.kill(before[role][0], signal.SIGKILL)
    running.all_once(subjects, 90)
    until(lambda: before[role][0] not in running.whole()[role], 30)
    until(running.well, 30)


def test_a_tenants_schedule_that_is_due_becomes_a_job_once(running: Plant) -> None:
    made = running.hand("make_schedule_due")
    running.all_once([made["subject"]], 90)
    assert not running.hand("schedule_is_due", schedule=made["schedule"])
    assert running.hand("job", subject=made["subject"])["attempts"] == 1


def _age(pid: int) -> float:
    """Seconds since the process began."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def test_web_and_watchdog_that_are_killed_are_started_again_by_up(tmp_path: Path) -> None:
    with up(tmp_path) as world:
        made = world.manage("bootstrap", "--org", "Acme", "--admin", "a@example.com")
        api = Api(world.api, made["token"])
        project = api.post(f"/orgs/{made['org_id']}/projects", {"name": "P"})
        base = f"/orgs/{made['org_id']}/projects/{project['id']}/environments"
        environment = f"{base}/{api.post(base, {'name': 'Dev', 'posture': 'dev'})['id']}"
        draft = api.post(f"{environment}/drafts", {"name": "d", "spec": SPEC})
        until(lambda: api.get(f"{environment}/drafts/{draft['id']}")["status"] == "valid", 40)
        before = children_of(world.pid)
        assert len(before) == 2
        until(lambda: all(_age(pid) > 4 for pid in before))
        for pid in before:
            os.kill(pid, signal.SIGKILL)

        def queued() -> dict[str, str] | None:
            try:
                made: dict[str, str] = api.post(f"{environment}/drafts", {"name": "e", "spec": SPEC})
            except (OSError, http.client.HTTPException):
                return None
            return made

        second = until(queued, 60)

        def valid() -> bool:
            # the worker of the killed server may have taken the draft, and end while it is asked
            with contextlib.suppress(OSError, http.client.HTTPException):
                return bool(api.get(f"{environment}/drafts/{second['id']}")["status"] == "valid")
            return False

        until(valid, 60)
        assert not set(before) & set(children_of(world.pid))


@pytest.mark.parametrize("running", ["sqlite"], indirect=True)
def test_all_processes_of_the_cluster_killed_at_once_are_replaced(running: Plant) -> None:
    before = running.whole()
    os.killpg(before["sentinel"][0], signal.SIGKILL)
    running.all_once(running.hand("queue", organization="Acme", count=3))
    assert running.logged("worker cluster ended by itself")


@pytest.mark.parametrize(
    ("running", "do", "error"),
    [
        ("sqlite", "kill", "LeaseExpired"),
        ("postgres", "kill", "LeaseExpired"),
        ("postgres", "os._exit", "LeaseExpired"),
        ("sqlite", "sys.exit", "SystemExit"),
        ("postgres", "endless", "Timeout"),
        ("sqlite", "deaf", "LeaseExpired"),
    ],
    indirect=["running"],
)
def test_a_job_that_poisons_its_worker_dies_after_its_attempts_and_others_go_on(
    running: Plant, do: str, error: str
) -> None:
    [poison] = running.hand("queue", organization="Acme", do=do)
    running.all_once(running.hand("queue", organization="Acme", count=4))
    until(lambda: running.hand("job", subject=poison)["status"] == "dead_letter", 60)
    job = running.hand("job", subject=poison)
    assert (job["attempts"], job["error_class"]) == (2, error)
    assert job["moves"] == [
        ["queued", "running"], ["running", "failed"], ["failed", "retrying"],
        ["retrying", "retrying"], ["retrying", "dead_letter"],
    ]  # fmt: skip
    assert poison not in running.hand("effects")


def test_a_worker_that_stood_still_past_its_lease_has_no_effect_when_it_goes_on(running: Plant, tmp_path: Path) -> None:
    """It is stopped in its handler; another does the job; then it goes on and finds that its lease has ended."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    [subject] = running.hand("queue", organization="Acme", do="wait", begun=str(begun), go=str(go))
    until(lambda: begun.exists() and begun.read_text())
    stale = int(begun.read_text())
    os.kill(stale, signal.SIGSTOP)
    try:
        until(lambda: running.hand("job", subject=subject)["attempts"] == 2, 30)
        go.touch()
        running.all_once([subject])
    finally:
        os.kill(stale, signal.SIGCONT)
    running.all_once([subject, *running.hand("queue", organization="Acme", count=4)])
    assert running.hand("job", subject=subject)["attempts"] == 2


def test_a_thousand_jobs_of_one_tenant_do_not_starve_another(running: Plant) -> None:
    before = running.hand("ended_before")
    subject = running.hand("both", first="Acme", count=1000, second="Elsewhere")
    try:
        until(lambda: running.hand("job", subject=subject)["status"] == "completed", 60)
        ended = running.hand("ended_before", subject=subject) - before
        assert ended < 200, "the other tenant's only job was not among the first to run"
    finally:
        running.hand("put_off")


@pytest.mark.parametrize("running", ["postgres"], indirect=True)
def test_a_stuck_chore_is_noticed_ended_and_run_again_and_stops_nothing_else(running: Plant) -> None:
    switch = Path(running.environment["BYTEOR_TEST_STUCK"])
    until(lambda: running.hand("chore", name="stuck").get("result") == 1)
    before = running.whole()
    switch.touch()
    try:
        until(lambda: running.logged('"chore": "stuck", "event": "a chore is stuck; its process ends"'), 30)
        running.all_once(running.hand("queue", organization="Acme", count=3))
    finally:
        switch.unlink()
    after = running.whole()
    assert after["sentinel"] == before["sentinel"]
    until(lambda: running.hand("chore", name="stuck") == {"error": "", "result": 1}, 40)
