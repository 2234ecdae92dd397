"""What a host reads of a bundle exactly, and the forms of an archive that are nearly right."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest

from apps.runtime.bundle import MAX_BUNDLE_BYTES, BundleFacts, read_bundle, verify_bundle
from apps.runtime.trust import TrustError
from tests.runtime.making import DEPLOYMENT, ENVIRONMENT, ORG, PROJECT, Maker, acting, members, packed, signed_again


def refusal(archive: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        read_bundle(archive)
    return caught.value.code


def test_every_fact_of_a_verified_bundle_is_in_it() -> None:
    maker = Maker()
    config: dict[str, Any] = {"stages": {}}
    made = maker.bundle(spec=acting("http_post:https://h.example/in"), config=config, sequence=7)
    contents = read_bundle(made.archive)
    found = verify_bundle(
        contents, keys=maker.keys, expected_sha256=made.sha256, environment_id=ENVIRONMENT, posture="dev", org_id=ORG,
        project_id=PROJECT, deployment_id=DEPLOYMENT, sequence=7,
    )  # fmt: skip
    assert contents.sha256 == found.sha256 == made.sha256
    assert found.manifest == made.manifest == contents.json("manifest.json")
    assert found.manifest["environment_posture"] == "dev"
    assert found.plan == contents.json("plan.json")
    assert found.config == contents.json("config.json")
    assert found.spec_kv == contents.files["spec.kv"].decode()
    assert found.capabilities == ("action:http_post",)
    assert (found.sequence, found.deployment_id, found.approved_by) == (7, DEPLOYMENT, ("rita",))
    assert {name: value for name, value in found.manifest.items() if name.endswith("_id")} == {
        "organization_id": ORG,
        "project_id": PROJECT,
        "environment_id": ENVIRONMENT,
        "deployment_id": DEPLOYMENT,
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("/" + "a" * 90 + "/" + "b" * 90, "bundle_path_escape"),
        ("a" * 90 + "/.." + "/" + "b" * 90, "bundle_path_escape"),
        ("a" * 90 + "/" + "b" * 90, "bundle_malformed"),
        ("a\\b", "bundle_path_escape"),
        ("a/..", "bundle_path_escape"),
        ("a..b", "bundle_malformed"),
    ],
)
def test_a_members_whole_path_is_looked_at(name: str, code: str) -> None:
    assert refusal(packed({name: b"x"})) == code


def _with_header(archive: bytes, at: int, data: bytes) -> bytes:
    """`archive` with other bytes in its first header, whose sum is made right again."""
    header = bytearray(archive[:512])
    header[at : at + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + archive[512:]


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (156, b"1"),
        (156, b"5"),
        (157, b"x"),
        (124, b"\0" * 12),
        (124, b"00000000008\0"),
        (124, b"-0000000001\0"),
        (257, b"gnutar"),
    ],
)
def test_a_header_of_another_form_is_refused(at: int, data: bytes) -> None:
    archive = Maker().bundle().archive
    assert _with_header(archive, 0, archive[:1]) == archive
    assert refusal(_with_header(archive, at, data)) == "bundle_malformed"


def test_the_largest_archive_is_looked_into() -> None:
    assert refusal(b"\0" * MAX_BUNDLE_BYTES) == "bundle_malformed"
    assert refusal(b"\0" * (MAX_BUNDLE_BYTES + 1)) == "bundle_too_large"


@pytest.mark.parametrize("given", ["", "x"])
def test_an_empty_value_that_is_given_must_match_too(given: str) -> None:
    maker = Maker()
    contents = read_bundle(maker.bundle().archive)
    names: tuple[tuple[str, Any], ...] = (("org_id", given), ("project_id", given), ("posture", given), ("sequence", 0))
    for name, value in names:
        with pytest.raises(TrustError, match=r"^wrong_"):
            verify_bundle(contents, keys=maker.keys, **{name: value})
    with pytest.raises(TrustError, match="bundle_digest_mismatch"):
        verify_bundle(contents, keys=maker.keys, expected_sha256=given)


def test_a_credential_that_is_no_text_is_undecodable() -> None:
    maker = Maker()
    files = {**members(maker.bundle().archive), "approval.cred": b"\xff"}
    with pytest.raises(TrustError, match="credential_undecodable"):
        verify_bundle(read_bundle(signed_again(files, maker, {})), keys=maker.keys)


def test_the_facts_of_a_bundle_and_what_its_spec_compiles_to_make_its_inputs() -> None:
    facts = {field.name: f"{field.name} of it" for field in fields(BundleFacts)}
    inputs = BundleFacts(**facts).with_pipeline(spec_kv="kv", plan={"p": 1})  # type: ignore[arg-type]
    assert asdict(inputs) == {**facts, "spec_kv": "kv", "plan": {"p": 1}}
