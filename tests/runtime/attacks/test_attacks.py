"""One test for each named attack on an update system: the real agent, packed as it is served, against a control plane that lies.

The names are those of The Update Framework's threat list. Each test first asks verifiers that we did not write whether the
signatures hold (`stock`), so that it shows which property rests on the signature and which on another check.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from apps.runtime import trust
from apps.runtime.trust import TrustedKey
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.attacks import stock
from tests.runtime.making import ORG, Maker, now_ms

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

ELSEWHERE = "01890000-0000-7000-8000-0000000000ff"
ANOTHER = "01890000-0000-7000-8000-0000000000ee"


def refused(host: Host, code: str) -> None:
    """The reason with this code is reported, and what ran before runs on."""
    assert host.reported("failed", code)["reason"].startswith(f"{code}:")
    host.plane.reports.clear()
    still_runs_the_first(host)


def still_runs_the_first(host: Host) -> None:
    assert host.feed() == {"n": host.fed, "name": "ann"}
    assert json.loads((host.home / "state" / "active.json").read_text())["sequence"] == 1000


def digest(archive: bytes) -> str:
    return hashlib.sha256(archive).hexdigest()


def test_arbitrary_bundle(running: Host) -> None:
    """Left to the signature, of the directive and of the bundle, and to the digest that the directive names."""
    plane, ours, theirs = running.plane, running.plane.maker, Maker()
    bundle = theirs.bundle("name:drop", sequence=1001)
    by_stranger = theirs.directive(bundle, 11)
    assert not stock.signed_by(by_stranger["envelope"], ours.key)
    plane.offer(by_stranger, bundle.archive)
    refused(running, "unknown_key")

    posing = theirs.directive(bundle, 12)
    posing["envelope"]["signatures"][0]["keyid"] = ours.signer.kid
    assert not stock.signed_by(posing["envelope"], ours.key)
    plane.offer(posing, bundle.archive)
    refused(running, "bad_signature")

    # even a directive of ours makes no bundle good that is not
    assert not stock.signed_by(stock.envelope_of(bundle.archive), ours.key)
    plane.offer(ours.directive(bundle, 13), bundle.archive)
    refused(running, "unknown_key")

    good = ours.bundle("name:drop", sequence=1002)
    files = stock.members(good.archive)
    other = files["manifest.json"].replace(b'"sequence":1002', b'"sequence":9999')
    forged = {**json.loads(files["manifest.dsse.json"]), "payload": base64.b64encode(other).decode()}
    assert not stock.signed_by(forged, ours.key)
    changed = stock.packed({**files, "manifest.json": other, "manifest.dsse.json": canonical(forged)})
    plane.offer(ours.directive(good, 14, bundle_sha256=digest(changed)), changed)
    refused(running, "bad_signature")

    # all of it well signed, but not the archive that was directed
    plane.offer(ours.directive(good, 15), ours.bundle("other:drop", sequence=1003).archive)
    refused(running, "bundle_digest_mismatch")


def canonical(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def test_rollback(running: Host) -> None:
    """Left to the sequence: an old bundle is as well signed as a new one."""
    ours = running.plane.maker
    older = ours.bundle("name:drop", sequence=999)
    assert stock.signed_by(stock.envelope_of(older.archive), ours.key)
    running.plane.offer(ours.directive(older, 11), older.archive)
    refused(running, "sequence_older")


def test_freeze(running: Host) -> None:
    """Left to the directive's expiry: what was sent an hour ago is well signed for ever."""
    ours = running.plane.maker
    kept_back = ours.bundle("name:drop", sequence=1001)
    stale = ours.directive(kept_back, 11, issued_at=now_ms() - 3_600_000, expires_at=now_ms() - 3_000_000)
    assert stock.signed_by(stale["envelope"], ours.key)
    running.plane.offer(stale, kept_back.archive)
    refused(running, "directive_expired")
    # nor does it help to claim that it is good for longer than ten minutes: it is not accepted from the start
    endless = ours.directive(kept_back, 12, expires_at=now_ms() + 86_400_000)
    assert stock.signed_by(endless["envelope"], ours.key)
    running.plane.offer(endless, kept_back.archive)
    refused(running, "directive_too_long_lived")


