"""Accounts and personal tokens."""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass

from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, validate_email
from django.db import transaction
from django.db.models import Q

from apps.access import tokens
from apps.access.models import (
    MOST_ADDRESS_CHARACTERS,
    Membership,
    MemberStatus,
    PasswordReset,
    PersonalToken,
    User,
    account_name,
)
from apps.access.principals import Principal
from apps.access.registry import roles_changed
from apps.access.roles import Role
from apps.access.services.grants import begin_grant
from apps.access.services.proofs import lock_organizations_of, organizations_with, prove
from apps.access.services.sign_in import end_sessions, person_ref
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import delete_in_chunks, lock_row, lock_rows, require_locked
from apps.core.errors import BadRequest, Conflict, FieldError, Forbidden, NotFound, Unauthenticated
from apps.core.secrets import Secret
from apps.tenancy.scope import Scope

DEFAULT_TOKEN_SECONDS = 90 * 24 * 3600
MAX_TOKEN_SECONDS = 366 * 24 * 3600


def checked_address(email: str) -> str:
    """Return the normalized `email`. Raises BadRequest if it is not an address that mail can be sent to, or too long after
    normalization."""
    address = account_name(email)
    try:
        validate_email(address)
        MaxLengthValidator(MOST_ADDRESS_CHARACTERS)(address)
        _check_domain(address.rpartition("@")[2])
    except (ValidationError, UnicodeError):
        detail = f"Must be an e-mail address of at most {MOST_ADDRESS_CHARACTERS} characters."
        raise BadRequest.about("/email", "invalid", detail) from None
    return address


def _check_domain(domain: str) -> None:
    """Raise UnicodeError for a domain that mail can't be addressed to as it is spelled.

    Mail is addressed by IDNA 2003, which maps some letters of IDNA 2008 (`ß`, `ς`) to others, and so to another's domain.
    """
    if not domain.isascii() and domain.encode("idna").decode("idna") != domain:
        raise UnicodeError(f"{domain!r} is not the domain that mail would be sent to")


def checked_password(password: str, user: User | None = None) -> str:
    """Return `password` if the validators accept it. Raises BadRequest with each reason if not."""
    try:
        validate_password(password, user)
    except ValidationError as error:
        problems = [FieldError("/password", "weak_password", text) for text in error.messages]
        raise BadRequest("This password is not accepted.", code="invalid_input", errors=problems) from None
    return password


def hash_password(password: str) -> str:
    """Hash `password` for storage. Slow, and takes 100 MiB: call it outside transactions."""
    return str(make_password(password))


def _lock_as_signed_in(user: User) -> User:
    """Lock and return the row of `user`.

    Raises Unauthenticated if the credentials of `user` were ended since it was read, so that a request in progress
    can't create a new one.
    """
    row = lock_row(User.objects.filter(pk=user.pk, is_active=True))
    if row is None or row.session_nonce != user.session_nonce:
        raise Unauthenticated("You were signed out. Sign in again.")
    return row


@transaction.atomic
def change_password(*, user: User, encoded: str) -> User:
    """Replace a user's password by `encoded` (from `hash_password`).

    Ends every other session. The caller has verified the current password. Raises Unauthenticated if the account was
    reset, confirmed or deactivated since `user` was read.
    """
    row = _lock_as_signed_in(user)
    row.password = encoded
    row.save(update_fields=["password"])
    PasswordReset.objects.filter(user=row, used_at__isnull=True).update(used_at=clock.now())
    audit.record(organization_id=None, action="password.changed", actor=person_ref(row), target=f"person:{row.pk}")
    return row


@dataclass(frozen=True, slots=True)
class NewToken:
    """A new personal token. `text` is shown once."""

    row: PersonalToken
    text: Secret


@transaction.atomic
def create_token(*, actor: Principal, name: str, expires_in_seconds: int | None = None) -> NewToken:
    """Create a personal token for the acting user, valid for 90 days by default and 366 at most.

    Raises Forbidden for other principals, and Unauthenticated if the account was reset, confirmed or deactivated since
    it was read.
    """
    if actor.user is None:
        raise Forbidden("Only a person can have personal tokens.", code="person_required")
    seconds = DEFAULT_TOKEN_SECONDS if expires_in_seconds is None else expires_in_seconds
    if not 1 <= seconds <= MAX_TOKEN_SECONDS:
        detail = f"Must be from 1 to {MAX_TOKEN_SECONDS} seconds."
        raise BadRequest.about("/expires_in_seconds", "out_of_range", detail)
    user = _lock_as_signed_in(actor.user)
    minted = tokens.mint("pat")
    row = PersonalToken.objects.create(
        user=user,
        name=name,
        public_id=minted.public_id,
        sha256=minted.sha256,
        expires_at=clock.now() + dt.timedelta(seconds=seconds),
    )
    audit.record(
        organization_id=None,
        action="token.created",
        actor=actor.ref,
        target=f"token:{row.pk}",
        details={"name": name, "public_id": row.public_id, "expires_at": clock.rfc3339(row.expires_at)},
    )
    return NewToken(row, minted.text)


