"""Creation, rotation and revocation of keys. Each publishes a new key set version, signed by a key of the previous one.

Lock order: organization → objects that depend on a key (environments) → keys → audit head.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db import transaction

from apps.access.policy import require_person
from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import require_row
from apps.core.errors import Conflict, StateConflict
from apps.core.fsm import advance, allowed_from
from apps.runtime import trust
from apps.runtime.faults import fault_point
from apps.signing import registry
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey
from apps.signing.services.key_use import key_set_version, opened, trusted
from apps.signing.vault import seal
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_organization

VERSION_ONE = 1
REASON_LENGTH = 1000


def make_first_key(*, actor: ActorRef, node: Any) -> None:
    """Create a new organization's first signing key and version 1 of its key set, signed by that key. In its
    transaction."""
    organization: Organization = node
    signer = _make_key(organization, clock.now())
    _publish(organization, VERSION_ONE, signer)
    audit.record_in(
        Scope(organization),
        action="signing_key.created",
        actor=actor,
        target=f"signing_key:{signer.kid}",
        details={"kid": signer.kid, "key_set_version": VERSION_ONE},
    )


def rotate(*, actor: Principal, scope: Scope, replacing: str | None = None, reason: str = "") -> SigningKey:
    """Create a new active key and retire the current one, which signs the new key set version. Returns the new key.

    With `replacing`, only while that is the active key: otherwise raises Conflict `already_rotated`. Raises NotFound,
    Forbidden `person_required`, Conflict `too_many_keys` if the set is full of keys that still verify, and VaultError if the
    current key can't be decrypted.
    """
    require_person(actor)
    with transaction.atomic():
        organization = lock_organization(scope.organization_id)
        former = _active(organization)
        if replacing not in (None, former.kid):
            raise Conflict(
                f"{former.kid} is already the active key.", code="already_rotated", extra={"kid": former.kid}
            )
        verifying = SigningKey.objects.filter(organization=organization).exclude(status=KeyStatus.REVOKED).count()
        if verifying >= trust.MAX_KEYS:
            raise Conflict(
                f"A key set names {trust.MAX_KEYS} keys at most: revoke retired keys that no running deployment uses.",
                code="too_many_keys",
            )
        signer = opened(former)
        now = clock.now()
        advance(former, "retire", not_after=_whole_ms(now))
        made = _make_key(organization, now)
        version = _publish(organization, key_set_version(organization.pk) + 1, signer)
        details = {"replaces": former.kid, "key_set_version": version, "reason": reason[:REASON_LENGTH]}
        audit.record_in(
            scope,
            action="signing_key.rotated",
            actor=actor.ref,
            target=f"signing_key:{made.kid}",
            details={"kid": made.kid, **details},
        )
        registry.keys_changed(organization.pk)
        rotated = SigningKey.objects.get(kid=made.kid)
        fault_point("signing.rotate.before_commit")
    fault_point("signing.rotate.after_commit")
    return rotated


def retire(*, scope: Scope, kid: str) -> SigningKey:
    """Retire a key. Only `rotate` retires the active key, so this succeeds only for a key that is already retired.

    Raises NotFound, Conflict `last_active_key`, and StateConflict for a revoked key.
    """
    with transaction.atomic():
        organization = lock_organization(scope.organization_id)
        key = _key(organization, kid)
        if key.status == KeyStatus.RETIRED.value:
            return key
        _refuse_last_active(key, "retired")
        raise StateConflict(str(key.status), KeyStatus.RETIRED.value, allowed_from(key))


def revoke(*, actor: Principal, scope: Scope, kid: str, reason: str = "") -> SigningKey:
    """Revoke `kid`: none of its signatures verify from now on, and deployments that depend on it end. Deletes its
    private part.

    No effect on a revoked key. Raises NotFound and Conflict `last_active_key`.
    """
    with transaction.atomic():
        organization = lock_organization(scope.organization_id)
        key = _key(organization, kid)
        if key.status == KeyStatus.REVOKED.value:
            return key
        _refuse_last_active(key, "revoked")
        for dependent in registry.dependents:
            dependent.lock(organization.pk)
        advance(
            key,
            "revoke",
            revoked_at=clock.now(),
            private_box=b"",
            wrapped_by="",
            reason=reason[:REASON_LENGTH],
        )
        done: dict[str, object] = {"reason": reason[:REASON_LENGTH]}
        for dependent in registry.dependents:
            done |= dependent.revoked(actor=actor.ref, organization_id=organization.pk, kid=kid, reason=reason)
        version = _publish(organization, key_set_version(organization.pk) + 1, opened(_active(organization)))
        audit.record_in(
            scope,
            action="signing_key.revoked",
            actor=actor.ref,
            target=f"signing_key:{kid}",
            details={"kid": kid, "key_set_version": version, **done},
        )
        registry.keys_changed(organization.pk)
        fault_point("signing.revoke.before_commit")
    fault_point("signing.revoke.after_commit")
    return key


def _key(organization: Organization, kid: str) -> SigningKey:
    return require_row(SigningKey, organization=organization, kid=kid)


def _active(organization: Organization) -> SigningKey:
    key: SigningKey | None = SigningKey.objects.filter(organization=organization, status=KeyStatus.ACTIVE).first()
    if key is None:
        raise Conflict("The organization has no active signing key.", code="no_active_key")
    return key


def _refuse_last_active(key: SigningKey, word: str) -> None:
    if key.status == KeyStatus.ACTIVE.value:
        raise Conflict(f"The last active key can't be {word}: rotate first.", code="last_active_key")


def _whole_ms(moment: dt.datetime) -> dt.datetime:
    """Truncate to milliseconds, the precision of times in signed documents."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _make_key(organization: Organization, now: dt.datetime) -> trust.Signer:
    private = trust.generate_private_key()
    public = trust.public_key(private)
    kid = trust.kid_of(public)
    name, box = seal(private, organization_id=organization.pk, kid=kid)
    SigningKey.objects.create(
        organization=organization,
        kid=kid,
        public_key=public,
        private_box=box,
        wrapped_by=name,
        not_before=_whole_ms(now),
    )
    return trust.Signer(kid, private)


def _listed(organization: Organization) -> list[trust.TrustedKey]:
    """Return the keys of the next version: all that still verify, then the newest revoked ones up to the limit.

    A key that is not listed does not verify either.
    """
    rows = list(SigningKey.objects.filter(organization=organization).order_by("-pk"))
    verifying = [row for row in rows if row.status != KeyStatus.REVOKED.value]
    revoked = [row for row in rows if row.status == KeyStatus.REVOKED.value]
    return [trusted(row) for row in (verifying + revoked)[: trust.MAX_KEYS]]


def _publish(organization: Organization, version: int, signer: trust.Signer) -> int:
    """Write the current key set as `version`, signed by a key that was active in the previous version."""
    payload = trust.make_keyset_payload(
        org_id=str(organization.pk), version=version, keys=_listed(organization), issued_at=clock.now_ms()
    )
    envelope = trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [signer])
    KeySetVersion.objects.create(organization=organization, version=version, envelope=envelope)
    return version
