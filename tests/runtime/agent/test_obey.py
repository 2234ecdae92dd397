"""From a directive to what runs, in this process: what a host compares before it believes, fetches and switches.

Everything is real but the control plane's end of the connection. The attacks (`tests/runtime/attacks`) try the gravest with the
packed agent; here each refusal takes milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.runtime import trust
from apps.runtime.agent import runner as runner_module
from apps.runtime.agent.client import Answer, Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity
from apps.runtime.agent.keyring import Keyring
from apps.runtime.agent.limits import Limits
from apps.runtime.agent.obey import Follower
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State
from apps.runtime.bundle import MAX_BUNDLE_BYTES, BuiltBundle
from tests.runtime.making import AGENT, DEPLOYMENT, ENVIRONMENT, ORG, PROJECT, Maker, now_ms

ANOTHER = "01890000-0000-7000-8000-0000000000ee"
ME = Identity("http://127.0.0.1:9", AGENT, "byt_agt_x", ORG, PROJECT, ENVIRONMENT, "dev", 10.0)


class Host:
    """A host, and a control plane that answers what a test wants: `archives` by deployment, or `away`."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir()
        (self.data / "in.jsonl").touch()
        self.maker = Maker()
        self.archives: dict[str, bytes] = {}
        self.away: Exception | None = None
        self.key_sets: list[Any] = []
        self.fetched: list[str] = []
        self.asked_for_keys: list[int] = []
        self.reports: list[tuple[str, str, str]] = []
        self.messages: list[str] = []
        self.state = State(home / "state", lock=False, log=self.messages.append)
        self.state.trust(trust.accept_keyset(None, self.maker.key_set()["envelopes"]))
        self.start()

    def start(self) -> None:
        """As when the agent starts, or starts again."""
        self.runner = Runner(self.state, Limits.given(self.data), self.messages.append)
        self.follower = Follower(
            state=self.state,
            me=ME,
            client=Client(ME.base_url),
            keyring=Keyring(self.state, self._give_keys, self.messages.append),
            runner=self.runner,
            outbox=Outbox(self.state, self._take_report, self.messages.append),
            call=self._answer,
            log=self.messages.append,
            tail=lambda: "",
        )

    def restart(self) -> None:
        self.runner.shut_down()
        self.start()

    def _give_keys(self, version: int) -> Any:
        self.asked_for_keys.append(version)
        return {"envelopes": self.key_sets}

    def _take_report(self, to: str, body: dict[str, Any]) -> None:
        self.reports.append((to, body["status"], body["reason"]))

    def _answer(self, method: str, path: str, **_: Any) -> Answer:
        self.fetched.append(path)
        if self.away is not None:
            raise self.away
        return Answer(200, {}, self.archives[path.split("/")[2]])

    def obey(self, desired: dict[str, Any], archive: bytes | None = None) -> float:
        """What the agent does with an answer. The reports so far are forgotten."""
        self.reports.clear()
        if archive is not None:
            self.archives[desired["directive"]["deployment_id"]] = archive
        return self.follower.obey(desired["envelope"], desired["directive"])

    def bundle(self, sequence: int, deployment_id: str = DEPLOYMENT, **more: Any) -> BuiltBundle:
        return self.maker.bundle(f"f{sequence}:drop", sequence=sequence, deployment_id=deployment_id, **more)

    def activate(self, sequence: int, seq: int, word: str = "activate", deployment_id: str = DEPLOYMENT) -> BuiltBundle:
        """Directed to a new bundle with this sequence."""
        made = self.bundle(sequence, deployment_id)
        self.obey(self.maker.directive(made, seq, word), made.archive)
        return made

    @property
    def statuses(self) -> list[str]:
        return [status for _, status, _ in self.reports]

    @property
    def refusal(self) -> str:
        """The code of the only report, which is of a failure."""
        [(_, status, reason)] = [report for report in self.reports if report[1] != "fetched"]
        assert status == "failed"
        return reason.split(":")[0]

    @property
    def runs(self) -> int | None:
        """The sequence of what runs."""
        running = self.runner.running()
        assert (running is None) == (self.runner.pipeline is None)
        return running["sequence"] if running else None


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(runner_module, "settle", lambda pipeline: pipeline.alive())
    made = Host(tmp_path)
    yield made
    made.runner.shut_down()


def test_what_is_directed_and_verified_runs_and_each_step_is_reported(host: Host) -> None:
    made = host.activate(1000, 10)
    assert host.statuses == ["fetched", "verified", "activated"]
    assert {to for to, _, _ in host.reports} == {DEPLOYMENT}
    assert host.runs == 1000
    assert host.state.kept_bundle(made.sha256) == made.archive
    assert json.loads((host.state.root / "memory.json").read_text()) == {
        "directive_seq": 10,
        "content_digest": host.follower._last_digest,
        "highest_sequence": 1000,
    }


