"""A newer agent: verified before it is run, tried before it is chosen, and only where the host allows it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.runtime import trust
from apps.runtime.agent import VERSION
from apps.runtime.agent import programs as programs_module
from apps.runtime.agent.build import build_pyz
from apps.runtime.agent.client import Answer, Refused
from apps.runtime.agent.enroll import Identity, save_identity
from apps.runtime.agent.keyring import Keyring
from apps.runtime.agent.programs import INSTALLED
from apps.runtime.agent.state import State
from apps.runtime.agent.upgrade import Upgrader
from tests.processes import is_alive
from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.making import AGENT, ENVIRONMENT, ORG, PROJECT, Maker, now_ms

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

NEWER = "99.0.1"


def packed(version: str, **changed: tuple[str, str]) -> bytes:
    """The agent with another version, and with `module=(old, new)` replaced in its sources."""
    patches = {"__init__": (f'"{VERSION}"', f'"{version}"'), **changed}
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(build_pyz())) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for module, (was, becomes) in patches.items():
                if name == f"apps/runtime/agent/{module}.py":
                    assert was.encode() in data
                    data = data.replace(was.encode(), becomes.encode())
            new.writestr(name, data)
    return out.getvalue()


def offer(plane: ControlPlane, program: bytes, version: str = NEWER, signer: Maker | None = None, **wrong: Any) -> None:
    at = now_ms()
    release = trust.AgentRelease(
        version=version,
        sha256=hashlib.sha256(program).hexdigest(),
        size=len(program),
        path="/release/byteor-agent.pyz",
        issued_at=at,
        expires_at=at + trust.RELEASE_LIFE_MS,
    )
    plane.program = program
    plane.release = trust.sign_release(replace(release, **wrong), (signer or plane.maker).signer)


@pytest.fixture
def host(tmp_path: Path, plane: ControlPlane) -> Iterator[Host]:
    made = Host(tmp_path, plane)
    settled = ("SETTLED_SECONDS = 10.0", "SETTLED_SECONDS = 0.5")
    made.program.write_bytes(packed(VERSION, runner=settled))
    made.options = ("--allow-upgrade", "--upgrade-every", "0.3", "--trial-seconds", "20")
    made.start()
    yield made
    made.stop()


class Offered:
    """What an agent that looks for upgrades is answered, without a network between."""

    def __init__(self, home: Path) -> None:
        self.plane = ControlPlane(Maker())
        self.state = State(home / "state", lock=False)
        keys = self.plane.maker.key_set()["envelopes"]
        self.state.trust(trust.accept_keyset(None, keys))
        save_identity(self.state, Identity("http://h", AGENT, "k", ORG, PROJECT, ENVIRONMENT, "dev", 10.0))
        self.logged: list[str] = []
        self.asked: list[str] = []
        keyring = Keyring(self.state, lambda version: {"envelopes": []}, self.logged.append)
        self.upgrader = Upgrader(self.state, keyring, self._call, self.logged.append)

    def _call(self, method: str, path: str, max_bytes: int = 10**6, **kwargs: Any) -> Answer:
        self.asked.append(path)
        status, body = self.plane.answer(f"/agents/{AGENT}{path}", None)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if len(data) > max_bytes:
            raise Refused(200, "answer_too_large", "")
        return Answer(status, {}, data)

    def looks(self, quiet: bool = True) -> bool:
        return self.upgrader.look(lambda: quiet)


@pytest.fixture
def offered(tmp_path: Path) -> Offered:
    return Offered(tmp_path)


def test_what_is_offered_is_verified_and_put_on_trial(offered: Offered):
    offer(offered.plane, packed(NEWER))
    assert offered.looks()
    assert offered.logged == [f"agent {NEWER} is verified and will be tried in place of {VERSION}"]
    trial = offered.upgrader.programs.on_trial()
    assert trial is not None
    assert trial.path is not None
    assert trial.path.read_bytes() == offered.plane.program


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("foreign", "unknown_key"),
        ("byte", "bad_signature"),
        ("digest", "release_digest_mismatch"),
        ("longer", "answer_too_large"),
        ("expired", "release_expired"),
        ("future", "release_not_yet_valid"),
        ("long-lived", "release_too_long_lived"),
        ("path", "bad_release"),
        ("huge", "bad_release"),
        ("directive", "bad_envelope"),
        ("liar", "release_self_check"),
        ("broken", "release_self_check"),
    ],
)
def test_a_program_that_does_not_verify_is_never_run(offered: Offered, case: str, words: str):
    plane, program, at = offered.plane, packed(NEWER), now_ms()
    offer(plane, program)
    if case == "foreign":
        offer(plane, program, signer=Maker())
    elif case == "byte":
        assert plane.release is not None
        plane.release["signatures"][0]["sig"] = Maker().directive(None, 1, "stop")["envelope"]["signatures"][0]["sig"]
    elif case == "digest":
        plane.program = program[:-1] + bytes([program[-1] ^ 1])
    elif case == "longer":
        plane.program = program + b"x"
    elif case == "expired":
        offer(plane, program, issued_at=at - 3_600_000, expires_at=at - 3_000_000)
    elif case == "future":
        offer(plane, program, issued_at=at + 3_600_000, expires_at=at + 4_000_000)
    elif case == "long-lived":
        offer(plane, program, expires_at=at + 86_400_000)
    elif case == "path":
        offer(plane, program, path="/../../release/byteor-agent.pyz")
    elif case == "huge":
        offer(plane, program, size=10**9)
    elif case == "directive":
        plane.release = plane.maker.directive(None, 1, "stop")["envelope"]
    elif case == "liar":
        offer(plane, packed("99.0.0"))
    else:
        offer(plane, packed(NEWER, cli=('"""`byteor-agent', 'raise SystemExit(7)\n"""`byteor-agent')))
    assert not offered.looks()
    assert words in offered.logged[-1]
    assert offered.upgrader.programs.on_trial() is None
    assert offered.upgrader.programs.chosen() == INSTALLED


