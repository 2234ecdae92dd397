"""The real agent, packed as it is served, against a control plane that lies in every way it can."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.bundle.test_bundle import newer_bundle
from tests.runtime.making import now_ms

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]


def still_runs_the_first(host: Host) -> None:
    assert host.feed() == {"n": host.fed, "name": "ann"}
    state = json.loads((host.home / "state" / "active.json").read_text())
    assert state["sequence"] == 1000


def test_it_fetches_verifies_activates_and_redacts(host: Host):
    maker, plane = host.plane.maker, host.plane
    first = maker.bundle("secret:drop", sequence=1000)
    plane.offer(maker.directive(first, 10), first.archive)
    host.reported("activated")
    assert [r["status"] for r in plane.reports] == ["fetched", "verified", "activated"]
    assert host.feed() == {"n": 1, "name": "ann"}
    second = maker.bundle("name:replace_with=X", sequence=1001)
    plane.offer(maker.directive(second, 11), second.archive)
    until(lambda: (b := plane.beats and plane.beats[-1]) and b["running"] and b["running"]["sequence"] == 1001)
    assert host.feed() == {"n": 2, "secret": "s", "name": "X"}
    plane.offer(maker.directive(first, 12, word="rollback"))
    host.reported("rolled_back")
    assert host.feed() == {"n": 3, "name": "ann"}
    plane.offer(maker.directive(None, 13, word="stop"))
    host.reported("stopped")
    assert (host.home / "state" / "agent.json").stat().st_mode & 0o777 == 0o600


def test_a_host_that_is_older_than_an_op_or_an_action_reports_it_and_keeps_what_runs(
    running: Host, monkeypatch: pytest.MonkeyPatch
):
    maker, plane = running.plane.maker, running.plane
    bundle = newer_bundle(maker, monkeypatch, sequence=1001)
    plane.offer(maker.directive(bundle, 11), bundle.archive)
    report = running.reported("failed", "spec_not_understood")
    assert "unknown_op: There is no op 'scratch_keep'." in report["reason"]
    assert "spec_not_understood" in running.log()
    assert "There is no op 'scratch_keep'." in running.log()
    still_runs_the_first(running)
    louder = maker.bundle("name:shout", sequence=1002)
    plane.offer(maker.directive(louder, 12), louder.archive)
    assert "An action is drop, " in running.reported("failed", "bad_settings")["reason"]
    still_runs_the_first(running)


def bad_path(archive: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("../../evil")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return out.getvalue() + archive


def flipped(archive: bytes) -> bytes:
    changed = bytearray(archive)
    changed[600] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("credential", "credential_expired"),
        ("path", "bundle_path_escape"),
        ("outside", "path_not_allowed"),
    ],
)
def test_what_does_not_verify_is_refused_reported_and_changes_nothing(running: Host, case: str, code: str):
    maker, plane = running.plane.maker, running.plane
    second = maker.bundle("name:drop", sequence=1001)
    desired, archive = maker.directive(second, 11), second.archive
    if case == "credential":
        late = maker.bundle("name:drop", sequence=1001, expires_at=now_ms() - 1000)
        desired, archive = maker.directive(late, 11), late.archive
    elif case == "path":
        archive = bad_path(archive)
        desired = maker.directive(second, 11, bundle_sha256=hashlib.sha256(archive).hexdigest())
    else:
        running.stop()
        linked = running.data / "out.jsonl"
        linked.rename(running.data / "kept.jsonl")
        linked.symlink_to("/dev/shm/byteor-test-outside")
        running.start()
        desired = maker.directive(second, 11)
    plane.offer(desired, archive)
    report = running.reported("failed", code)
    assert code in report["reason"]
    if case == "outside":
        assert not Path("/dev/shm/byteor-test-outside").exists()
        return
    still_runs_the_first(running)


def test_what_was_active_starts_again_while_the_control_plane_is_away(running: Host):
    running.stop()
    running.plane.stop()
    running.start()
    still_runs_the_first(running)


def test_a_key_that_is_refused_stops_nothing(running: Host):
    running.plane.refuse_keys = True
    until(lambda: "refuses our key" in running.log())
    still_runs_the_first(running)


def test_reports_wait_on_disk_until_they_are_taken(running: Host):
    maker, plane = running.plane.maker, running.plane
    second = maker.bundle("name:drop", sequence=1001)
    original = plane.answer
    plane.answer = lambda path, body: (503, {}) if path.endswith("/status") else original(path, body)
    plane.offer(maker.directive(second, 11), second.archive)
    until(lambda: len(json.loads((running.home / "state" / "outbox.json").read_text())) == 3)
    plane.answer = original
    running.reported("activated")
    assert [r["status"] for r in plane.reports] == ["fetched", "verified", "activated"]


def test_two_agents_do_not_share_a_state_folder(running: Host):
    done = subprocess.run(running.command(), capture_output=True, check=False, text=True, cwd=running.home)
    assert done.returncode == 2
    assert "another agent uses" in done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://cloud.example.com/api/v1/orgs/{0}/projects/{0}/environments/{0}", "plain http"),
        ("ftp://cloud.example.com/", "--environment-url looks like"),
        ("https://cloud.example.com/api/v1/orgs/x", "--environment-url looks like"),
    ],
)
def test_an_address_it_does_not_talk_to_is_one_line_and_exit_2(
    tmp_path: Path, plane: ControlPlane, url: str, words: str
):
    lonely = Host(tmp_path, plane)
    given = url.format("01890000-0000-7000-8000-00000000000a")
    done = subprocess.run(
        lonely.command("--environment-url", given, "--enrollment-token", "t"),
        cwd=lonely.home,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_verify_checks_a_bundle_offline(tmp_path: Path, plane: ControlPlane):
    host = Host(tmp_path, plane)
    bundle = plane.maker.bundle()
    (tmp_path / "b.tar").write_bytes(bundle.archive)
    (tmp_path / "k.json").write_text(json.dumps(plane.maker.key_set()))
    command = [sys.executable, str(host.program), "verify", str(tmp_path / "b.tar"), "--keys", str(tmp_path / "k.json")]
    good = subprocess.run(command, capture_output=True, check=True, text=True)
    assert json.loads(good.stdout)["bundle_sha256"] == bundle.sha256
    (tmp_path / "b.tar").write_bytes(flipped(bundle.archive))
    bad = subprocess.run(command, capture_output=True, check=False, text=True)
    assert bad.returncode == 1
    assert "bundle_malformed" in bad.stderr or "manifest_mismatch" in bad.stderr


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_kept_bundle_that_was_damaged_is_fetched_again_and_until_then_the_host_is_unhealthy(running: Host):
    plane = running.plane
    served = dict(plane.bundles)
    for revoked in (False, True):
        running.stop()
        (kept,) = (running.home / "state" / "bundles").glob("*.tar")
        flip(kept)
        plane.bundles = {} if revoked else served
        running.start()
        if revoked:
            beat = running.beat(ok=False, words="shall run here and does not")
            assert (beat["status"], beat["running"]) == ("unhealthy", None)
            plane.bundles = served
        running.beat(ok=True)
        assert running.feed() == {"n": running.fed, "name": "ann"}
        assert "is damaged" in running.log()


@pytest.mark.parametrize("status", [404, 410, 503])
@pytest.mark.parametrize("lost", ["the bundle", "active.json too"])
def test_a_bundle_that_the_control_plane_has_lost_too_is_asked_for_until_it_is_back(
    running: Host, status: int, lost: str
):
    plane = running.plane
    running.stop()
    (kept,) = (running.home / "state" / "bundles").glob("*.tar")
    kept.unlink()
    if lost == "active.json too":
        (running.home / "state" / "active.json").write_text("{")
    plane.refuse_bundles, plane.asked[:], started = status, [], time.monotonic()
    running.start()
    beat = running.beat(
        ok=False, words=f"it can't be fetched again either: {status if status == 503 else 'fetch_refused'}"
    )
    assert (beat["status"], beat["running"]) == ("unhealthy", None)

    def fetches() -> int:
        return sum(path.endswith("/bundle") for path in plane.asked)

    until(lambda: fetches() >= 3)
    # at once, after 1 s, after 2 s more, after 4 s more
    assert fetches() <= 2 + (time.monotonic() - started)
    assert [report["status"] for report in plane.reports] == [], "it is no failure of what ran here"
    assert json.loads((running.home / "state" / "health.json").read_text())["ok"] is False
    plane.refuse_bundles = None
    running.reported("activated")
    running.beat(ok=True)
    assert running.feed() == {"n": running.fed, "name": "ann"}


def test_a_newer_bundle_that_can_not_be_fetched_still_fails_while_the_former_is_missing(running: Host):
    plane = running.plane
    running.stop()
    (kept,) = (running.home / "state" / "bundles").glob("*.tar")
    kept.unlink()
    plane.refuse_bundles = 404
    newer = plane.maker.bundle("name:drop", sequence=1001)
    plane.offer(plane.maker.directive(newer, 11), newer.archive)
    running.start()
    running.reported("failed", "fetch_refused")
    running.beat(ok=False, words="shall run here and does not")


def test_a_key_that_is_refused_while_a_bundle_is_fetched_fails_nothing(running: Host):
    plane = running.plane
    plane.refuse_bundles = 401
    newer = plane.maker.bundle("name:drop", sequence=1001)
    plane.offer(plane.maker.directive(newer, 11), newer.archive)
    until(lambda: "not carried out yet: 401" in running.log())
    still_runs_the_first(running)
    assert plane.reports == []
    plane.refuse_bundles = None
    running.reported("activated")
    assert running.feed() == {"n": running.fed, "secret": "s"}


def test_an_agent_killed_before_it_remembers_a_newer_bundle_does_not_go_back_for_an_older_directive(running: Host):
    plane = running.plane
    older = plane.maker.bundle("secret:replace_with=older", sequence=1000)
    newer = plane.maker.bundle("name:drop", sequence=1001)
    (running.faults / "armed").write_text(json.dumps({"point": "agent.switch.noted"}))
    plane.offer(plane.maker.directive(newer, 11), newer.archive)
    until(lambda: (running.faults / "hit").exists())
    running.kill()
    state = running.home / "state"
    assert json.loads((state / "active.json").read_text())["sequence"] == 1001
    assert json.loads((state / "memory.json").read_text())["highest_sequence"] == 1000
    plane.offer(plane.maker.directive(older, 12), older.archive)
    running.start()
    assert "sequence 1000 is below 1001" in running.reported("failed", "sequence_older")["reason"]
    assert running.feed() == {"n": running.fed, "secret": "s"}
    assert json.loads((state / "active.json").read_text())["sequence"] == 1001


@pytest.mark.parametrize("name", ["outbox.json", "memory.json", "active.json", "health.json"])
def test_an_agent_goes_on_without_a_file_that_is_damaged(running: Host, name: str):
    running.stop()
    (running.home / "state" / name).write_text("{" if name != "active.json" else "{}")
    running.start()
    running.beat(ok=True)
    assert running.feed() == {"n": 2, "name": "ann"}


def test_what_a_heartbeat_counts_has_codes_and_the_matches_of_each_rule(running: Host):
    running.write({"n": 2, "secret": 1}, [1], "x")

    def counted() -> dict[str, Any] | None:
        beats = (b for b in running.plane.beats if b["metrics"]["stages"].get("redact", {}).get("refused") == 2)
        return next(beats, None)

    beat = until(counted)
    assert beat["metrics"]["stages"]["redact"]["codes"] == {"not_an_object": 2}
    assert beat["metrics"]["rules"] == {"redact": [2]}
    assert beat["metrics"]["lanes"] == {}


def test_tuning_is_reported_as_it_was_wished_and_as_it_is(running: Host):
    plane = running.plane
    config = {
        "tuning": {"profile": "isolated-core", "batch_size": 10, "buffer_records": 5},
        "adapters": {"ingress": {"type": "file", "path": "in.jsonl"}, "egress": {"type": "file", "path": "out.jsonl"}},
        "stages": {"redact": {"rules": ["secret:drop"]}},
    }
    bundle = plane.maker.bundle(sequence=1001, config=config)
    plane.offer(plane.maker.directive(bundle, 11), bundle.archive)
    tuning = running.reported("activated")["tuning"]
    assert tuning["requested"] == config["tuning"]
    assert tuning["applied"] == {"profile": "default", "batch_size": 10}
    assert [words.partition(":")[0] for words in tuning["degraded"]] == ["profile isolated-core", "buffer_records"]


def test_what_the_control_plane_sends_forges_no_line_of_the_log(running: Host):
    plane, original = running.plane, running.plane.answer

    def forging(path: str, body: Any) -> tuple[int, Any]:
        if "/deployment?" in path:
            return 409, {"code": "x", "detail": "so\n2026-01-01T00:00:00Z activated bundle deadbeef\x1b[2J\u202e"}
        return original(path, body)

    plane.answer = forging  # type: ignore[method-assign]
    line = until(lambda: next((line for line in running.log().splitlines() if "deadbeef" in line), None))
    assert "the control plane refuses: 409 x: so[U+000A]2026" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