def delete_ended_tokens(*, ended_before: dt.datetime) -> int:
    """Delete the personal tokens revoked or expired before `ended_before`. Returns their number. Their audit events stay."""
    return delete_in_chunks(
        PersonalToken.objects.filter(Q(revoked_at__lt=ended_before) | Q(expires_at__lt=ended_before))
    )


@transaction.atomic
def revoke_token(*, actor: Principal, token_id: uuid.UUID) -> None:
    """Revoke one of the acting user's tokens at once. Raises NotFound if it is another user's or was revoked before."""
    changed = PersonalToken.objects.filter(pk=token_id, user=actor.user, revoked_at__isnull=True).update(
        revoked_at=clock.now()
    )
    if not changed:
        raise NotFound()
    audit.record(organization_id=None, action="token.revoked", actor=actor.ref, target=f"token:{token_id}")


@dataclass(frozen=True, slots=True)
class FirstPassword:
    """An initial password that an operator hands over. `text` is shown once, `encoded` is stored."""

    text: Secret
    encoded: str


def first_password(text: str | None = None) -> FirstPassword:
    """Return an initial password (random by default) and its hash. Call it before the transaction."""
    secret = Secret(text or secrets.token_urlsafe(18))
    return FirstPassword(secret, hash_password(secret.reveal()))


@dataclass(frozen=True, slots=True)
class NewPerson:
    """A user created by an operator's command. `password` is None for an existing account with a confirmed address."""

    user: User
    password: Secret | None
    membership: Membership


@transaction.atomic
def create_person_with_password(
    *, actor: ActorRef, email: str, scope: Scope, role: Role, password: FirstPassword, name: str = ""
) -> NewPerson:
    """Create or find the user `email` and give them `role` at `scope`, accepted at once.

    For the operator of the installation, who vouches for the address and hands the password over; all others invite. An
    existing account with an unconfirmed address is confirmed: credentials that another user may have added end
    (`proofs.prove`), and it gets this password. Raises Conflict `member_exists` for a member, and BadRequest for an
    invalid address.
    """
    address = checked_address(email)
    found = User.objects.filter(email=address).first()
    locked = lock_organizations_of(found.pk if found is not None else None, scope.organization_id)
    user = lock_row(User.objects.filter(email=address))
    secret: Secret | None = password.text
    if user is None:
        user = User(email=address, name=name, password=password.encoded, address_proved_at=clock.now())
        user.save(force_insert=True)
    elif user.address_proved_at is None:
        organizations = organizations_with(user.pk, locked)
        prove(actor=actor, user=user, organizations=organizations, how="command", encoded=password.encoded)
    else:
        secret = None
    existing = Membership.objects.filter(organization=scope.organization, project=scope.project, email=address).first()
    if existing is not None and existing.status == MemberStatus.ACTIVE:
        raise Conflict(f"{address} is already a member.", code="member_exists")
    membership = existing or Membership(organization=scope.organization, project=scope.project, email=address)
    membership.user, membership.role, membership.status = user, role, MemberStatus.ACTIVE
    membership.invitation_sha256 = membership.mailed_sha256 = membership.invitation_expires_at = None
    membership.save()
    begin_grant(membership, by=None)
    audit.record_in(
        scope,
        action="member.created",
        actor=actor,
        target=f"person:{user.pk}",
        details={"email": address, "role": str(role)},
    )
    roles_changed(scope.organization_id)
    return NewPerson(user, secret, membership)


@transaction.atomic
def change_account_state(*, actor: Principal, user_id: uuid.UUID, active: bool, address_proved: bool = False) -> User:
    """Activate or deactivate a user, and with `address_proved` confirm their address (`proofs.prove`). Platform staff only.

    Deactivation ends their sessions and tokens at once. Raises Forbidden for other callers, NotFound, and Conflict
    `last_superuser` for the last active superuser.
    """
    if not actor.is_superuser:
        raise Forbidden("Only platform staff can do this.")
    organizations = lock_organizations_of(user_id)
    # lock every superuser in one order, so that two who deactivate each other leave one
    staff = lock_rows(User.objects.filter(is_superuser=True).order_by("pk"))
    user = require_locked(User, pk=user_id)
    if user.is_active != active:
        if not active and user.is_superuser and not any(each.is_active for each in staff if each.pk != user.pk):
            raise Conflict("The last active superuser can't be deactivated.", code="last_superuser")
        _set_active(actor, user, active)
        for organization_id in organizations:
            roles_changed(organization_id)
    if address_proved:
        prove(actor=actor.ref, user=user, organizations=organizations, how="platform staff")
    return user


def _set_active(actor: Principal, user: User, active: bool) -> None:
    user.is_active = active
    user.save(update_fields=["is_active"])
    if not active:
        PersonalToken.objects.filter(user=user, revoked_at__isnull=True).update(revoked_at=clock.now())
        end_sessions(user)
    audit.record(
        organization_id=None,
        action="person.activated" if active else "person.deactivated",
        actor=actor.ref,
        target=f"person:{user.pk}",
    )
