"""How a host follows key sets: one by one, each kept before the next, and never back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.runtime import trust
from apps.runtime.agent import keyring as module
from apps.runtime.agent.keyring import Keyring
from apps.runtime.agent.state import State
from tests.runtime.making import ENVIRONMENT, ORG, Maker, now_ms


def key_set(version: int, keys: list[trust.TrustedKey], *signers: Maker, org: str = ORG) -> dict[str, Any]:
    payload = trust.make_keyset_payload(org_id=org, version=version, keys=keys, issued_at=now_ms())
    return trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [maker.signer for maker in signers])


def retired(maker: Maker) -> trust.TrustedKey:
    return trust.TrustedKey(maker.signer.kid, maker.key.public, "retired", None, now_ms())


class Follower:
    """A host at version 1, the envelopes that it is given, and what it asked for and logged."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b, self.c, self.thief = (Maker() for _ in range(4))
        self.state = State(folder, lock=False)
        self.state.trust(trust.accept_keyset(None, [key_set(1, [self.a.key], self.a)]))
        self.given: Any = []
        self.asked: list[int] = []
        self.logged: list[str] = []
        self.keyring = Keyring(self.state, self._fetch, self.logged.append)
        self.two = key_set(2, [retired(self.a), self.b.key], self.a)
        self.three = key_set(3, [retired(self.a), retired(self.b), self.c.key], self.b)

    def _fetch(self, version: int) -> Any:
        self.asked.append(version)
        return self.given if not isinstance(self.given, list) else {"envelopes": self.given}

    @property
    def on_disk(self) -> int:
        keys = self.state.keys()
        assert keys is not None
        return keys.version


@pytest.fixture
def host(tmp_path: Path) -> Follower:
    return Follower(tmp_path)


def test_without_a_key_set_there_is_no_keyring(tmp_path: Path) -> None:
    with pytest.raises(trust.TrustError) as refused:
        Keyring(State(tmp_path, lock=False), lambda version: None, lambda text: None)
    assert refused.value.code == "no_keys"


def test_it_asks_above_its_own_and_takes_what_follows(host: Follower) -> None:
    host.given = [host.two, host.three]
    host.keyring.note(3)
    assert (host.asked, host.keyring.keys.version, host.on_disk) == ([1], 3, 3)
    host.keyring.note(3)
    assert host.asked == [1], "what is followed is not asked for again"


def test_what_was_accepted_before_a_bad_one_stays_and_nothing_after_it_is_accepted(host: Follower) -> None:
    forged = key_set(3, [host.thief.key], host.thief)
    host.given = [host.two, forged, host.three]
    host.keyring.note(3)
    assert (host.keyring.keys.version, host.on_disk) == (2, 2)
    assert "keyset_unsigned" in host.logged[-1]


@pytest.mark.parametrize(
    ("envelopes", "code"),
    [
        (lambda h: [h.three], "keyset_gap"),
        (lambda h: [h.two, key_set(1, [h.a.key], h.a)], "keyset_lower"),
        (lambda h: [h.two, key_set(2, [h.thief.key], h.b)], "keyset_lower"),
        (lambda h: [key_set(2, [h.b.key], h.b)], "keyset_unsigned"),
        (lambda h: [key_set(2, [retired(h.a)], h.a)], "bad_keyset"),
        (lambda h: [key_set(2, [h.b.key], h.a, org=ENVIRONMENT)], "keyset_wrong_organization"),
        (lambda h: [{**h.two, "signatures": []}], "bad_envelope"),
        (lambda h: ["x"], "bad_envelope"),
        (lambda h: [None, h.two], "bad_envelope"),
    ],
)
def test_what_does_not_follow_is_refused_by_name(host: Follower, envelopes: Any, code: str) -> None:
    host.given = envelopes(host)
    host.keyring.note(9)
    assert code in host.logged[-1]
    assert host.on_disk == host.keyring.keys.version <= 2


@pytest.mark.parametrize("answer", [None, 5, "x", {}, {"envelopes": None}, {"envelopes": {}}, []])
def test_an_answer_that_is_none_changes_nothing(host: Follower, answer: Any) -> None:
    host.given = answer
    host.keyring.note(2)
    assert host.on_disk == 1


@pytest.mark.parametrize("version", [None, "3", 2.5, True, 0, -1, 1, 2**63])
def test_a_version_that_is_none_or_no_news_is_not_asked_for(host: Follower, version: Any) -> None:
    host.keyring.note(version)
    assert host.asked == []


def test_a_set_that_could_not_be_followed_is_asked_for_again_after_a_while_only(
    host: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.given = [host.three]
    for _ in range(5):
        host.keyring.note(3)
    assert host.asked == [1]
    assert len(host.logged) == 1
    assert host.keyring.announced == 3, "a poll that waits for news does not come back for it at once"
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    host.given = [host.two, host.three]
    host.keyring.note(3)
    assert host.on_disk == 3


def test_a_disk_that_is_full_keeps_the_former_set_whole(host: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    host.given = [host.two, host.three]
    original, writes = host.state.trust, []

    def full(keys: trust.KeySet) -> None:
        writes.append(keys.version)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        original(keys)

    monkeypatch.setattr(host.state, "trust", full)
    with pytest.raises(OSError, match="No space"):
        host.keyring.note(3)
    assert host.keyring.keys.version == host.on_disk == 2, "what is not kept is not believed"
    host.given = [host.three]
    host.keyring.note(3)
    assert host.asked == [1, 2]
    assert host.on_disk == 3


def test_what_ran_is_checked_by_keys_revoked_since_and_by_no_strangers(host: Follower) -> None:
    revoked = trust.TrustedKey(host.a.signer.kid, host.a.key.public, "revoked", None, now_ms())
    host.given = [host.two, key_set(3, [revoked, host.b.key], host.b)]
    host.keyring.note(3)
    bundle = host.a.bundle()
    from apps.runtime.bundle import read_bundle, verify_bundle

    contents = read_bundle(bundle.archive)
    with pytest.raises(trust.TrustError, match="key_revoked"):
        verify_bundle(contents, keys=host.keyring.keys)
    assert verify_bundle(contents, keys=host.keyring.keys_of_what_ran()).sha256 == bundle.sha256
    with pytest.raises(trust.TrustError, match="unknown_key"):
        verify_bundle(read_bundle(host.thief.bundle().archive), keys=host.keyring.keys_of_what_ran())
