"""A key's life: made, retired by its successor, revoked. Each change is a new version of the key set, signed by the one before.

Lock order: organization → what hangs on a key (environments) → keys → audit head.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db import transaction

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_row
from apps.core.errors import Conflict, NotFound, StateConflict
from apps.core.fsm import advance, allowed_from
from apps.runtime import trust
from apps.runtime.faults import fault_point
from apps.signing import registry
from apps.signing.models import KeySetVersion, KeyStatus, SigningKey
from apps.signing.services.reading import key_set_version, opened, trusted
from apps.signing.vault import seal
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope

VERSION_ONE = 1
REASON_LENGTH = 1000


def make_first_key(*, actor: ActorRef, node: Any) -> None:
    """A new organization's first signing key, and version 1 of its key set, which signs itself. In its transaction."""
    organization: Organization = node
    signer = _make_key(organization, clock.now())
    _publish(organization, VERSION_ONE, signer)
    _record(organization, actor, "signing_key.created", signer.kid, {"key_set_version": VERSION_ONE})


def rotate(*, actor: Principal, scope: Scope, replacing: str | None = None, reason: str = "") -> SigningKey:
    """A new active key; the former becomes retired and signs the version of the key set that says so. Answers the new one.

    With `replacing`, only while that is the active key: Conflict `already_rotated` otherwise. Raises NotFound,
    Conflict `too_many_keys` when the set can hold no more keys that still verify, VaultError when the former can't be opened.
    """
    with transaction.atomic():
        organization = _lock(scope)
        former = _active(organization)
        if replacing not in (None, former.kid):
            raise Conflict(f"{former.kid} took over already.", code="already_rotated", extra={"kid": former.kid})
        good = SigningKey.objects.filter(organization=organization).exclude(status=KeyStatus.REVOKED).count()
        if good >= trust.MAX_KEYS:
            raise Conflict(
                f"A key set names {trust.MAX_KEYS} keys at most: revoke retired ones that nothing runs under any more.",
                code="too_many_keys",
            )
        signer = opened(former)
        now = clock.now()
        advance(former, "retire", not_after=_whole_ms(now))
        made = _make_key(organization, now)
        version = _publish(organization, key_set_version(organization.pk) + 1, signer)
        details = {"replaces": former.kid, "key_set_version": version, "reason": reason[:REASON_LENGTH]}
        _record(organization, actor.ref, "signing_key.rotated", made.kid, details)
        registry.keys_changed(organization.pk)
        rotated = SigningKey.objects.get(kid=made.kid)
        fault_point("signing.rotate.before_commit")
    fault_point("signing.rotate.after_commit")
    return rotated


def retire(*, scope: Scope, kid: str) -> SigningKey:
    """Take a key out of use for signing. There is one active key and `rotate` is what retires it, so by itself this holds
    only for one that is retired already.

    Raises NotFound, Conflict `last_active_key`, StateConflict from `revoked`.
    """
    with transaction.atomic():
        organization = _lock(scope)
        key = _key(organization, kid)
        if key.status == KeyStatus.RETIRED.value:
            return key
        _refuse_last_active(key, "retired")
        raise StateConflict(str(key.status), KeyStatus.RETIRED.value, allowed_from(key))


def revoke(*, actor: Principal, scope: Scope, kid: str, reason: str = "") -> SigningKey:
    """Let `kid` verify nothing from now on, and end what is on its way under it. Its private part is destroyed.

    One that is revoked already stays so. Raises NotFound, Conflict `last_active_key`.
    """
    with transaction.atomic():
        organization = _lock(scope)
        key = _key(organization, kid)
        if key.status == KeyStatus.REVOKED.value:
            return key
        _refuse_last_active(key, "revoked")
        for room in registry.dependents():
            room.lock(organization.pk)
        advance(
            key,
            "revoke",
            revoked_at=clock.now(),
            private_box=b"",
            wrapped_by="",
            reason=reason[:REASON_LENGTH],
        )
        done: dict[str, object] = {"reason": reason[:REASON_LENGTH]}
        for room in registry.dependents():
            done |= room.revoked(actor=actor.ref, organization_id=organization.pk, kid=kid, reason=reason)
        version = _publish(organization, key_set_version(organization.pk) + 1, opened(_active(organization)))
        _record(organization, actor.ref, "signing_key.revoked", kid, {"key_set_version": version, **done})
        registry.keys_changed(organization.pk)
        fault_point("signing.revoke.before_commit")
    fault_point("signing.revoke.after_commit")
    return key


def _lock(scope: Scope) -> Organization:
    """The living organization, locked: two changes of its keys never interleave, and none goes with its deletion."""
    organization: Organization | None = lock_row(
        Organization.objects.filter(pk=scope.organization_id, deleted_at__isnull=True)
    )
    if organization is None:
        raise NotFound()
    return organization


def _key(organization: Organization, kid: str) -> SigningKey:
    key: SigningKey | None = SigningKey.objects.filter(organization=organization, kid=kid).first()
    if key is None:
        raise NotFound()
    return key


def _active(organization: Organization) -> SigningKey:
    key: SigningKey | None = SigningKey.objects.filter(organization=organization, status=KeyStatus.ACTIVE).first()
    if key is None:
        raise Conflict("The organization has no active signing key.", code="no_active_key")
    return key


def _refuse_last_active(key: SigningKey, word: str) -> None:
    if key.status == KeyStatus.ACTIVE.value:
        raise Conflict(f"The last active key can't be {word}: rotate first.", code="last_active_key")


def _whole_ms(moment: dt.datetime) -> dt.datetime:
    """As signed documents say it: times there are whole milliseconds."""
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
    """The keys that the next version names: all that verify something, then as many revoked ones, newest first, as fit.

    A key that is not named verifies nothing either.
    """
    rows = list(SigningKey.objects.filter(organization=organization).order_by("-pk"))
    good = [row for row in rows if row.status != KeyStatus.REVOKED.value]
    gone = [row for row in rows if row.status == KeyStatus.REVOKED.value]
    return [trusted(row) for row in (good + gone)[: trust.MAX_KEYS]]


def _publish(organization: Organization, version: int, signer: trust.Signer) -> int:
    """Write the key set as it is now, as `version`, signed by a key that was active in the version before."""
    payload = trust.make_keyset_payload(
        org_id=str(organization.pk), version=version, keys=_listed(organization), issued_at=clock.now_ms()
    )
    envelope = trust.sign_envelope(payload, trust.PAYLOAD_KEYSET, [signer])
    KeySetVersion.objects.create(organization=organization, version=version, envelope=envelope)
    return version


def _record(organization: Organization, actor: ActorRef, action: str, kid: str, details: dict[str, object]) -> None:
    audit.record(
        organization_id=organization.pk,
        action=action,
        actor=actor,
        target=f"signing_key:{kid}",
        scope={"organization_id": organization.pk},
        details={"kid": kid, **details},
    )
