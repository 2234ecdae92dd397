"""What a host refuses of an archive."""

import io
import tarfile

import pytest

from apps.runtime.bundle import MAX_BUNDLE_BYTES, MEMBERS, read_bundle, verify_bundle
from apps.runtime.trust import TrustedKey, TrustError
from tests.runtime.making import ENVIRONMENT, Maker


def refusal(archive, keys, **expected) -> str:
    with pytest.raises(TrustError) as caught:
        verify_bundle(read_bundle(archive), keys=keys, **expected)
    return caught.value.code


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def packed(files: dict[str, bytes], **changes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(files[name]), 0o644, 0
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


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


def test_every_changed_byte_is_refused():
    maker = Maker()
    archive = maker.bundle().archive
    for at in range(0, len(archive), 41):
        changed = bytearray(archive)
        changed[at] ^= 1
        assert refusal(bytes(changed), maker.keys)


@pytest.mark.parametrize(
    ("wrong", "expected", "code"),
    [
        ({}, {"environment_id": "another"}, "wrong_environment"),
        ({}, {"posture": "prod"}, "wrong_environment"),
        ({}, {"org_id": "another"}, "wrong_organization"),
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