# --- bundles that are well signed, and approved for exactly what they say, but are not for this host or this directive


@pytest.mark.parametrize(
    ("place", "claims", "code"),
    [
        ({"org_id": ANOTHER}, {"org_id": ANOTHER}, "wrong_organization"),
        ({"project_id": ANOTHER}, {"project_id": ANOTHER}, "wrong_environment"),
        ({"environment_id": ANOTHER}, {}, "wrong_environment"),
        ({"posture": "prod"}, {"environment_posture": "prod"}, "wrong_environment"),
        ({"deployment_id": ANOTHER}, {"subject": f"deployment:{ANOTHER}"}, "wrong_deployment"),
        ({"sequence": 1002}, {}, "wrong_sequence"),
    ],
)
def test_a_bundle_that_is_for_something_else_is_refused(
    host: Host, place: dict[str, Any], claims: dict[str, Any], code: str
) -> None:
    environment_id = place.get("environment_id", ENVIRONMENT)
    made = host.bundle(1001, environment_id=environment_id, place=place, **claims)
    desired = host.maker.directive(made, 10, deployment_id=DEPLOYMENT, for_deployment_id=DEPLOYMENT, sequence=1001)
    host.obey(desired, made.archive)
    assert (host.refusal, host.statuses, host.runs) == (code, ["fetched", "failed"], None)
    assert host.state.kept_bundle(made.sha256) is None
    host.obey(desired)
    assert host.reports == [], "refused for good"


def test_another_archive_than_the_directed_one_is_refused(host: Host) -> None:
    good, other = host.bundle(1001), host.bundle(1002)
    host.obey(host.maker.directive(good, 10), other.archive)
    assert (host.refusal, host.runs) == ("bundle_digest_mismatch", None)


def test_a_bundle_by_a_strangers_key_is_refused_under_a_directive_of_the_organization(host: Host) -> None:
    theirs = Maker().bundle(sequence=1001)
    host.obey(host.maker.directive(theirs, 10), theirs.archive)
    assert (host.refusal, host.runs) == ("unknown_key", None)


# --- sequences


def test_an_older_sequence_is_refused_unless_it_is_a_rollback(host: Host) -> None:
    host.activate(1001, 10)
    host.activate(1000, 11, deployment_id=ANOTHER)
    assert (host.refusal, host.runs) == ("sequence_older", 1001)
    assert len(host.fetched) == 1
    host.activate(1000, 12, "rollback", deployment_id=ANOTHER)
    assert (host.statuses[-1], host.runs) == ("rolled_back", 1000)
    host.activate(1000, 13, deployment_id=ANOTHER)
    assert (host.refusal, host.runs) == ("sequence_older", 1000), "a rollback does not lower what was ever active"


def test_the_highest_sequence_outlives_a_stop_and_a_restart(host: Host) -> None:
    host.activate(1001, 10)
    host.obey(host.maker.directive(None, 11, "stop"))
    assert (host.statuses, host.runs) == (["stopped"], None)
    host.restart()
    host.activate(1000, 12)
    assert (host.refusal, host.runs) == ("sequence_older", None)


def test_a_kill_between_the_switch_and_its_memory_lets_nothing_older_in(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Follower, "remember", lambda self: None)
        host.activate(1001, 10)
    assert host.runs == 1001
    host.restart()
    assert not (host.state.root / "memory.json").exists()
    host.activate(1000, 11, deployment_id=ANOTHER)
    assert host.refusal == "sequence_older"


# --- directives


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"environment_id": ANOTHER}, "directive_wrong_environment"),
        ({"agent_id": ANOTHER}, "directive_wrong_agent"),
        ({"issued_at": now_ms() - 3_600_000, "expires_at": now_ms() - 3_000_000}, "directive_expired"),
        ({"issued_at": now_ms() + 3_600_000, "expires_at": now_ms() + 4_000_000}, "directive_not_yet_valid"),
        ({"expires_at": now_ms() + 86_400_000}, "directive_too_long_lived"),
        ({"sequence": -1}, "bad_directive"),
        ({"v": 2}, "directive_unknown_version"),
    ],
)
def test_a_directive_that_is_not_accepted_is_refused_and_reported_once(
    host: Host, change: dict[str, Any], code: str
) -> None:
    made = host.bundle(1000)
    desired = host.maker.directive(made, 10, **change)
    assert host.obey(desired, made.archive) == 5.0
    assert (host.refusal, host.runs, host.fetched) == (code, None, [])
    assert host.obey(desired) == 5.0
    assert host.reports == []
    # the next one is said again
    assert host.obey(host.maker.directive(made, 11, **change)) == 5.0
    assert host.refusal == code


