"""The real agent, packed as it is served, against a control plane that lies in every way it can."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.making import now_ms

pytestmark = [pytest.mark.alone, pytest.mark.timeout(60)]


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
def test_what_can_not_be_believed_is_refused_reported_and_changes_nothing(running: Host, case: str, code: str):
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
    until(lambda: "refuses our key" in (running.home / "log").read_text())
    still_runs_the_first(running)


def test_reports_wait_on_disk_until_somebody_takes_them(running: Host):
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
