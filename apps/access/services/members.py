"""Members of organizations and projects, and invitations."""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from apps.access.models import MailKind, Membership, MemberStatus, User
from apps.access.policy import require_person
from apps.access.principals import Principal
from apps.access.registry import roles_changed
from apps.access.roles import PROJECT_ROLES, Role
from apps.access.services.accounts import checked_address
from apps.access.services.grants import begin_grant, end_grant
from apps.access.services.mail import digest_of, request_mail
from apps.access.services.proofs import INVITATION_DAYS, lock_organizations_of, organizations_with, prove
from apps.access.services.sign_in import person_ref
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR, ActorRef
from apps.core.db import lock_row, require_locked, require_row
from apps.core.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from apps.core.isolation import for_each
from apps.core.secrets import Secret
from apps.limits.services import check_invitation
from apps.tenancy.models import Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_organization

DELETED_AT_ONCE = 10_000
"""Maximum number of expired invitations that one run deletes; the next run continues."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """A pending membership. `token` is the one-time part of its link, shown once."""

    membership: Membership
    token: Secret


def members_of(scope: Scope) -> QuerySet[Membership]:
    """The members of exactly this level: of the organization, or of the project."""
    return Membership.objects.filter(organization=scope.organization, project=scope.project)


def _checked_role(role: str, scope: Scope) -> Role:
    allowed = list(Role) if scope.project is None else list(PROJECT_ROLES)
    if role not in [str(r) for r in allowed]:
        detail = f"Must be one of {', '.join(str(r) for r in allowed)}."
        raise BadRequest.about("/role", "invalid_choice", detail)
    return Role(role)


def invite(*, actor: Principal, scope: Scope, email: str, role: str) -> Invitation:
    """Invite `email` with `role`. The result is the same for known and unknown addresses. Valid for 7 days and one use.

    Inviting an address again replaces the link, and counts again. Raises Conflict `member_exists` for an accepted
    member, BadRequest for a wrong role or address, Forbidden `person_required`, and TooManyRequests if this user or
    organization invited too often.
    """
    require_person(actor)
    address, chosen = checked_address(email), _checked_role(role, scope)
    check_invitation(actor.id, scope.organization_id)
    return _invite(actor=actor, scope=scope, address=address, chosen=chosen)


@transaction.atomic
def _invite(*, actor: Principal, scope: Scope, address: str, chosen: Role) -> Invitation:
    _lock_node(scope)
    token = secrets.token_urlsafe(32)
    row = members_of(scope).filter(email=address).first()
    if row is not None and row.status == MemberStatus.ACTIVE:
        raise Conflict("That address is already a member.", code="member_exists")
    if row is None:
        row = Membership(organization=scope.organization, project=scope.project, email=address)
    else:
        row.rev += 1
    row.role = chosen
    row.invited_by = actor.id
    row.invitation_sha256, row.mailed_sha256 = digest_of(token), None
    row.invitation_expires_at = clock.now() + dt.timedelta(days=INVITATION_DAYS)
    row.save()
    request_mail(MailKind.INVITATION, email=address, membership=row)
    _record(scope, row, "member.invited", actor.ref, {"email": address, "role": str(chosen)})
    return Invitation(row, Secret(token))


def _record(scope: Scope, row: Membership, action: str, actor: ActorRef, details: dict[str, object]) -> None:
    audit.record_in(scope, action=action, actor=actor, target=f"member:{row.pk}", details=details)


def _scope(row: Membership) -> Scope:
    return Scope(row.organization, row.project)


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """An invitation that can be accepted. `mailed` is True for the mailed link, which confirms the address."""

    membership: Membership
    mailed: bool


def _open_invitations() -> QuerySet[Membership]:
    return Membership.objects.select_related("organization", "project").filter(
        Q(project__isnull=True) | Q(project__deleted_at__isnull=True),
        status=MemberStatus.INVITED,
        invitation_expires_at__gt=clock.now(),
        organization__deleted_at__isnull=True,
    )


def invitation_for(token: str) -> OpenInvitation | None:
    """Return the open invitation of this link, or None if it was used, has expired, was replaced or never existed."""
    digest = digest_of(token)
    row = _open_invitations().filter(Q(invitation_sha256=digest) | Q(mailed_sha256=digest)).first()
    return None if row is None else OpenInvitation(row, mailed=row.mailed_sha256 == digest)


def invitations_of(user: User) -> QuerySet[Membership]:
    """The open invitations to the address of a signed-in user; none while the address is not confirmed."""
    rows = _open_invitations().filter(email=user.email).order_by("pk")
    return rows if user.address_proved_at is not None else rows.none()


def _locked_invitation(token: str) -> tuple[OpenInvitation, list[uuid.UUID]]:
    """Return the open invitation of `token`, with its organization and row locked, and all organizations that are locked.

    A mailed link may confirm an account: the organizations of that account are locked as well, all in one order. Raises
    NotFound.
    """
    found = invitation_for(token)
    if found is None:
        raise NotFound()
    owner = User.objects.filter(email=found.membership.email).first() if found.mailed else None
    locked = lock_organizations_of(owner.pk if owner is not None else None, found.membership.organization_id)
    if found.membership.organization_id not in locked:
        raise NotFound()
    require_locked(Membership, pk=found.membership.pk)
    now_open = invitation_for(token)
    if now_open is None:
        raise NotFound()
    return now_open, locked


def _activate(row: Membership, user: User) -> Membership:
    Membership.objects.filter(pk=row.pk).update(
        user=user,
        status=MemberStatus.ACTIVE,
        invitation_sha256=None,
        mailed_sha256=None,
        invitation_expires_at=None,
        rev=row.rev + 1,
    )
    row.user, row.status, row.rev = user, MemberStatus.ACTIVE, row.rev + 1
    begin_grant(row, by=row.invited_by)
    _record(_scope(row), row, "member.joined", person_ref(user), {"role": row.role})
    roles_changed(row.organization_id)
    return row


@transaction.atomic
def accept_as_new_person(*, token: str, encoded: str, name: str = "") -> User:
    """Accept an invitation with a new account, whose password is `encoded` (from `hash_password`). The link works once.

    With the shown link, the account is not confirmed and bound to this organization. With the mailed link it is
    confirmed, and an existing unconfirmed account at this address is taken over: credentials that another user may have
    added end. Raises NotFound if the link is not open, and Conflict `account_exists` for any other existing account
    (which can sign in and join).
    """
    invitation, locked = _locked_invitation(token)
    row = invitation.membership
    exists = Conflict(
        "This link can't make an account for this address. If you have one, sign in and then join. "
        "If you can't sign in, ask the platform staff.",
        code="account_exists",
    )
    found = User.objects.filter(email=row.email).first()
    if found is None:
        user = User(email=row.email, name=name[:200], password=encoded)
        if invitation.mailed:
            user.address_proved_at = clock.now()
        else:
            user.origin_organization_id = row.organization_id
        try:
            with transaction.atomic():
                user.save(force_insert=True)
        except IntegrityError:
            raise exists from None
    else:
        unproved = lock_row(User.objects.filter(pk=found.pk, is_active=True, address_proved_at__isnull=True))
        if unproved is None or not invitation.mailed:
            raise exists
        user, organizations = unproved, organizations_with(found.pk, locked)
        prove(actor=person_ref(user), user=user, organizations=organizations, how="mailed invitation", encoded=encoded)
        User.objects.filter(pk=user.pk).update(name=name[:200])
    _activate(row, user)
    return user


def why_not_join(user: User, invitation: OpenInvitation) -> Conflict | None:
    """Return why a signed-in user can't join by this link, or None if they can."""
    row = invitation.membership
    if row.email != user.email:
        return Conflict("This invitation is for another address. Sign out first.", code="other_account")
    if user.address_proved_at is None and invitation.mailed:
        return Conflict("Choose a new password: this link confirms the address.", code="password_needed")
    if user.address_proved_at is None and user.origin_organization_id != row.organization_id:
        return Conflict(
            "The address of this account is not confirmed, so it can't join another organization by this link. "
            "Ask the platform staff.",
            code="address_not_proved",
        )
    return None


