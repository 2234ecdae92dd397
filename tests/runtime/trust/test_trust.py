"""Key sets, directives and credentials: what is accepted, and each refusal."""

from dataclasses import replace

import pytest

from apps.runtime import trust
from apps.runtime.trust import TrustedKey, TrustError
from tests.runtime.making import AGENT, ENVIRONMENT, ORG, Maker, new_signer, now_ms


def code(call) -> str:
    with pytest.raises(TrustError) as caught:
        call()
    return caught.value.code


def listed(signer, status="active"):
    return TrustedKey(signer.kid, trust.public_key(signer.private_raw), status)


def key_set(version, keys, *signers, org=ORG):
    payload = trust.make_keyset_payload(org_id=org, version=version, keys=keys, issued_at=now_ms())
    return trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, list(signers))


def test_key_sets_are_followed_one_by_one_each_signed_by_the_one_before():
    a, b, c, stranger = (new_signer() for _ in range(4))
    one = key_set(1, [listed(a)], a)
    two = key_set(2, [listed(a, "retired"), listed(b)], a)
    three = key_set(3, [listed(a, "revoked"), listed(b), listed(c)], b)
    trusted = trust.accept_keyset(None, [one])
    assert trust.accept_keyset(trusted, [two, three]).version == 3
    assert code(lambda: trust.accept_keyset(None, [key_set(1, [listed(a)], b)])) == "keyset_unsigned"
    assert code(lambda: trust.accept_keyset(trusted, [key_set(2, [listed(stranger)], stranger)])) == "keyset_unsigned"
    assert code(lambda: trust.accept_keyset(trusted, [three])) == "keyset_gap"
    newest = trust.accept_keyset(trusted, [two, three])
    assert code(lambda: trust.accept_keyset(newest, [two])) == "keyset_lower"
    assert code(lambda: trust.accept_keyset(newest, [key_set(4, [listed(c)], a)])) == "keyset_unsigned"
    self_revoked = key_set(2, [listed(a, "revoked"), listed(b)], a)
    assert code(lambda: trust.accept_keyset(trusted, [self_revoked])) == "keyset_unsigned"
    other = key_set(2, [listed(a)], a, org="another")
    assert code(lambda: trust.accept_keyset(trusted, [other])) == "keyset_wrong_organization"


def verify(desired, keys, **more):
    given = {"environment_id": ENVIRONMENT, "agent_id": AGENT, "now_ms": now_ms(), **more}
    return trust.verify_directive(desired["envelope"], keys, **given)


def test_directives_are_refused_each_for_its_own_reason():
    maker, stranger = Maker(), Maker()
    bundle = maker.bundle()
    good = maker.directive(bundle, 10)
    found = verify(good, maker.keys, last_seq=9)
    assert found.directive == "activate"
    at = now_ms()
    for desired, more, expected in (
        (stranger.directive(bundle, 10), {}, "unknown_key"),
        (maker.directive(bundle, 10, environment_id="x"), {}, "directive_wrong_environment"),
        (maker.directive(bundle, 10, agent_id="x"), {}, "directive_wrong_agent"),
        (good, {"now_ms": at + 16 * 60_000}, "directive_expired"),
        (good, {"now_ms": at - 6 * 60_000}, "directive_not_yet_valid"),
        (maker.directive(bundle, 10, expires_at=at + 3_600_000), {}, "directive_too_long_lived"),
        (good, {"last_seq": 11}, "directive_replayed"),
        (good, {"last_seq": 10, "last_content_digest": "other"}, "directive_replayed"),
        (maker.directive(bundle, 10, word="explode"), {}, "bad_directive"),
        (maker.directive(None, 10, word="activate"), {}, "bad_directive"),
        (maker.directive(bundle, 10, word="stop"), {}, "bad_directive"),
    ):
        assert code(lambda d=desired, m=more: verify(d, maker.keys, **m)) == expected
    again = maker.directive(bundle, 10, issued_at=at - 1000, expires_at=at)
    verify(again, maker.keys, last_seq=10, last_content_digest=found.content_digest())
    tampered = {"envelope": {**good["envelope"], "payload": again["envelope"]["payload"]}}
    assert code(lambda: verify(tampered, maker.keys)) == "bad_signature"
    assert code(lambda: verify({"envelope": [1]}, maker.keys)) == "bad_envelope"


