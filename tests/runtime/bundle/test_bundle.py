"""What a host refuses of an archive."""

import hashlib
import io
import tarfile
from dataclasses import replace
from typing import Any

import pytest

from apps.runtime import trust
from apps.runtime.bundle import MAX_BUNDLE_BYTES, MEMBERS, BuiltBundle, read_bundle, verify_bundle
from apps.runtime.ops import KINDS
from apps.runtime.trust import TrustedKey, TrustError
from tests.runtime.making import AGENT, ENVIRONMENT, SPEC, Maker, acting, members, now_ms, packed, signed_again
from tests.runtime.scratch_op import SCRATCH


def refusal(archive, keys, **expected) -> str:
    with pytest.raises(TrustError) as caught:
        verify_bundle(read_bundle(archive), keys=keys, **expected)
    return caught.value.code


def test_the_same_inputs_give_the_same_bytes_and_they_verify():
    maker = Maker()
    one = maker.bundle(built_at_ms=1_800_000_000_000, issued_at=1, expires_at=2_000_000_000_000)
    two = maker.bundle(built_at_ms=1_800_000_000_000, issued_at=1, expires_at=2_000_000_000_000)
    assert one.archive == two.archive
    assert tuple(members(one.archive)) == MEMBERS
    assert packed(members(one.archive)) == one.archive
    found = verify_bundle(
        read_bundle(one.archive), keys=maker.keys, expected_sha256=one.sha256, environment_id=ENVIRONMENT
    )
    assert found.approved_by == ("rita",)


CHANGED = {
    "form": {"bundle_malformed", "bundle_path_escape"},
    "approval.cred": {"manifest_mismatch"},
    "config.json": {"manifest_mismatch"},
    "manifest.dsse.json": {"bad_envelope", "bad_signature", "unknown_key"},
    "manifest.json": {"manifest_mismatch"},
    "plan.json": {"manifest_mismatch"},
    "spec.kv": {"manifest_mismatch"},
}
"""The codes for a changed byte: of a member's content, or of the form of the archive."""


def test_every_changed_byte_is_refused():
    maker = Maker()
    archive = maker.bundle().archive
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        contents = {m.name: range(m.offset_data, m.offset_data + m.size) for m in tar}
    found: dict[str, set[str]] = {}
    for at in range(0, len(archive), 23):
        changed = bytearray(archive)
        changed[at] ^= 1
        where = next((name for name, part in contents.items() if at in part), "form")
        found.setdefault(where, set()).add(refusal(bytes(changed), maker.keys))
    assert set(found) == set(CHANGED)
    assert {where: codes - CHANGED[where] for where, codes in found.items()} == {where: set() for where in found}


@pytest.mark.parametrize(
    ("wrong", "expected", "code"),
    [
        ({}, {"environment_id": "another"}, "wrong_environment"),
        ({}, {"posture": "prod"}, "wrong_environment"),
        ({}, {"org_id": "another"}, "wrong_organization"),
        ({}, {"project_id": "another"}, "wrong_environment"),
        ({}, {"deployment_id": "another"}, "wrong_deployment"),
        ({}, {"sequence": 1}, "wrong_sequence"),
        ({}, {"expected_sha256": "0" * 64}, "bundle_digest_mismatch"),
        ({"expires_at": 5}, {}, "credential_expired"),
        ({"issued_at": 2**50}, {}, "credential_expired"),
        ({"spec_hash": "sha256:0"}, {}, "credential_wrong_spec"),
        ({"config_hash": "sha256:0"}, {}, "credential_wrong_config"),
        ({"subject": "deployment:other"}, {}, "credential_wrong_subject"),
        ({"environment_posture": "prod"}, {}, "credential_wrong_environment"),
    ],
)
def test_what_does_not_belong_here_is_refused_with_its_own_code(wrong, expected, code):
    maker = Maker()
    assert refusal(maker.bundle(**wrong).archive, maker.keys, **expected) == code


def test_keys_that_are_foreign_or_revoked_verify_nothing():
    maker = Maker()
    archive = maker.bundle().archive
    assert refusal(archive, Maker().keys) == "unknown_key"
    revoked = TrustedKey(maker.signer.kid, maker.key.public, "revoked")
    assert refusal(archive, {maker.signer.kid: revoked}) == "key_revoked"
    impostor = TrustedKey(maker.signer.kid, Maker().key.public)
    assert refusal(archive, {maker.signer.kid: impostor}) == "bad_signature"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "..\\evil"])
def test_a_path_that_leads_out_is_refused(name):
    maker = Maker()
    files = {**members(maker.bundle().archive), name: b"x"}
    assert refusal(packed(files), maker.keys) == "bundle_path_escape"