def test_replay(running: Host) -> None:
    """Left to `directive_seq`, which the host keeps across restarts."""
    ours, plane = running.plane.maker, running.plane
    first, second = ours.bundle("secret:drop", sequence=1000), ours.bundle("name:drop", sequence=1001)
    recorded = ours.directive(second, 9)
    assert stock.signed_by(recorded["envelope"], ours.key)
    plane.offer(recorded, second.archive)
    refused(running, "directive_replayed")
    other_content = ours.directive(second, 10)
    assert stock.signed_by(other_content["envelope"], ours.key)
    plane.offer(other_content, second.archive)
    refused(running, "directive_replayed")
    running.stop()
    running.start()
    again = ours.directive(first, 9, word="rollback")
    plane.offer(again)
    refused(running, "directive_replayed")


def test_mix_and_match(running: Host) -> None:
    """Left to the digests in the signed manifest, to the ids in what is signed, and to the type that DSSE signs along."""
    ours, plane = running.plane.maker, running.plane
    one = ours.bundle("name:drop", sequence=1001)
    two = ours.bundle("name:replace_with=X", sequence=1002, deployment_id=ANOTHER)
    for name in ("config.json", "approval.cred"):
        parts = {**stock.members(one.archive), name: stock.members(two.archive)[name]}
        mixed = stock.packed(parts)
        assert stock.signed_by(stock.envelope_of(mixed), ours.key), "the manifest is untouched"
        listed = json.loads(parts["manifest.json"])["files"][name]["sha256"]
        assert listed != digest(parts[name]), "anybody can see what it does not name"
        seq = 11 if name == "config.json" else 12
        plane.offer(ours.directive(one, seq, bundle_sha256=digest(mixed)), mixed)
        refused(running, "manifest_mismatch")

    crossed = ours.directive(one, 13, bundle_sha256=two.sha256, sequence=two.manifest["sequence"])
    assert stock.signed_by(crossed["envelope"], ours.key)
    assert stock.signed_by(stock.envelope_of(two.archive), ours.key)
    plane.offer(crossed, two.archive)
    refused(running, "wrong_deployment")

    as_directive = {**stock.envelope_of(one.archive), "payloadType": trust.PAYLOAD_DIRECTIVE}
    assert not stock.signed_by(as_directive, ours.key)
    plane.offer({"envelope": as_directive, "directive": ours.directive(one, 14)["directive"]}, one.archive)
    refused(running, "bad_signature")


def test_wrong_environment(running: Host) -> None:
    """Left to the environment, posture and agent named in what is signed."""
    ours, plane = running.plane.maker, running.plane
    here = ours.bundle("name:drop", sequence=1001)
    for seq, field, code in (
        (11, "environment_id", "directive_wrong_environment"),
        (12, "agent_id", "directive_wrong_agent"),
    ):
        elsewhere = ours.directive(here, seq, **{field: ELSEWHERE})
        assert stock.signed_by(elsewhere["envelope"], ours.key)
        plane.offer(elsewhere, here.archive)
        refused(running, code)
    there = ours.bundle("name:drop", sequence=1002, environment_id=ELSEWHERE)
    assert stock.signed_by(stock.envelope_of(there.archive), ours.key)
    plane.offer(ours.directive(there, 13), there.archive)
    refused(running, "wrong_environment")


def test_endless_data(running: Host) -> None:
    """Left to caps while reading: nothing that does not end is ever looked at, so no signature is asked."""
    ours, plane = running.plane.maker, running.plane
    sent = [0]

    def for_ever(start: bytes) -> Iterator[bytes]:
        yield start
        while True:
            sent[0] += 65536
            yield b"\0" * 65536

    bundle = ours.bundle("name:drop", sequence=1001)
    plane.bundles[bundle.manifest["deployment_id"]] = for_ever(bundle.archive)
    plane.offer(ours.directive(bundle, 11))
    refused(running, "fetch_refused: 200 answer_too_large")
    assert sent[0] < 64 * 1024 * 1024, "it hung up"

    before = running.log().count("answer_too_large")
    plane.key_set_version, plane.key_sets = 2, for_ever(b'{"envelopes": [')
    until(lambda: running.log().count("answer_too_large") > before)
    still_runs_the_first(running)
    plane.key_set_version, plane.key_sets = 1, []
    beats = len(plane.beats)
    until(lambda: len(plane.beats) > beats)


def key_set(version: int, keys: list[TrustedKey], *signers: trust.Signer) -> dict[str, Any]:
    payload = trust.make_keyset_payload(org_id=ORG, version=version, keys=keys, issued_at=now_ms())
    return trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, list(signers))


def as_status(maker: Maker, status: str) -> TrustedKey:
    at = None if status == "active" else now_ms() - 3_600_000
    return TrustedKey(maker.signer.kid, maker.key.public, status, now_ms() - 86_400_000, at)