def test_a_credential_is_refused_in_the_order_that_is_promised():
    maker, config = Maker(), {}
    claims = maker.claims(config)

    def check(token, **more):
        given = {
            "keys": maker.keys, "spec_hash": claims.spec_hash, "environment_id": ENVIRONMENT, "posture": "dev",
            "at_ms": now_ms(), "capabilities": (), "config_hash": claims.config_hash, "subject": claims.subject,
            "org_id": claims.org_id, "project_id": claims.project_id, **more,
        }  # fmt: skip
        return trust.verify_credential(token, **given)

    # each claims set is wrong in one thing more than the next: the first refusal in the order shows
    wrongs = [
        ("credential_wrong_spec", {"spec_hash": "x"}),
        ("credential_wrong_environment", {"environment_id": "x"}),
        ("credential_wrong_environment", {"environment_posture": "prod"}),
        ("credential_wrong_environment", {"org_id": "x"}),
        ("credential_wrong_environment", {"project_id": "x"}),
        ("credential_expired", {"expires_at": 1}),
        ("credential_missing_capability", {}),
        ("credential_wrong_config", {"config_hash": "x"}),
        ("credential_wrong_subject", {"subject": "x"}),
    ]
    asks_for_more = [name for name, _ in wrongs].index("credential_missing_capability")
    for at, (expected, _) in enumerate(wrongs):
        changes = {k: v for _, wrong in wrongs[at:] for k, v in wrong.items()}
        wanted = ("action:exec",) if at <= asks_for_more else ()
        token = trust.mint_credential(replace(claims, **changes), maker.signer)
        assert code(lambda t=token, w=wanted: check(t, capabilities=w)) == expected
    good = trust.mint_credential(claims, maker.signer)
    assert check(good) == claims
    assert code(lambda: check("not.a.credential")) == "credential_undecodable"
    assert code(lambda: check("!!!.???")) == "credential_undecodable"
    unknown_version = trust.mint_credential(replace(claims, v=2, spec_hash="x"), maker.signer)
    assert code(lambda: check(unknown_version)) == "credential_unknown_version"
    payload, signature = good.split(".")
    other = "A" if signature[0] != "A" else "B"
    assert code(lambda: check(f"{payload}.{other}{signature[1:]}")) == "credential_bad_signature"
    assert code(lambda: check(good, keys=Maker().keys)) == "credential_bad_signature"
    assert code(lambda: check(good, expected_targets_sha256="0" * 64)) == "credential_wrong_subject"


def test_a_credential_by_a_revoked_key_is_refused_even_in_a_validly_signed_bundle():
    maker = Maker()
    claims = maker.claims({})
    token = trust.mint_credential(claims, maker.signer)

    def check(status):
        return trust.verify_credential(
            token, keys={maker.signer.kid: listed(maker.signer, status)}, spec_hash=claims.spec_hash,
            environment_id=ENVIRONMENT, posture="dev", at_ms=now_ms(), capabilities=(), config_hash=claims.config_hash,
            subject=claims.subject,
        )  # fmt: skip

    assert check("active") == check("retired") == claims
    assert code(lambda: check("revoked")) == "credential_bad_signature"


def test_a_directive_by_a_retired_key_is_accepted_only_if_it_was_issued_before():
    maker = Maker()
    at = now_ms()

    def keys(not_after):
        return {maker.signer.kid: replace(maker.key, status="retired", not_after=not_after)}

    desired = maker.directive(maker.bundle(), 10, issued_at=at, expires_at=at + 1000)
    for good in (at, at + 1000, at - 4 * 60_000):
        verify(desired, keys(good))
    for bad in (at - 6 * 60_000, 0, None):
        assert code(lambda b=bad: verify(desired, keys(b))) == "directive_by_retired_key"