@transaction.atomic
def join(*, user: User, token: str) -> Membership:
    """Accept an invitation as a signed-in user with its address.

    Raises NotFound if the link is not open, and Conflict `other_account`, `password_needed` or `address_not_proved`.
    """
    invitation, _ = _locked_invitation(token)
    fresh = require_locked(User, pk=user.pk, is_active=True)
    refusal = why_not_join(fresh, invitation)
    if refusal is not None:
        raise refusal
    return _activate(invitation.membership, fresh)


@transaction.atomic
def join_without_link(*, user: User, membership_id: uuid.UUID) -> Membership:
    """Accept one of `invitations_of`, as a signed-in user whose address is confirmed. Raises NotFound."""
    found = require_row(invitations_of(user), pk=membership_id)
    lock_organization(found.organization_id)
    fresh = require_locked(User, pk=user.pk, is_active=True)
    return _activate(require_row(invitations_of(fresh), pk=membership_id), fresh)


def _lock_node(scope: Scope) -> None:
    """Lock the organization, and the project of a project's members. Raises NotFound if one was deleted meanwhile."""
    lock_organization(scope.organization_id)
    if scope.project is not None:
        require_locked(Project, pk=scope.project.pk, deleted_at__isnull=True)


def _locked_member(scope: Scope, member_id: uuid.UUID) -> Membership:
    _lock_node(scope)
    return require_row(members_of(scope), pk=member_id)


