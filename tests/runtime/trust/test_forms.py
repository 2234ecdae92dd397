"""What is signed, changed in one place and signed again: each form that is not the one there is gets refused by its own code."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
import rfc8785

from apps.runtime import trust
from apps.runtime.trust import TrustedKey, TrustError
from tests.runtime.making import AGENT, DEPLOYMENT, ENVIRONMENT, ORG, PROJECT, SPEC, Maker, now_ms

MAKER = Maker()
DAY = 24 * 3600 * 1000


def code_of(what: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TrustError) as error:
        what(*args, **kwargs)
    return error.value.code


# --- envelopes ---


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


GOOD = trust.sign_envelope(b"{}", "t", [MAKER.signer])
SIGNATURE = GOOD["signatures"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"payload": "e30"}, {"payload": "e30=\n"}, {"payload": "e31="}, {"payload": "-_8="}, {"payload": "é"}, {"payload": None},
        {"payload": b64(b"x" * (trust.MAX_ENVELOPE_BYTES + 1))}, {"payloadType": "u"}, {"payloadType": None},
        {"signatures": []}, {"signatures": {}}, {"signatures": [SIGNATURE] * 17}, {"signatures": [1]}, {"more": 1},
        {"signatures": [{"keyid": 1, "sig": SIGNATURE["sig"]}]}, {"signatures": [{"keyid": "k", "sig": None}]},
        {"signatures": [{"keyid": "k", "sig": "x"}]},
    ],
)  # fmt: skip
def test_an_envelope_of_another_form_is_refused(change: dict[str, Any]) -> None:
    assert trust.open_envelope(GOOD, "t", MAKER.keys) == b"{}"
    assert code_of(trust.open_envelope, {**GOOD, **change}, "t", MAKER.keys) == "bad_envelope"


def test_an_envelope_without_a_member_or_that_is_no_object_is_refused() -> None:
    for wrong in (None, [], "x", {}, {key: GOOD[key] for key in ("payload", "payloadType")}):
        assert code_of(trust.open_envelope, wrong, "t", MAKER.keys) == "bad_envelope"


@pytest.mark.parametrize(
    "data",
    [b'{"a":1,"a":1}', b"[1]", b"1", b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":1}\n', b"\xff", b"", b'{"a":1.0}', b'{"a":"\\u0041"}',
     b'{"a":9007199254740993}', b"[" * 100_000, b'{"a":NaN}'],
)  # fmt: skip
def test_what_is_not_the_one_canonical_form_of_an_object_is_refused(data: bytes) -> None:
    assert trust.load_canonical(b'{"a":1}', "c", "it") == {"a": 1}
    assert code_of(trust.load_canonical, data, "c", "it") == "c"


# --- directives ---


def directive(**change: Any) -> dict[str, Any]:
    made = MAKER.directive(None, 5, "stop")["directive"]
    runs = {
        "directive": "activate",
        "deployment_id": DEPLOYMENT,
        "bundle_sha256": "0" * 64,
        "sequence": 1,
    }
    return {**made, **(runs if change.pop("runs", True) else {}), **change}


def verified(body: dict[str, Any]) -> trust.Directive:
    envelope = trust.sign_envelope(rfc8785.dumps(body), trust.PAYLOAD_DIRECTIVE, [MAKER.signer])
    return trust.verify_directive(
        envelope, MAKER.keys, environment_id=ENVIRONMENT, agent_id=AGENT, now_ms=now_ms(), last_seq=0
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"more": 1}, "bad_directive"),
        ({"v": 2}, "directive_unknown_version"),
        ({"v": True}, "directive_unknown_version"),
        ({"v": "1"}, "directive_unknown_version"),
        ({"directive": "run"}, "bad_directive"),
        ({"runs": False, "directive": "run"}, "bad_directive"),
        ({"directive": None}, "bad_directive"),
        ({"environment_id": 1}, "bad_directive"),
        ({"agent_id": None}, "bad_directive"),
        ({"environment_id": AGENT}, "directive_wrong_environment"),
        ({"agent_id": ENVIRONMENT}, "directive_wrong_agent"),
        ({"directive_seq": "5"}, "bad_directive"),
        ({"directive_seq": True}, "bad_directive"),
        ({"directive_seq": -1}, "bad_directive"),
        ({"issued_at": None}, "bad_directive"),
        ({"expires_at": -5}, "bad_directive"),
        ({"expires_at": 1}, "bad_directive"),
        ({"deployment_id": None}, "bad_directive"),
        ({"deployment_id": "x"}, "bad_directive"),
        ({"deployment_id": DEPLOYMENT.upper()}, "bad_directive"),
        ({"for_deployment_id": "x" * 35 + " "}, "bad_directive"),
        ({"for_deployment_id": 1}, "bad_directive"),
        ({"bundle_sha256": "0" * 63}, "bad_directive"),
        ({"bundle_sha256": "G" * 64}, "bad_directive"),
        ({"bundle_sha256": "../" + "0" * 61}, "bad_directive"),
        ({"bundle_sha256": None}, "bad_directive"),
        ({"sequence": None}, "bad_directive"),
        ({"sequence": -1}, "bad_directive"),
        ({"runs": False, "bundle_sha256": "0" * 64}, "bad_directive"),
        ({"runs": False, "sequence": 1}, "bad_directive"),
    ],
)
def test_a_directive_of_another_form_is_refused(change: dict[str, Any], code: str) -> None:
    assert verified(directive()).directive == "activate"
    assert code_of(verified, directive(**change)) == code


def test_a_directive_without_a_member_is_refused() -> None:
    for name in directive():
        body = directive()
        del body[name]
        assert code_of(verified, body) == "bad_directive"


# --- key sets ---


def key_row(**change: Any) -> dict[str, Any]:
    return {**MAKER.key.as_dict(), **change}


def key_set(keys: Any, **change: Any) -> bytes:
    return rfc8785.dumps({"v": 1, "org_id": ORG, "version": 1, "keys": keys, "issued_at": now_ms(), **change})


OTHER = Maker()
WEAK = [
    bytes(32), b"\x01" + bytes(31), bytes([0xEC, *[0xFF] * 30, 0x7F]), bytes([0xED, *[0xFF] * 30, 0x7F]),
    bytes([0xEE, *[0xFF] * 30, 0x7F]), b"\x01" + bytes(30) + b"\x80",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [
        key_set([key_row()], v=2),
        key_set([key_row()], v=True),
        key_set([key_row()], org_id=None),
        key_set([key_row()], version="1"),
        key_set([key_row()], version=True),
        key_set({}),
        key_set([]),
        key_set([1]),
        key_set([key_row(), key_row()]),
        key_set(
            [TrustedKey(m.signer.kid, m.key.public).as_dict() for m in (Maker() for _ in range(trust.MAX_KEYS + 1))]
        ),
        key_set([key_row(public_key=OTHER.key.as_dict()["public_key"])]),  # what binds an id to its key
        key_set([key_row(kid=OTHER.signer.kid)]),
        key_set([key_row(algorithm="rsa")]),
        key_set([key_row(public_key=b64(b"x" * 31))]),
        key_set([key_row(public_key=None)]),
        key_set([key_row(status="fine")]),
        key_set([key_row(), {**OTHER.key.as_dict(), "status": "fine"}]),
        key_set([key_row(), {**OTHER.key.as_dict(), "public_key": b64(b"x" * 31), "kid": trust.kid_of(b"x" * 31)}]),
        key_set([key_row(not_after="soon")]),
        key_set([key_row(not_before=True)]),
        key_set([key_row(status="retired"), OTHER.key.as_dict() | {"status": "revoked"}]),
        *(key_set([key_row(), TrustedKey(trust.kid_of(point), point).as_dict()]) for point in WEAK),
    ],
)
def test_a_key_set_of_another_form_is_refused(payload: bytes) -> None:
    assert trust.parse_keyset(key_set([key_row()])).version == 1
    assert code_of(trust.parse_keyset, payload) == "bad_keyset"


def test_the_same_key_set_again_changes_nothing() -> None:
    envelope = trust.sign_envelope(key_set([key_row()]), trust.PAYLOAD_KEYSET, [MAKER.signer])
    first = trust.accept_keyset(None, [envelope])
    assert trust.accept_keyset(first, [envelope]) == first


# --- releases ---

RELEASE = {
    "version": "1.2.3", "sha256": "0" * 64, "size": 10, "path": "/release/a.pyz", "issued_at": 0, "expires_at": 0, "v": 1,
}  # fmt: skip


def released(status: str = "active", not_after: int | None = None, **change: Any) -> trust.AgentRelease:
    body = {**RELEASE, "issued_at": now_ms(), "expires_at": now_ms() + trust.RELEASE_LIFE_MS, **change}
    envelope = trust.sign_envelope(rfc8785.dumps(body), trust.PAYLOAD_RELEASE, [MAKER.signer])
    keys = {MAKER.signer.kid: replace(MAKER.key, status=status, not_after=not_after)}
    return trust.verify_release(envelope, keys, now_ms=now_ms())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"v": 2}, "release_unknown_version"),
        ({"v": True}, "release_unknown_version"),
        ({"more": 1}, "bad_release"),
        ({"size": "1"}, "bad_release"),
        ({"size": 0}, "bad_release"),
        ({"size": trust.MAX_RELEASE_BYTES + 1}, "bad_release"),
        ({"version": "1.2"}, "bad_release"),
        ({"version": "01.2.3"}, "bad_release"),
        ({"sha256": "0" * 63}, "bad_release"),
        ({"path": "/release/../x"}, "bad_release"),
        ({"path": "http://elsewhere/x"}, "bad_release"),
        ({"path": "/a?b"}, "bad_release"),
        ({"issued_at": now_ms() - DAY, "expires_at": now_ms() - DAY + 1000}, "release_expired"),
        ({"issued_at": now_ms() + DAY, "expires_at": now_ms() + DAY + 1000}, "release_not_yet_valid"),
        ({"expires_at": now_ms() + DAY}, "release_too_long_lived"),
        ({"status": "retired", "not_after": now_ms() - DAY}, "release_by_retired_key"),
        ({"status": "revoked"}, "key_revoked"),
    ],
)
def test_a_release_of_another_form_is_refused(change: dict[str, Any], code: str) -> None:
    assert released().version == "1.2.3"
    assert released("retired", now_ms()).version == "1.2.3"
    assert code_of(released, **change) == code


# --- credentials ---

CONFIG: dict[str, Any] = {"stages": {"redact": {"rules": ["secret:drop"]}}}


def credential(body: dict[str, Any]) -> str:
    payload = rfc8785.dumps(body)
    parts = (payload, MAKER.signer.sign(payload))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def checked(token: str, **other: Any) -> trust.CredentialClaims:
    claims = MAKER.claims(CONFIG)
    given: dict[str, Any] = {
        "keys": MAKER.keys, "spec_hash": claims.spec_hash, "environment_id": ENVIRONMENT, "posture": "dev", "at_ms": now_ms(),
        "capabilities": [], "config_hash": claims.config_hash, "subject": claims.subject, "org_id": ORG, "project_id": PROJECT,
    }  # fmt: skip
    return trust.verify_credential(token, **{**given, **other})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"v": 2}, "credential_unknown_version"),
        ({"v": True}, "credential_unknown_version"),
        ({"more": 1}, "credential_undecodable"),
        ({"kid": 1}, "credential_undecodable"),
        ({"subject": None}, "credential_undecodable"),
        ({"issued_at": "1"}, "credential_undecodable"),
        ({"expires_at": True}, "credential_undecodable"),
        ({"capabilities": "exec"}, "credential_undecodable"),
        ({"issued_by": [1]}, "credential_undecodable"),
        ({"org_id": PROJECT}, "credential_wrong_environment"),
        ({"project_id": ORG}, "credential_wrong_environment"),
        ({"environment_posture": "prod"}, "credential_wrong_environment"),
        ({"targets_sha256": "0" * 64}, "credential_wrong_subject"),
    ],
)
def test_a_credential_of_another_form_or_organization_is_refused(change: dict[str, Any], code: str) -> None:
    good = MAKER.claims(CONFIG).as_dict()
    assert checked(credential(good)).org_id == ORG
    other = {"expected_targets_sha256": MAKER.claims(CONFIG).targets_sha256}
    assert code_of(checked, credential({**good, **change}), **other) == code


def test_a_credential_issued_after_its_key_was_retired_is_refused() -> None:
    token = credential(MAKER.claims(CONFIG).as_dict())
    for age, refused in ((0, False), (DAY, True)):
        keys = {MAKER.signer.kid: replace(MAKER.key, status="retired", not_after=now_ms() - age)}
        if refused:
            assert code_of(checked, token, keys=keys) == "credential_by_retired_key"
        else:
            assert checked(token, keys=keys)


def test_another_spelling_of_the_same_signature_is_undecodable() -> None:
    token = credential(MAKER.claims(CONFIG).as_dict())
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(token[-1])
    other = token[:-1] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last ^ 1]
    signature = base64.urlsafe_b64decode(token.partition(".")[2] + "==")
    assert base64.urlsafe_b64decode(other.partition(".")[2] + "==") == signature
    assert checked(token).org_id == ORG
    assert code_of(checked, other) == "credential_undecodable"


def test_a_text_that_is_no_credential_is_undecodable() -> None:
    for text in ("", ".", "a.b.c", "é.é", "YQ==.YQ", "x" * 70_000, json.dumps({}), SPEC):
        assert code_of(checked, text) == "credential_undecodable"