def trusted_version(host: Host) -> int:
    return int(json.loads((host.home / "state" / "keys.json").read_text())["version"])


def test_key_compromise_with_rotation(running: Host) -> None:
    """Left to the key set: a stolen key's signature stays as good as ever, and only who trusts which key has changed."""
    plane, stolen, fresh, thief = running.plane, running.plane.maker, Maker(), Maker()
    rotated = key_set(2, [as_status(stolen, "retired"), fresh.key], stolen.signer)
    revoked = key_set(3, [as_status(stolen, "revoked"), fresh.key], fresh.signer)
    assert stock.signed_by(rotated, stolen.key)
    assert not stock.signed_by(rotated, fresh.key)
    assert stock.signed_by(revoked, fresh.key)
    plane.key_sets, plane.key_set_version = [rotated], 2
    until(lambda: trusted_version(running) == 2)
    still_runs_the_first(running)

    # retired: it signs no directive any more, and no key set
    bad = stolen.bundle("name:drop", sequence=1001)
    late = stolen.directive(bad, 11)
    assert stock.signed_by(late["envelope"], stolen.key), "a signature can't tell"
    plane.offer(late, bad.archive)
    refused(running, "directive_by_retired_key")
    takeover = key_set(3, [as_status(stolen, "active"), thief.key], stolen.signer)
    assert stock.signed_by(takeover, stolen.key)
    plane.key_sets, plane.key_set_version = [takeover], 3
    until(lambda: "keyset_unsigned: version 3" in running.log())
    assert trusted_version(running) == 2

    # revoked: nothing that it signs is accepted, whichever other key signs too
    plane.key_sets, plane.key_set_version = [revoked], 4
    until(lambda: trusted_version(running) == 3)
    plane.offer(stolen.directive(bad, 12), bad.archive)
    refused(running, "key_revoked")
    assert stock.signed_by(stock.envelope_of(bad.archive), stolen.key)
    assert not stock.signed_by(stock.envelope_of(bad.archive), fresh.key)
    plane.offer(fresh.directive(bad, 13), bad.archive)
    refused(running, "key_revoked")

    # back to a set in which it was good, past one, or on by itself: refused, each for its own reason
    for version, envelopes, code in (
        (5, [rotated], "keyset_lower"),
        (6, [key_set(5, [fresh.key], fresh.signer)], "keyset_gap"),
        (7, [key_set(4, [as_status(stolen, "active")], stolen.signer)], "keyset_unsigned: version 4"),
        (8, [key_set(4, [as_status(stolen, "active"), thief.key], thief.signer)], "keyset_unsigned: version 4"),
    ):
        plane.key_sets, plane.key_set_version = envelopes, version
        until(lambda c=code: c in running.log())
    assert trusted_version(running) == 3

    # what ran when it was revoked keeps running, a restart included, until something else is deployed by the new key
    running.stop()
    running.start()
    still_runs_the_first(running)
    good = fresh.bundle("name:replace_with=X", sequence=1002)
    plane.offer(fresh.directive(good, 14), good.archive)
    running.reported("activated")
    assert running.feed()["name"] == "X"


def test_a_bundle_of_another_posture_or_organization_or_with_another_sequence(running: Host) -> None:
    """Left to what the host knows of itself, and to the number that the directive names: all of it is well signed."""
    ours, plane = running.plane.maker, running.plane
    for seq, (change, code) in enumerate(
        [
            ({"environment_posture": "prod"}, "wrong_environment"),
            ({"organization_id": ANOTHER}, "wrong_organization"),
            ({"project_id": ANOTHER}, "wrong_environment"),
        ],
        start=11,
    ):
        files = stock.members(ours.bundle("name:drop", sequence=1001).archive)
        manifest = canonical({**json.loads(files["manifest.json"]), **change})
        envelope = trust.sign_envelope(manifest, trust.PAYLOAD_MANIFEST, [ours.signer])
        archive = stock.packed({**files, "manifest.json": manifest, "manifest.dsse.json": canonical(envelope)})
        assert stock.signed_by(envelope, ours.key)
        good = ours.bundle("name:drop", sequence=1001)
        plane.offer(ours.directive(good, seq, bundle_sha256=digest(archive)), archive)
        refused(running, code)
    other = ours.bundle("name:drop", sequence=1002)
    plane.offer(ours.directive(other, 14, sequence=1003), other.archive)
    refused(running, "wrong_sequence")