def _check_rev(row: Membership, expected: int | None) -> None:
    if expected is not None and row.rev != expected:
        raise PreconditionFailed("It has changed since you read it.")


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
    """Change the role of a member. Raises Forbidden `person_required`, and Conflict `last_org_admin`."""
    require_person(actor)
    chosen = _checked_role(role, scope)
    row = _locked_member(scope, member_id)
    _check_rev(row, expected_rev)
    if row.role == chosen:
        return row
    if chosen is not Role.ORG_ADMIN:
        _keep_an_admin(scope, row)
    before, now = row.role, clock.now()
    if row.status == MemberStatus.ACTIVE:
        end_grant(row, at=now)
    else:
        # on acceptance, this user is recorded as granting the role, not the one who invited to another role
        row.invited_by = actor.id
    Membership.objects.filter(pk=row.pk).update(role=chosen, invited_by=row.invited_by, rev=row.rev + 1)
    row.role, row.rev = chosen, row.rev + 1
    if row.status == MemberStatus.ACTIVE:
        begin_grant(row, by=actor.id, at=now)
    _record(scope, row, "member.role_changed", actor.ref, {"from": before, "to": str(chosen)})
    roles_changed(scope.organization_id)
    return row


@transaction.atomic
def remove_member(*, actor: Principal, scope: Scope, member_id: uuid.UUID, expected_rev: int | None = None) -> None:
    """Remove a member or cancel an invitation. Raises Conflict `last_org_admin`, and PreconditionFailed if `expected_rev` is not
    the stored revision."""
    row = _locked_member(scope, member_id)
    _check_rev(row, expected_rev)
    _keep_an_admin(scope, row)
    _record(scope, row, "member.removed", actor.ref, {"email": row.email, "role": row.role})
    if row.status == MemberStatus.ACTIVE:
        end_grant(row)
    row.delete()
    roles_changed(scope.organization_id)


def delete_expired_invitations(*, expired_before: dt.datetime) -> int:
    """Delete the invitations that were not accepted in time, with an audit event each. Returns their number."""
    ids = _expired(expired_before).order_by("pk").values_list("pk", flat=True)
    return for_each("expired_invitations", list(ids[:DELETED_AT_ONCE]), lambda pk: _delete_expired(pk, expired_before))


def _expired(before: dt.datetime) -> QuerySet[Membership]:
    return Membership.objects.filter(status=MemberStatus.INVITED, invitation_expires_at__lt=before)


@transaction.atomic
def _delete_expired(pk: uuid.UUID, before: dt.datetime) -> int:
    row = _expired(before).select_related("organization", "project").filter(pk=pk).first()
    if row is None or lock_row(Organization.objects.filter(pk=row.organization_id, deleted_at__isnull=True)) is None:
        return 0
    if not _expired(before).filter(pk=pk).exists():
        return 0
    _record(_scope(row), row, "member.invitation_expired", SYSTEM_ACTOR, {"email": row.email, "role": row.role})
    row.delete()
    return 1


def join_first_admin(*, user: User, organization: Organization) -> Membership:
    """Make the creator of an organization its org_admin, in the same transaction."""
    row = Membership.objects.create(
        organization=organization,
        user=user,
        email=user.email,
        role=Role.ORG_ADMIN,
        status=MemberStatus.ACTIVE,
    )
    begin_grant(row, by=None)
    return row