@pytest.mark.parametrize("version", [VERSION, "0.0.9", "0.1.99"])
def test_the_same_or_an_older_version_is_not_even_fetched(offered: Offered, version: str):
    offer(offered.plane, packed(version), version)
    assert not offered.looks()
    assert offered.asked == ["/release"]


def test_a_host_that_is_not_quiet_does_not_even_ask(offered: Offered):
    offer(offered.plane, packed(NEWER))
    assert not offered.looks(quiet=False)
    assert offered.asked == []


def test_one_that_did_not_stand_is_tried_later_and_never_a_fourth_time(
    offered: Offered, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(programs_module, "AGAIN_SECONDS", 0.0)
    offer(offered.plane, packed(NEWER))
    sha256 = hashlib.sha256(offered.plane.program).hexdigest()
    for _ in range(3):
        assert offered.looks()
        offered.upgrader.programs.refuse(sha256, "test")
        assert offered.upgrader.programs.on_trial() is None
    assert not offered.looks()


def test_a_state_that_the_new_one_can_not_read_keeps_the_old_one(offered: Offered):
    (offered.state.root / "agent.json").write_text("[")
    offer(offered.plane, packed(NEWER))
    assert not offered.looks()
    assert "release_self_check" in offered.logged[-1]


def runs(host: Host, version: str) -> None:
    seen = len(host.plane.beats)
    until(lambda: any(beat["version"] == version for beat in host.plane.beats[seen:]), 30)


def refused(host: Host) -> dict[str, Any]:
    path = host.home / "state" / "programs" / "refused.json"
    value: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return value


def test_a_newer_agent_takes_over_with_what_runs_and_is_what_starts_from_then_on_unless_it_is_changed(running: Host):
    offer(running.plane, packed(NEWER))
    runs(running, NEWER)
    assert running.feed() == {"n": 2, "name": "ann"}
    until(lambda: f"agent {NEWER} stands" in running.log())
    running.plane.release = None
    running.stop()
    assert running.program.read_bytes() != running.plane.program  # the installed one is never touched
    running.start()
    runs(running, NEWER)
    assert running.feed() == {"n": 3, "name": "ann"}
    done = subprocess.run(
        [*running.command()[:2], "status", "--state-dir", str(running.home / "state")], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["program"]["version"] == NEWER
    # bytes that are not the ones that were verified are not run
    running.stop()
    (kept,) = (running.home / "state" / "programs").glob("*.pyz")
    kept.write_bytes(kept.read_bytes() + b" ")
    running.start()
    runs(running, VERSION)
    assert running.feed() == {"n": 4, "name": "ann"}


@pytest.mark.parametrize(
    ("module", "was", "becomes"),
    [
        (
            "service",
            '        self.log(f"agent {self.me',
            '        raise SystemExit(3)\n        self.log(f"agent {self.me',
        ),
        ("service", 'answer = self.call("POST", "/heartbeat"', 'answer = self.call("POST", "/nowhere"'),
        ("service", "self.runner.resume(self.follower.verified_again)", "False"),
    ],
    ids=["ends at once", "is not heard of", "can't run what ran"],
)
def test_one_that_does_not_stand_gives_way_to_the_former_by_itself(running: Host, module: str, was: str, becomes: str):
    program = packed(NEWER, **{module: (was, becomes)})
    if "nowhere" in becomes:
        running.stop()
        running.options = (*running.options[:-1], "4")
        running.start()
    offer(running.plane, program)
    until(lambda: f"agent {NEWER} did not stand" in running.log(), 40)
    runs(running, VERSION)
    assert running.feed() == {"n": 2, "name": "ann"}
    assert refused(running)[hashlib.sha256(program).hexdigest()]["times"] == 1
    # it is not tried again at once
    asked = len(running.plane.asked)
    until(lambda: sum(path.endswith("/release") for path in running.plane.asked[asked:]) >= 3)
    assert running.log().count("is on trial") == 1


def test_killed_in_the_middle_of_a_trial_the_former_runs_after(host: Host):
    program = packed(
        NEWER, service=('answer = self.call("POST", "/heartbeat"', 'answer = self.call("POST", "/nowhere"')
    )
    offer(host.plane, program)
    until(lambda: "is on trial" in host.log())
    host.kill()
    host.plane.release = None
    host.start()
    runs(host, VERSION)
    assert "not seen to stand" in host.log()
    assert list(refused(host)) == [hashlib.sha256(program).hexdigest()]


def test_a_host_that_does_not_allow_it_never_asks(running: Host):
    running.stop()
    running.options = ("--supervise", "--upgrade-every", "0.1")
    running.plane.asked.clear()
    offer(running.plane, packed(NEWER))
    running.start()
    runs(running, VERSION)
    runs(running, VERSION)
    assert not any("/release" in path for path in running.plane.asked)


def test_nothing_is_begun_while_a_report_waits(running: Host):
    plane = running.plane
    original = plane.answer
    plane.answer = lambda path, body: (503, {}) if path.endswith("/status") else original(path, body)  # type: ignore[method-assign]
    second = plane.maker.bundle("name:drop", sequence=1001)
    plane.offer(plane.maker.directive(second, 11), second.archive)
    until(lambda: "sequence 1001" in running.log())
    plane.asked.clear()
    offer(plane, packed(NEWER))
    runs(running, VERSION)
    runs(running, VERSION)
    assert not any(path.endswith("/release") for path in plane.asked)
    plane.answer = original  # type: ignore[method-assign]
    until(lambda: any(path.endswith("/release") for path in plane.asked), 30)


def child_of(host: Host) -> int:
    assert host.process is not None
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children")
    return int(until(lambda: children.read_text().split())[0])


def test_an_agent_that_is_killed_is_started_again_and_one_whose_supervisor_is_killed_ends_with_it(running: Host):
    first = child_of(running)
    os.kill(first, signal.SIGKILL)
    until(lambda: child_of(running) != first)
    assert running.feed() == {"n": 2, "name": "ann"}
    second = child_of(running)
    running.kill()
    until(lambda: not is_alive(second))
    running.start()
    assert running.feed() == {"n": 3, "name": "ann"}


def test_a_wrong_command_line_ends_the_supervisor_too(tmp_path: Path, plane: ControlPlane):
    lonely = Host(tmp_path, plane)
    for options, words in ((("--supervise",), "first start"), (("--supervise", "--allow-exec", "sh"), "--allow-exec")):
        done = subprocess.run(lonely.command(*options), capture_output=True, check=False, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
