"""Password resets by one-time link."""

from __future__ import annotations

import datetime as dt
import secrets

from django.db import transaction
from django.db.models import Q

from apps.access.models import MailKind, PasswordReset, User, account_name
from apps.access.services.mail import RESET_LASTS, digest_of, request_mail
from apps.access.services.proofs import end_credentials, lock_organizations_of, prove, record_for_person
from apps.access.services.sign_in import person_ref
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import delete_in_chunks, lock_row
from apps.core.errors import NotFound
from apps.core.secrets import Secret


@transaction.atomic
def request_password_reset(*, email: str) -> None:
    """Request a mailed link. The account is looked up when the mail is sent, so response and time are the same for
    every address."""
    request_mail(MailKind.PASSWORD_RESET, email=account_name(email))


@transaction.atomic
def make_reset_link(*, actor: ActorRef, email: str) -> tuple[PasswordReset, Secret]:
    """Create a one-time token for platform staff to hand over, valid for an hour. Raises NotFound if there is no active
    account."""
    user = User.objects.filter(email=account_name(email), is_active=True).first()
    if user is None:
        raise NotFound("There is no active account with that address.")
    token = secrets.token_urlsafe(32)
    row = PasswordReset.objects.create(user=user, sha256=digest_of(token), expires_at=clock.now() + RESET_LASTS)
    audit.record(organization_id=None, action="password.reset_link_made", actor=actor, target=f"person:{user.pk}")
    return row, Secret(token)


def open_reset(token: str) -> PasswordReset | None:
    """Return the reset of this link, or None if it was used, has expired, was replaced or never existed."""
    return (
        PasswordReset.objects.select_related("user")
        .filter(sha256=digest_of(token), used_at__isnull=True, expires_at__gt=clock.now(), user__is_active=True)
        .first()
    )


def delete_ended_resets(*, ended_before: dt.datetime) -> int:
    """Delete the links used or expired before `ended_before`. Returns their number. Their audit events stay."""
    return delete_in_chunks(PasswordReset.objects.filter(Q(used_at__lt=ended_before) | Q(expires_at__lt=ended_before)))


@transaction.atomic
def reset_password(*, token: str, encoded: str) -> User:
    """Set the password `encoded` (from `hash_password`) by a one-time link.

    Ends the user's sessions, personal tokens and other links, and confirms an unconfirmed address. The user can't
    approve for 24 hours. Recorded in each of their organizations. Raises NotFound if the link is not open.
    """
    found = open_reset(token)
    if found is None:
        raise NotFound()
    organizations = lock_organizations_of(found.user_id)
    user = lock_row(User.objects.filter(pk=found.user_id, is_active=True))
    now = clock.now()
    used = PasswordReset.objects.filter(pk=found.pk, used_at__isnull=True, expires_at__gt=now).update(used_at=now)
    if user is None or not used:
        raise NotFound()
    prove(actor=person_ref(user), user=user, organizations=organizations, how="reset link", encoded=encoded)
    user.password, user.password_reset_at = encoded, now
    user.save(update_fields=["password", "password_reset_at"])
    end_credentials(user)
    record_for_person(
        action="password.reset", actor=person_ref(user), user=user, organizations=organizations, how="link"
    )
    return user