def test_links_extra_missing_and_repeated_members_and_trailing_bytes_are_refused():
    maker = Maker()
    archive = maker.bundle().archive
    files = members(archive)
    assert refusal(packed({**files, "extra": b""}), maker.keys) == "bundle_malformed"
    assert refusal(packed({n: d for n, d in files.items() if n != "plan.json"}), maker.keys) == "bundle_malformed"
    assert refusal(packed(files, type=tarfile.SYMTYPE, linkname="x"), maker.keys) == "bundle_malformed"
    assert refusal(packed(files, mode=0o755), maker.keys) == "bundle_malformed"
    assert refusal(archive + b"\0" * 512, maker.keys) == "bundle_malformed"
    assert refusal(archive[:-1024] + packed({"spec.kv": b"x"}), maker.keys) == "bundle_malformed"
    assert refusal(b"\0" * (MAX_BUNDLE_BYTES + 1), maker.keys) == "bundle_too_large"
    assert refusal(b"", maker.keys) == "bundle_malformed"
    assert refusal(packed({**files, "approval.cred": b"x" * 70_000}), maker.keys) == "bundle_too_large"


def test_a_config_or_plan_swapped_in_from_another_bundle_is_refused():
    maker = Maker()
    mine, other = members(maker.bundle("a:drop").archive), members(maker.bundle("b:drop").archive)
    for name in ("config.json", "approval.cred", "manifest.json"):
        assert refusal(packed({**mine, name: other[name]}), maker.keys) == "manifest_mismatch"


# --- swapped, and signed again: what only the last checks find ---


def test_a_part_of_another_bundle_is_refused_although_the_manifest_is_signed_again() -> None:
    maker = Maker()
    one, two = (
        members(maker.bundle("a:drop").archive),
        members(maker.bundle("b:hash", spec=SPEC.replace("orders", "x")).archive),
    )

    def code(parts: dict[str, bytes], **change: Any) -> str:
        with pytest.raises(trust.TrustError) as error:
            verify_bundle(read_bundle(signed_again(parts, maker, change)), keys=maker.keys)
        return error.value.code

    assert verify_bundle(read_bundle(signed_again(one, maker, {})), keys=maker.keys)
    assert code({**one, "spec.kv": two["spec.kv"]}) == "spec_mismatch"
    assert code({**one, "plan.json": two["plan.json"]}) == "spec_mismatch"  # the plan is what runs
    assert code({**one, "spec.kv": one["spec.kv"] + b"# more\n"}) == "spec_mismatch"
    assert code({**one, "spec.kv": b"\xff"}) == "spec_not_understood"
    assert code({**one, "config.json": two["config.json"]}) == "config_mismatch"
    assert code({**one, "config.json": b"[]"}) == "bundle_malformed"
    assert code({**one, "approval.cred": two["approval.cred"]}) == "credential_wrong_spec"
    assert code(one, organization_id=AGENT) == "credential_wrong_environment"
    assert code(one, project_id=AGENT) == "credential_wrong_environment"
    assert code(one, deployment_id=AGENT) == "credential_wrong_subject"
    for change in (
        {"v": 2}, {"v": True}, {"sequence": "1"}, {"sequence": True}, {"built_at": None}, {"more": 1}, {"sequence": ...},
        {"organization_id": 1}, {"files": []}, {"files": {}},
    ):  # fmt: skip
        assert code(one, **change) == "manifest_mismatch"


def newer_bundle(maker: Maker, monkeypatch: pytest.MonkeyPatch, **more: Any) -> BuiltBundle:
    """A bundle that a control plane built which knows an op more than this host."""
    with monkeypatch.context() as newer:
        newer.setitem(KINDS, SCRATCH.name, SCRATCH)
        return maker.bundle(spec=acting(SCRATCH.name), config={"stages": {"s0": {"keep": ["id"]}}}, **more)


def test_a_host_that_is_older_than_an_op_reports_that_it_does_not_understand_the_spec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maker = Maker()
    bundle = newer_bundle(maker, monkeypatch)
    with pytest.raises(TrustError) as error:
        verify_bundle(read_bundle(bundle.archive), keys=maker.keys)
    assert error.value.code == "spec_not_understood"
    assert "line 9: unknown_op: There is no op 'scratch_keep'." in error.value.message
    # only the signer can make a host report that
    assert refusal(packed({**members(bundle.archive), "spec.kv": b"x"}), maker.keys) == "manifest_mismatch"


def test_a_spec_with_keys_of_a_later_version_is_not_understood_either_and_they_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maker = Maker()
    files = members(maker.bundle("a:drop").archive)
    later = files["spec.kv"] + b"".join(b"single_ring.later.%d=1\n" % number for number in range(7))
    spec_hash = "sha256:" + hashlib.sha256(later).hexdigest()
    with pytest.raises(TrustError) as error:
        verify_bundle(
            read_bundle(signed_again({**files, "spec.kv": later}, maker, {"spec_hash": spec_hash})), keys=maker.keys
        )
    assert error.value.code == "spec_not_understood"
    assert "unknown_key: single_ring.later.0 is not known" in error.value.message
    assert error.value.message.endswith("and 2 more")


def test_a_bundle_built_after_its_key_was_retired_is_refused() -> None:
    maker = Maker()
    contents = read_bundle(maker.bundle("a:drop").archive)
    for age, code in ((0, None), (3_600_000, "bundle_by_retired_key")):
        keys = {maker.signer.kid: replace(maker.key, status="retired", not_after=now_ms() - age)}
        if code is None:
            assert verify_bundle(contents, keys=keys)
        else:
            with pytest.raises(trust.TrustError, match=code):
                verify_bundle(contents, keys=keys)