def test_a_refusal_is_reported_only_to_what_may_be_a_deployment(host: Host) -> None:
    stranger = Maker().directive(host.bundle(1000), 10)
    for number, named in enumerate((None, "x", 5, "../status", DEPLOYMENT.upper(), ["x"])):
        plain = {**stranger["directive"], "for_deployment_id": named, "directive_seq": number}
        assert host.obey({**stranger, "directive": plain}) == 5.0
        assert host.reports == []
    for plain in (None, [], "x"):
        host.follower.obey(stranger["envelope"], plain)
    assert host.reports == []


def test_a_directive_of_the_past_is_refused_also_after_a_restart(host: Host) -> None:
    first = host.activate(1000, 10)
    host.restart()
    assert host.runner.resume(host.follower.verified_again)
    for desired in (host.maker.directive(first, 9), host.maker.directive(first, 10, word="rollback")):
        host.obey(desired)
        assert host.refusal == "directive_replayed"
    host.obey(host.maker.directive(first, 10))
    assert (host.reports, host.runs) == ([], 1000), "the same again is nothing new"


def test_what_runs_already_is_not_fetched_again(host: Host) -> None:
    first = host.activate(1000, 10)
    host.obey(host.maker.directive(first, 11))
    assert host.reports == [(DEPLOYMENT, "activated", "it ran already")]
    assert len(host.fetched) == 1
    host.obey(host.maker.directive(None, 12, "none"))
    assert (host.reports, host.runs) == ([], 1000)


# --- keys


def test_a_directive_by_a_key_that_is_not_known_makes_it_follow_the_key_set_first(host: Host) -> None:
    former, fresh = host.maker, Maker()
    retired = trust.TrustedKey(former.signer.kid, former.key.public, "retired", None, now_ms())
    payload = trust.make_keyset_payload(org_id=ORG, version=2, keys=[retired, fresh.key], issued_at=now_ms())
    host.key_sets = [trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [former.signer])]
    made = fresh.bundle(sequence=1000)
    assert host.obey(fresh.directive(made, 10), made.archive) == 0.0
    assert (host.asked_for_keys, host.statuses[-1], host.runs) == ([1], "activated", 1000)


def test_a_key_that_stays_unknown_is_refused(host: Host) -> None:
    stranger = Maker()
    made = stranger.bundle(sequence=1000)
    host.obey(stranger.directive(made, 10), made.archive)
    assert (host.refusal, host.asked_for_keys, host.fetched) == ("unknown_key", [1], [])


@pytest.mark.parametrize(("status", "code"), [("revoked", "key_revoked"), ("retired", "directive_by_retired_key")])
def test_a_key_taken_out_of_use_is_asked_about_once_more_before_it_is_reported(
    host: Host, status: str, code: str
) -> None:
    ended = trust.TrustedKey(host.maker.signer.kid, host.maker.key.public, status, None, now_ms() - 3_600_000)
    host.state.trust(trust.KeySet(ORG, 2, (ended, Maker().key)))
    host.restart()
    made = host.bundle(1000)
    assert host.obey(host.maker.directive(made, 10), made.archive) == 2.0
    assert host.reports == []
    # signed anew meanwhile: the times in it do not make it another one
    assert host.obey(host.maker.directive(made, 10, issued_at=now_ms() - 1)) == 5.0
    assert (host.refusal, host.asked_for_keys, host.runs) == (code, [], None)


# --- fetching


@pytest.mark.parametrize("away", [Refused(401, "invalid_token", "no"), Unreachable("away")])
def test_a_bundle_that_can_not_be_had_now_is_asked_for_again(host: Host, away: Exception) -> None:
    made, host.away = host.bundle(1000), away
    desired = host.maker.directive(made, 10)
    assert host.obey(desired, made.archive) == 1.0
    assert (host.reports, host.runs) == ([], None)
    host.away = None
    assert host.obey(desired) == 0.0
    assert (host.statuses[-1], host.runs) == ("activated", 1000)


@pytest.mark.parametrize("status", [403, 404, 409])
def test_a_bundle_that_is_refused_fails_for_good(host: Host, status: int) -> None:
    made, host.away = host.bundle(1000), Refused(status, "not_wanted", "no")
    desired = host.maker.directive(made, 10)
    assert host.obey(desired, made.archive) == 0.0
    assert (host.refusal, host.runs) == ("fetch_refused", None)
    host.away = None
    assert host.obey(desired) == 0.0
    assert (host.reports, len(host.fetched)) == ([], 1)


