"""Confirmation that an account belongs to the reader of mail at its address."""

from __future__ import annotations

import datetime as dt
import uuid

from django.contrib.auth.hashers import make_password
from django.db.models import Q

from apps.access.models import KnownAddress, Membership, MemberStatus, PasswordReset, PersonalToken, User
from apps.access.registry import roles_changed
from apps.access.services.grants import end_grant
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_rows
from apps.tenancy.models import Organization

INVITATION_DAYS = 7


def lock_organizations_of(user_id: uuid.UUID | None, *others: uuid.UUID) -> list[uuid.UUID]:
    """Lock and return the organizations in which a user is a member, and `others`, in one order, before the user's row."""
    ids = Membership.objects.filter(user_id=user_id).values_list("organization_id", flat=True) if user_id else []
    rows = Organization.objects.filter(pk__in={*ids, *others}, deleted_at__isnull=True).order_by("pk")
    return [row.pk for row in lock_rows(rows)]


def organizations_with(user_id: uuid.UUID, among: list[uuid.UUID]) -> list[uuid.UUID]:
    """Return those of the locked organizations `among` in which a user is a member, in their order.

    To lock them anew with the user's row would take an organization that the user joined meanwhile out of order.
    """
    rows = Membership.objects.filter(user_id=user_id, organization_id__in=among)
    found = set(rows.values_list("organization_id", flat=True))
    return [organization_id for organization_id in among if organization_id in found]


def record_for_person(*, action: str, actor: ActorRef, user: User, organizations: list[uuid.UUID], how: str) -> None:
    """Append one audit event in each of these organizations, and one in the system chain."""
    for organization_id in [*organizations, None]:
        audit.record(
            organization_id=organization_id,
            action=action,
            actor=actor,
            target=f"person:{user.pk}",
            details={"by": how},
        )


def end_credentials(user: User) -> None:
    """End every session, personal token and reset link of `user`, whose row is locked, and delete their known
    addresses."""
    now = clock.now()
    user.session_nonce = User.new_session_nonce()
    user.save(update_fields=["session_nonce"])
    PersonalToken.objects.filter(user=user, revoked_at__isnull=True).update(revoked_at=now)
    PasswordReset.objects.filter(user=user, used_at__isnull=True).update(used_at=now)
    KnownAddress.objects.filter(user=user).delete()


def prove(*, actor: ActorRef, user: User, organizations: list[uuid.UUID], how: str, encoded: str | None = None) -> None:
    """Confirm the address of `user`, and end credentials that another user may have added. In the caller's transaction,
    with `lock_organizations_of` and the user's row locked.

    The password becomes `encoded` (None: no usable one), sessions and tokens end, and each membership becomes an
    invitation for seven days, which the user accepts after signing in. No effect on a confirmed account. Memberships
    below a tombstone are left to the purge, which locks them in an order of its own.
    """
    if user.address_proved_at is not None:
        return
    now = clock.now()
    user.address_proved_at, user.origin_organization_id = now, None
    user.password = encoded or make_password(None)
    user.save(update_fields=["address_proved_at", "origin_organization_id", "password"])
    end_credentials(user)
    memberships = Membership.objects.filter(
        Q(project__isnull=True) | Q(project__deleted_at__isnull=True), user=user, organization__deleted_at__isnull=True
    )
    for row in memberships.order_by("pk"):
        end_grant(row, at=now)
        Membership.objects.filter(pk=row.pk).update(
            user=None,
            status=MemberStatus.INVITED,
            invitation_sha256=None,
            mailed_sha256=None,
            invitation_expires_at=now + dt.timedelta(days=INVITATION_DAYS),
            rev=row.rev + 1,
        )
    for organization_id in organizations:
        roles_changed(organization_id)
    record_for_person(action="person.address_proved", actor=actor, user=user, organizations=organizations, how=how)
