"""What is signed, at the edges: the last value that is accepted and the first that is not; the exact content of a document."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
import rfc8785

from apps.runtime import trust
from apps.runtime.trust import TrustedKey, TrustError
from tests.runtime.making import AGENT, DEPLOYMENT, ENVIRONMENT, ORG, PROJECT, Maker

MAKER = Maker()
NOW = 1_800_000_000_000
SKEW = trust.CLOCK_SKEW_MS
CONFIG: dict[str, Any] = {"stages": {}}


def outcome(what: Any, *args: Any, **kwargs: Any) -> str:
    """`ok`, or the code of the refusal."""
    try:
        what(*args, **kwargs)
    except TrustError as error:
        return error.code
    return "ok"


# --- keys ---


def test_a_key_as_a_document_is_read_back_as_it_was() -> None:
    retired = replace(Maker().key, status="retired", not_before=5, not_after=9)
    assert retired.as_dict() == {
        "kid": retired.kid,
        "algorithm": "ed25519",
        "public_key": base64.b64encode(retired.public).decode(),
        "status": "retired",
        "not_before": 5,
        "not_after": 9,
    }
    payload = trust.make_keyset_payload(org_id=ORG, version=3, keys=[retired, MAKER.key], issued_at=NOW)
    assert trust.parse_keyset(payload) == trust.KeySet(
        ORG, 3, tuple(sorted((retired, MAKER.key), key=lambda key: key.kid))
    )


def test_a_retired_key_signs_in_time_up_to_the_clock_skew() -> None:
    key = replace(MAKER.key, status="retired", not_after=NOW)
    assert not key.signed_too_late(NOW + SKEW)
    assert key.signed_too_late(NOW + SKEW + 1)
    assert not replace(key, status="active").signed_too_late(NOW + SKEW + 1)
    assert not replace(key, not_after=None).signed_too_late(NOW + SKEW + 1)


def test_an_error_states_its_code_and_why() -> None:
    error = TrustError("bad_envelope", "why")
    assert (error.code, error.message, str(error)) == ("bad_envelope", "why", "bad_envelope: why")


def test_a_signer_does_not_print_its_private_key() -> None:
    assert repr(MAKER.signer) == f"Signer(kid={MAKER.signer.kid!r})"


# --- envelopes ---


def test_an_envelope_is_dsse_and_any_one_of_its_signers_is_enough() -> None:
    other = Maker()
    envelope = trust.sign_envelope(b'{"a":1}', "t", [other.signer, MAKER.signer])
    assert envelope["payload"] == base64.b64encode(b'{"a":1}').decode()
    assert envelope["payloadType"] == "t"
    assert [set(signature) for signature in envelope["signatures"]] == [{"keyid", "sig"}] * 2
    assert trust.open_envelope(envelope, "t", MAKER.keys) == b'{"a":1}'
    assert trust.open_envelope(envelope, "t", trust.KeySet(ORG, 1, (MAKER.key,))) == b'{"a":1}'
    revoked = {**MAKER.keys, other.signer.kid: replace(other.key, status="revoked")}
    assert trust.open_envelope(envelope, "t", revoked) == b'{"a":1}'
    assert outcome(trust.open_envelope, envelope, "t", {}) == "unknown_key"
    all_revoked = {kid: replace(key, status="revoked") for kid, key in {**MAKER.keys, **other.keys}.items()}
    assert outcome(trust.open_envelope, envelope, "t", all_revoked) == "key_revoked"


def test_an_object_that_names_a_key_twice_is_no_json_of_ours() -> None:
    assert json.loads('{"a":1,"b":{"a":2}}', object_pairs_hook=trust.unique_members) == {"a": 1, "b": {"a": 2}}
    with pytest.raises(ValueError, match="duplicate key"):
        json.loads('{"b":{"a":1,"a":2}}', object_pairs_hook=trust.unique_members)


def test_as_many_bytes_and_signatures_as_are_allowed_are_taken() -> None:
    most = trust.sign_envelope(b"x" * trust.MAX_ENVELOPE_BYTES, "t", [MAKER.signer])
    assert outcome(trust.open_envelope, most, "t", MAKER.keys) == "ok"
    sixteen = trust.sign_envelope(b"x", "t", [MAKER.signer] * 16)
    assert outcome(trust.open_envelope, sixteen, "t", MAKER.keys) == "ok"


# --- directives ---


def directive(**change: Any) -> trust.Directive:
    made = trust.Directive(ENVIRONMENT, AGENT, "activate", DEPLOYMENT, DEPLOYMENT, "0" * 64, 1, 5, NOW, NOW + 60_000)
    return replace(made, **change)


def verify(made: trust.Directive, **given: Any) -> trust.Directive:
    envelope = trust.sign_directive(made, MAKER.signer)
    place = {"environment_id": ENVIRONMENT, "agent_id": AGENT, "now_ms": NOW}
    return trust.verify_directive(envelope, given.pop("keys", MAKER.keys), **{**place, **given})


BARE = {"deployment_id": None, "bundle_sha256": None, "sequence": None}


@pytest.mark.parametrize(
    "change",
    [
        {"directive": "rollback"},
        {"directive": "stop", **BARE},
        {"directive": "none", **BARE, "for_deployment_id": None},
        {"sequence": 0},
        {"directive_seq": 0},
        {"sequence": 2**53 - 1, "directive_seq": 2**53 - 1},
        {"expires_at": NOW},
    ],
)
def test_each_directive_that_may_be_given_is_read_as_it_was_made(change: dict[str, Any]) -> None:
    assert verify(directive(**change)) == directive(**change)


@pytest.mark.parametrize(
    ("change", "now", "code"),
    [
        ({"expires_at": NOW + trust.DIRECTIVE_LIFE_MS}, NOW, "ok"),
        ({"expires_at": NOW + trust.DIRECTIVE_LIFE_MS + 1}, NOW, "directive_too_long_lived"),
        ({}, NOW + 60_000 + SKEW, "ok"),
        ({}, NOW + 60_000 + SKEW + 1, "directive_expired"),
        ({}, NOW - SKEW, "ok"),
        ({}, NOW - SKEW - 1, "directive_not_yet_valid"),
        ({"issued_at": NOW, "expires_at": NOW - 1}, NOW, "bad_directive"),
        ({"directive": "rollback", "bundle_sha256": None}, NOW, "bad_directive"),
        ({"directive": "none", **BARE, "sequence": 1}, NOW, "bad_directive"),
    ],
)
def test_a_directive_is_obeyed_up_to_the_edge_of_its_time(change: dict[str, Any], now: int, code: str) -> None:
    assert outcome(verify, directive(**change), now_ms=now) == code


def test_one_number_stands_for_one_directive() -> None:
    made = directive()
    digest = made.content_digest()
    assert directive(issued_at=NOW + 1, expires_at=NOW + 2).content_digest() == digest
    for change in ({"sequence": 2}, {"for_deployment_id": None}, {"directive_seq": 6}, {"bundle_sha256": "1" * 64}):
        assert directive(**change).content_digest() != digest
    assert outcome(verify, made, last_seq=5, last_content_digest=digest) == "ok"
    assert outcome(verify, made, last_seq=5, last_content_digest=None) == "ok"
    assert outcome(verify, made, last_seq=5, last_content_digest="0" * 64) == "directive_replayed"
    assert outcome(verify, made, last_seq=4, last_content_digest="0" * 64) == "ok"
    assert outcome(verify, made, last_seq=6, last_content_digest=digest) == "directive_replayed"


def test_a_directive_by_a_retired_key_is_obeyed_if_it_was_signed_in_time() -> None:
    for not_after, code in (
        (NOW - SKEW, "ok"),
        (NOW - SKEW - 1, "directive_by_retired_key"),
        (None, "directive_by_retired_key"),
    ):
        keys = {MAKER.signer.kid: replace(MAKER.key, status="retired", not_after=not_after)}
        assert outcome(verify, directive(), keys=keys) == code
    active = {MAKER.signer.kid: replace(MAKER.key, not_after=1)}
    assert outcome(verify, directive(), keys=active) == "ok"


# --- releases ---


def release(**change: Any) -> trust.AgentRelease:
    return replace(trust.AgentRelease("1.20.3", "0" * 64, 10, "/release/a.pyz", NOW, NOW + 60_000), **change)


def offered(made: trust.AgentRelease, *, now: int = NOW, keys: Any = MAKER.keys) -> trust.AgentRelease:
    return trust.verify_release(trust.sign_release(made, MAKER.signer), keys, now_ms=now)


@pytest.mark.parametrize(
    ("change", "now", "code"),
    [
        ({}, NOW, "ok"),
        ({"size": 1}, NOW, "ok"),
        ({"size": trust.MAX_RELEASE_BYTES}, NOW, "ok"),
        ({"size": trust.MAX_RELEASE_BYTES + 1}, NOW, "bad_release"),
        ({"expires_at": NOW + trust.RELEASE_LIFE_MS}, NOW, "ok"),
        ({"expires_at": NOW + trust.RELEASE_LIFE_MS + 1}, NOW, "release_too_long_lived"),
        ({}, NOW + 60_000 + SKEW, "ok"),
        ({}, NOW + 60_000 + SKEW + 1, "release_expired"),
        ({}, NOW - SKEW, "ok"),
        ({}, NOW - SKEW - 1, "release_not_yet_valid"),
        ({"path": "/a..b"}, NOW, "bad_release"),
    ],
)
def test_a_release_is_offered_up_to_the_edges(change: dict[str, Any], now: int, code: str) -> None:
    assert outcome(offered, release(**change), now=now) == code
    if code == "ok":
        assert offered(release(**change), now=now) == release(**change)


def test_a_release_by_a_retired_key_counts_if_it_was_signed_in_time() -> None:
    for not_after, code in (
        (NOW - SKEW, "ok"),
        (NOW - SKEW - 1, "release_by_retired_key"),
        (None, "release_by_retired_key"),
    ):
        keys = {MAKER.signer.kid: replace(MAKER.key, status="retired", not_after=not_after)}
        assert outcome(offered, release(), keys=keys) == code
    assert outcome(offered, release(), keys={MAKER.signer.kid: replace(MAKER.key, not_after=1)}) == "ok"


def test_versions_compare_as_numbers() -> None:
    assert trust.version_tuple("1.20.3") == (1, 20, 3)
    with pytest.raises(ValueError, match="three numbers"):
        trust.version_tuple("1.20")


# --- key sets ---


def signed_set(version: int, keys: list[TrustedKey], signers: list[Maker], org_id: str = ORG) -> dict[str, Any]:
    payload = trust.make_keyset_payload(org_id=org_id, version=version, keys=keys, issued_at=NOW)
    return trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [maker.signer for maker in signers])


def test_as_many_keys_as_are_allowed_are_taken() -> None:
    keys = [Maker().key for _ in range(trust.MAX_KEYS)]
    payload = trust.make_keyset_payload(org_id=ORG, version=1, keys=keys, issued_at=NOW)
    assert len(trust.parse_keyset(payload).keys) == trust.MAX_KEYS


def test_who_may_sign_the_next_key_set() -> None:
    one, two, three = Maker(), Maker(), Maker()
    retired = replace(two.key, status="retired", not_after=NOW)
    first = trust.accept_keyset(None, [signed_set(1, [one.key, retired], [one])])

    def follow(*envelopes: dict[str, Any]) -> str:
        return outcome(trust.accept_keyset, first, envelopes)

    assert follow(signed_set(2, [one.key, three.key], [one])) == "ok"
    assert follow(signed_set(2, [three.key], [one])) == "ok", "a key that is left out may name its successors"
    assert follow(signed_set(2, [one.key, three.key], [three, one])) == "ok", "one good signature is enough"
    assert follow(signed_set(2, [three.key], [three])) == "keyset_unsigned"
    assert follow(signed_set(2, [one.key, retired], [two])) == "keyset_unsigned", "a retired key names none"
    revoked = replace(one.key, status="revoked")
    assert follow(signed_set(2, [revoked, three.key], [one])) == "keyset_unsigned", "nor one that is revoked in it"
    assert follow(signed_set(3, [one.key], [one])) == "keyset_gap"
    assert follow(signed_set(1, [one.key], [one])) == "keyset_lower"
    assert follow(signed_set(0, [one.key], [one])) == "keyset_lower"
    assert follow(signed_set(2, [one.key], [one], AGENT)) == "keyset_wrong_organization"
    assert follow() == "ok"
    second = signed_set(2, [one.key, three.key], [one])
    assert follow(second, signed_set(3, [three.key], [three])) == "ok"
    assert trust.accept_keyset(first, [second, signed_set(3, [three.key], [three])]).version == 3
    # the one that is trusted already is passed over, and what comes after it is followed
    again = signed_set(1, sorted([one.key, retired], key=lambda key: key.kid), [one])
    assert trust.accept_keyset(first, [again, second]).version == 2


def test_who_may_sign_the_first_key_set() -> None:
    one, two = Maker(), Maker()
    assert outcome(trust.accept_keyset, None, [signed_set(7, [one.key], [one])]) == "ok"
    assert outcome(trust.accept_keyset, None, [signed_set(7, [one.key], [two])]) == "keyset_unsigned"
    revoked = replace(two.key, status="revoked")
    assert outcome(trust.accept_keyset, None, [signed_set(7, [one.key, revoked], [two])]) == "keyset_unsigned"
    assert outcome(trust.accept_keyset, None, []) == "keyset_unsigned"


# --- credentials ---


def checked(claims: trust.CredentialClaims, **given: Any) -> trust.CredentialClaims:
    facts: dict[str, Any] = {
        "keys": MAKER.keys, "spec_hash": claims.spec_hash, "environment_id": ENVIRONMENT, "posture": "dev", "at_ms": NOW,
        "capabilities": claims.capabilities, "config_hash": claims.config_hash, "subject": claims.subject,
    }  # fmt: skip
    return trust.verify_credential(trust.mint_credential(claims, MAKER.signer), **{**facts, **given})


def claims(**change: Any) -> trust.CredentialClaims:
    return replace(MAKER.claims(CONFIG), issued_at=NOW - 1000, expires_at=NOW + 1000, **change)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "ok"),
        ({"at_ms": NOW - 1000}, "ok"),
        ({"at_ms": NOW - 1001}, "credential_expired"),
        ({"at_ms": NOW + 1000}, "ok"),
        ({"at_ms": NOW + 1001}, "credential_expired"),
        ({"org_id": ORG, "project_id": PROJECT}, "ok"),
        ({"org_id": ORG}, "ok"),
        ({"project_id": PROJECT}, "ok"),
        ({"org_id": PROJECT}, "credential_wrong_environment"),
        ({"project_id": ORG}, "credential_wrong_environment"),
        ({"environment_id": AGENT}, "credential_wrong_environment"),
        ({"posture": "prod"}, "credential_wrong_environment"),
        ({"spec_hash": "sha256:0"}, "credential_wrong_spec"),
        ({"config_hash": "sha256:0"}, "credential_wrong_config"),
        ({"subject": "deployment:other"}, "credential_wrong_subject"),
        ({"capabilities": ["more"]}, "credential_missing_capability"),
        ({"capabilities": []}, "ok"),
        ({"keys": {}}, "credential_bad_signature"),
        ({"keys": trust.KeySet(ORG, 1, (MAKER.key,))}, "ok"),
        ({"keys": {MAKER.signer.kid: replace(Maker().key, kid=MAKER.signer.kid)}}, "credential_bad_signature"),
    ],
)
def test_a_credential_covers_exactly_what_it_states(given: dict[str, Any], code: str) -> None:
    assert outcome(checked, claims(), **given) == code
    if code == "ok":
        assert checked(claims(), **given) == claims()


def test_only_the_key_that_a_credential_names_mints_it() -> None:
    with pytest.raises(ValueError, match="the claims name another key"):
        trust.mint_credential(claims(), Maker().signer)


def test_what_is_no_text_or_too_much_text_is_no_credential() -> None:
    for token in (None, 5, b"x", ["x", "y"]):
        assert outcome(trust.decode_credential, token) == "credential_undecodable"
    long = trust.mint_credential(claims(issued_by=("x" * 65_536,)), MAKER.signer)
    assert outcome(trust.decode_credential, long) == "credential_undecodable"
    signature = base64.urlsafe_b64encode(bytes(64)).rstrip(b"=").decode()

    def token(body: Any) -> str:
        return f"{base64.urlsafe_b64encode(rfc8785.dumps(body)).rstrip(b'=').decode()}.{signature}"

    # of another version only the key's id is read
    found, raw, payload, tail = trust.decode_credential(token({"v": 2, "kid": "k"}))
    assert (found, raw, payload, tail) == (None, {"v": 2, "kid": "k"}, b'{"kid":"k","v":2}', bytes(64))
    assert trust.decode_credential(token({"v": True, "kid": "k"}))[0] is None
    assert outcome(trust.decode_credential, token({"v": 2})) == "credential_undecodable"
    assert trust.decode_credential(trust.mint_credential(claims(), MAKER.signer))[0] == claims()


def test_the_digest_of_targets_is_of_their_ids_in_order() -> None:
    expected = hashlib.sha256(b'["00000000-0000-0000-0000-000000000001","b"]').hexdigest()
    assert trust.targets_sha256(["b", uuid.UUID(int=1)]) == expected  # type: ignore[list-item]


def test_a_key_set_is_written_as_it_is_read_and_each_key_has_a_known_status() -> None:
    payload = trust.make_keyset_payload(org_id=ORG, version=3, keys=[MAKER.key], issued_at=NOW)
    value = {"v": 1, "org_id": ORG, "version": 3, "keys": [MAKER.key.as_dict()], "issued_at": NOW}
    assert payload == rfc8785.dumps(value)
    value["keys"] = [MAKER.key.as_dict(), {**Maker().key.as_dict(), "status": "fine"}]
    assert outcome(trust.parse_keyset, rfc8785.dumps(value)) == "bad_keyset"


@pytest.mark.parametrize("change", [{"version": 5}, {"sha256": None}, {"path": []}, {"issued_at": "1"}])
def test_a_release_with_a_member_of_another_type_is_refused(change: dict[str, Any]) -> None:
    assert outcome(offered, release(**change)) == "bad_release"
