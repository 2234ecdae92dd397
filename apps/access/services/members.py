"""Members of organizations and projects, and how they are invited."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from apps.access.models import Membership, MemberStatus, User
from apps.access.principals import Principal
from apps.access.roles import PROJECT_ROLES, Role
from apps.access.services.accounts import checked_password
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import lock_row
from apps.core.errors import BadRequest, Conflict, FieldError, NotFound, PreconditionFailed
from apps.core.secrets import Secret
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope

INVITATION_DAYS = 7


@dataclass(frozen=True, slots=True)
class Invitation:
    """A membership that waits to be accepted; `token` is the one-time part of its link, shown once."""

    membership: Membership
    token: Secret


def members_of(scope: Scope) -> QuerySet[Membership]:
    """The members of exactly this level: of the organization, or of the project."""
    return Membership.objects.filter(organization=scope.organization, project=scope.project)


def _checked_role(role: str, scope: Scope) -> Role:
    allowed = list(Role) if scope.project is None else list(PROJECT_ROLES)
    if role not in [str(r) for r in allowed]:
        detail = f"One of {', '.join(str(r) for r in allowed)} is expected."
        raise BadRequest(detail, code="invalid_input", errors=[FieldError("/role", "invalid_choice", detail)])
    return Role(role)


def _checked_email(email: str) -> str:
    address = email.strip().lower()
    try:
        validate_email(address)
    except ValidationError:
        detail = "An e-mail address is expected."
        raise BadRequest(detail, code="invalid_input", errors=[FieldError("/email", "invalid", detail)]) from None
    return address


def _lock_organization(scope: Scope) -> None:
    rows = Organization.objects.filter(pk=scope.organization_id, deleted_at__isnull=True)
    if lock_row(rows) is None:
        raise NotFound()


@transaction.atomic
def invite(*, actor: Principal, scope: Scope, email: str, role: str) -> Invitation:
    """Invite `email` with `role`; known and unknown addresses are answered alike. Valid 7 days, one use.

    Inviting an address that is only invited so far makes a new link and ends the former. Raises Conflict
    `member_exists` for an accepted member, BadRequest on a wrong role or address.
    """
    address, chosen = _checked_email(email), _checked_role(role, scope)
    _lock_organization(scope)
    token = secrets.token_urlsafe(32)
    row = members_of(scope).filter(email=address).first()
    if row is not None and row.status == MemberStatus.ACTIVE:
        raise Conflict("That address is a member here already.", code="member_exists")
    if row is None:
        row = Membership(organization=scope.organization, project=scope.project, email=address)
    row.role = chosen
    row.invited_by = actor.id
    row.invitation_sha256 = hashlib.sha256(token.encode()).hexdigest()
    row.invitation_expires_at = clock.now() + dt.timedelta(days=INVITATION_DAYS)
    row.save()
    _record(actor.ref, scope, row, "member.invited", {"email": address, "role": str(chosen)})
    return Invitation(row, Secret(token))


def _record(actor: ActorRef, scope: Scope, row: Membership, action: str, details: dict[str, Any]) -> None:
    audit.record(
        organization_id=scope.organization_id,
        action=action,
        actor=actor,
        target=f"member:{row.pk}",
        scope=scope.as_dict(),
        details=details,
    )


def _scope(row: Membership) -> Scope:
    return Scope(row.organization, row.project)


def invitation_for(token: str) -> Membership | None:
    """The open invitation that this link names, or None when it is used, expired, replaced or never was."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return (
        Membership.objects.select_related("organization", "project")
        .filter(
            invitation_sha256=digest,
            status=MemberStatus.INVITED,
            invitation_expires_at__gt=clock.now(),
            organization__deleted_at__isnull=True,
        )
        .first()
    )


@transaction.atomic
def accept_invitation(*, token: str, password: str, name: str = "") -> User:
    """Accept by setting a password (new account) or proving the existing one. The link works once.

    Raises NotFound when the link is not open, BadRequest when the password is refused or wrong.
    """
    row = invitation_for(token)
    if row is None or (row.project is not None and row.project.deleted_at is not None):
        raise NotFound()
    user = User.objects.filter(email=row.email).first()
    if user is None:
        user = User.objects.create_user(row.email, checked_password(password, User(email=row.email)), name=name[:200])
    elif not user.is_active or not user.check_password(password):
        detail = "This address has an account: give its password."
        raise BadRequest(detail, code="invalid_input", errors=[FieldError("/password", "wrong_password", detail)])
    changed = Membership.objects.filter(
        pk=row.pk, status=MemberStatus.INVITED, invitation_sha256=row.invitation_sha256
    ).update(user=user, status=MemberStatus.ACTIVE, invitation_sha256=None, invitation_expires_at=None)
    if changed != 1:
        raise NotFound()
    _record(ActorRef("person", str(user.pk), str(user)), _scope(row), row, "member.joined", {"role": row.role})
    return user


def _locked_member(scope: Scope, member_id: uuid.UUID) -> Membership:
    _lock_organization(scope)
    row = members_of(scope).filter(pk=member_id).first()
    if row is None:
        raise NotFound()
    return row


def _keep_an_admin(scope: Scope, row: Membership) -> None:
    if row.role != Role.ORG_ADMIN or row.status != MemberStatus.ACTIVE:
        return
    others = Membership.objects.filter(
        organization=scope.organization,
        project__isnull=True,
        role=Role.ORG_ADMIN,
        status=MemberStatus.ACTIVE,
        user__is_active=True,
    ).exclude(pk=row.pk)
    if not others.exists():
        raise Conflict("The last org_admin can't be removed or demoted.", code="last_org_admin")


@transaction.atomic
def change_role(
    *, actor: Principal, scope: Scope, member_id: uuid.UUID, role: str, expected_rev: int | None = None
) -> Membership:
    """Give a member another role. Raises Conflict `last_org_admin`."""
    chosen = _checked_role(role, scope)
    row = _locked_member(scope, member_id)
    if expected_rev is not None and row.rev != expected_rev:
        raise PreconditionFailed("It has changed since you read it.")
    if row.role == chosen:
        return row
    if chosen is not Role.ORG_ADMIN:
        _keep_an_admin(scope, row)
    before = row.role
    Membership.objects.filter(pk=row.pk).update(role=chosen, rev=row.rev + 1)
    row.role, row.rev = chosen, row.rev + 1
    _record(actor.ref, scope, row, "member.role_changed", {"from": before, "to": str(chosen)})
    return row


@transaction.atomic
def remove_member(*, actor: Principal, scope: Scope, member_id: uuid.UUID) -> None:
    """End a membership or an invitation. Raises Conflict `last_org_admin`."""
    row = _locked_member(scope, member_id)
    _keep_an_admin(scope, row)
    _record(actor.ref, scope, row, "member.removed", {"email": row.email, "role": row.role})
    row.delete()


def join_first_admin(*, user: User, organization: Organization) -> Membership:
    """The maker of an organization becomes its org_admin; inside the transaction that makes it."""
    try:
        return Membership.objects.create(
            organization=organization,
            user=user,
            email=user.email,
            role=Role.ORG_ADMIN,
            status=MemberStatus.ACTIVE,
        )
    except IntegrityError:
        raise Conflict("Already a member.", code="member_exists") from None