def test_what_was_active_and_is_not_on_this_host_any_more_is_asked_for_until_it_comes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host.activate(1000, 10)
    host.runner.shut_down()
    host.state.forget_bundle(first.sha256)
    host.start()
    assert not host.runner.resume(host.follower.verified_again)
    well, why = host.runner.health()
    assert (well, "bundle_missing" in why) == (False, True)
    host.follower.forget_last()
    desired, host.away = host.maker.directive(first, 10), Refused(404, "not_found", "no")
    assert host.obey(desired) == 1.0
    assert host.reports == []
    assert "it can't be fetched again either: fetch_refused: 404 not_found: no" in host.runner.health()[1]
    tried = len(host.fetched)
    host.away = None
    assert host.obey(desired) == 1.0
    assert len(host.fetched) == tried, "not before its pause is over"
    monkeypatch.setattr(host.follower, "_again_at", 0.0)
    assert host.obey(desired) == 0.0
    assert (host.statuses[-1], host.runs, host.runner.health()) == ("activated", 1000, (True, ""))


def test_what_ran_before_is_taken_from_the_disk_if_it_is_whole(host: Host) -> None:
    first = host.activate(1000, 10)
    host.activate(1001, 11, deployment_id=ANOTHER)
    host.obey(host.maker.directive(first, 12, "rollback"))
    assert (host.statuses[-1], host.runs, len(host.fetched)) == ("rolled_back", 1000, 2)
    other = host.bundle(1001, ANOTHER)
    path = host.state.bundle_path(hashlib.sha256(other.archive).hexdigest())
    path.write_bytes(b"damaged")
    host.obey(host.maker.directive(other, 13), other.archive)
    assert (host.statuses[-1], host.runs, len(host.fetched)) == ("activated", 1001, 3)


def test_what_this_host_does_not_allow_is_refused_by_name_and_what_ran_runs_on(host: Host) -> None:
    host.activate(1000, 10)
    config = {"adapters": {"ingress": {"type": "file", "path": "in.jsonl"},
                           "egress": {"type": "http", "url": "https://h.example/in"}}}  # fmt: skip
    made = host.bundle(1001, ANOTHER, config=config)
    host.obey(host.maker.directive(made, 11), made.archive)
    assert host.statuses == ["fetched", "verified", "failed"]
    assert host.reports[-1][2].startswith("url_not_allowed:")
    assert host.runs == 1000


@pytest.mark.parametrize(
    "kept",
    [
        "{}",
        "[]",
        '{"directive_seq": "1", "content_digest": null, "highest_sequence": 0}',
        '{"directive_seq": 1, "content_digest": 5, "highest_sequence": 0}',
        '{"directive_seq": 1, "content_digest": null, "highest_sequence": -1}',
        '{"directive_seq": true, "content_digest": null, "highest_sequence": 1}',
        '{"directive_seq": 9223372036854775808, "content_digest": null, "highest_sequence": 1}',
        '{"directive_seq": 1, "content_digest": null, "highest_sequence": 9223372036854775808}',
    ],
)
def test_a_damaged_memory_is_renamed_and_counts_as_none(host: Host, kept: str) -> None:
    (host.state.root / "memory.json").write_text(kept)
    host.restart()
    assert (host.follower.last_seq, host.follower.highest) == (0, 0)
    assert "memory.json was damaged and is set aside as memory.json.damaged" in host.messages


def test_the_pause_before_it_is_asked_for_again_doubles_up_to_a_minute(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("apps.runtime.agent.obey.time.monotonic", lambda: now)
    pauses = []
    for _ in range(8):
        assert host.follower._ask_again_later((1, "x"), "away") == 1.0
        pauses.append(host.follower._again_at - now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    host.follower._ask_again_later((2, "x"), "away")
    assert host.follower._again_at - now == 1, "something else is asked for at once"


def test_a_bundle_is_fetched_by_its_deployment_while_the_host_is_busy(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    answer = host.follower._call

    def looked_at(method: str, path: str, **more: Any) -> Answer:
        seen.append((method, path, more, host.follower.busy))
        return answer(method, path, **more)

    monkeypatch.setattr(host.follower, "_call", looked_at)
    host.activate(1000, 10)
    limits = {"timeout": 60, "max_bytes": MAX_BUNDLE_BYTES}
    assert seen == [("GET", f"/deployments/{DEPLOYMENT}/bundle", limits, True)]
    assert not host.follower.busy


def test_what_no_deployment_is_served_for_is_reported_to_none(host: Host) -> None:
    host.activate(1000, 10)
    assert host.obey(host.maker.directive(None, 11, "stop", for_deployment_id=None)) == 0.0
    assert (host.runs, host.reports, len(host.follower.outbox)) == (None, [], 0)
