"""Accounts and personal tokens."""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass

from django.contrib.auth.password_validation import validate_password
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import transaction

from apps.access import tokens
from apps.access.models import Membership, MemberStatus, PersonalToken, User
from apps.access.principals import Principal
from apps.access.roles import Role
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_row
from apps.core.errors import BadRequest, Conflict, FieldError, Forbidden, NotFound
from apps.core.secrets import Secret
from apps.tenancy.scope import Scope

DEFAULT_TOKEN_SECONDS = 90 * 24 * 3600
MAX_TOKEN_SECONDS = 366 * 24 * 3600


def checked_password(password: str, user: User | None = None) -> str:
    """`password` if the validators accept it; BadRequest naming each reason if not."""
    try:
        validate_password(password, user)
    except ValidationError as error:
        problems = [FieldError("/password", "weak_password", text) for text in error.messages]
        raise BadRequest("This password is not accepted.", code="invalid_input", errors=problems) from None
    return password


@dataclass(frozen=True, slots=True)
class NewToken:
    """A personal token just made; `text` is shown once."""

    row: PersonalToken
    text: Secret


@transaction.atomic
def create_token(*, actor: Principal, name: str, expires_in_seconds: int | None = None) -> NewToken:
    """A bearer token for the acting person, valid 90 days unless said (at most 366). Raises Forbidden for non-persons."""
    if actor.user is None:
        raise Forbidden("Only a person has personal tokens.", code="person_required")
    seconds = DEFAULT_TOKEN_SECONDS if expires_in_seconds is None else expires_in_seconds
    if not 1 <= seconds <= MAX_TOKEN_SECONDS:
        detail = f"From 1 to {MAX_TOKEN_SECONDS} seconds."
        raise BadRequest(
            detail, code="invalid_input", errors=[FieldError("/expires_in_seconds", "out_of_range", detail)]
        )
    minted = tokens.mint("pat")
    row = PersonalToken.objects.create(
        user=actor.user,
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


@transaction.atomic
def revoke_token(*, actor: Principal, token_id: uuid.UUID) -> None:
    """End one of the acting person's tokens at once. NotFound when it is not theirs or has ended."""
    changed = PersonalToken.objects.filter(pk=token_id, user=actor.user, revoked_at__isnull=True).update(
        revoked_at=clock.now()
    )
    if not changed:
        raise NotFound()
    audit.record(organization_id=None, action="token.revoked", actor=actor.ref, target=f"token:{token_id}")


@dataclass(frozen=True, slots=True)
class NewPerson:
    """A person made by an operator's command; `password` is None when the account was there before."""

    user: User
    password: Secret | None
    membership: Membership


@transaction.atomic
def create_person_with_password(
    *, actor: ActorRef, email: str, scope: Scope, role: Role, password: str | None = None, name: str = ""
) -> NewPerson:
    """Make (or find) the person `email` and give them `role` at `scope`, accepted at once.

    For the operator of the installation, who hands the password over; everybody else invites. The password is
    random unless given. Raises Conflict `member_exists` when they already are a member there.
    """
    address = email.strip().lower()
    user = User.objects.filter(email=address).first()
    secret: Secret | None = None
    if user is None:
        secret = Secret(password or secrets.token_urlsafe(18))
        user = User.objects.create_user(address, secret.reveal(), name=name)
    existing = Membership.objects.filter(organization=scope.organization, project=scope.project, email=address).first()
    if existing is not None:
        raise Conflict(f"{address} is a member there already.", code="member_exists")
    membership = Membership.objects.create(
        organization=scope.organization,
        project=scope.project,
        user=user,
        email=address,
        role=role,
        status=MemberStatus.ACTIVE,
    )
    audit.record(
        organization_id=scope.organization_id,
        action="member.created",
        actor=actor,
        target=f"person:{user.pk}",
        scope=scope.as_dict(),
        details={"email": address, "role": str(role)},
    )
    return NewPerson(user, secret, membership)


@transaction.atomic
def change_account_state(*, actor: Principal, user_id: uuid.UUID, active: bool) -> User:
    """Activate or deactivate a person; deactivating ends their sessions and tokens at once. Platform staff only."""
    if not actor.is_superuser:
        raise Forbidden("Only platform staff do this.")
    user = lock_row(User.objects.filter(pk=user_id))
    if user is None:
        raise NotFound()
    if user.is_active == active:
        return user
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
    return user


def end_sessions(user: User) -> int:
    """Delete every browser session of `user`; how many there were."""
    mine = [s.pk for s in Session.objects.iterator() if s.get_decoded().get("_auth_user_id") == str(user.pk)]
    Session.objects.filter(pk__in=mine).delete()
    return len(mine)
