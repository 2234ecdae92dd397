"""People, their memberships, and their personal tokens."""

from __future__ import annotations

import datetime as dt
import secrets
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.core.validators import MaxLengthValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils.crypto import salted_hmac

from apps.access.roles import Role, RoleRow
from apps.core import clock
from apps.core.models import TreeModel
from apps.core.visibility import ScopedModel, ScopedQuerySet, Viewer
from apps.tenancy.models import Organization, Project

MOST_ADDRESS_CHARACTERS = 254
RESET_WAIT = dt.timedelta(hours=24)
"""Time after a password reset during which the user can't approve."""


def account_name(text: str) -> str:
    """Normalize an e-mail address as accounts store it: NFKC, trimmed, lower case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).strip().lower())


class UserManager(BaseUserManager["User"]):
    """Manager that finds people by their normalized e-mail address."""

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email=account_name(username or ""))

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user with a local password (None: no usable password).

        The address is not confirmed unless `address_proved_at` is given. Hashes the password: call it outside
        transactions. Raises ValidationError if the normalized address is too long.
        """
        user = self.model(email=account_name(email), **fields)
        MaxLengthValidator(MOST_ADDRESS_CHARACTERS)(user.email)
        user.set_password(password)
        user.save()
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Platform staff."""
        return self.create_user(email, password, is_superuser=True, address_proved_at=clock.now(), **fields)


class User(TreeModel, AbstractBaseUser):
    """A person. Permissions come from memberships; a superuser manages the platform and can't approve.

    `address_proved_at` is when it was confirmed that the account belongs to the reader of mail at its address: by a
    mailed link, or by platform staff. An account without it was created by a link that was shown to the inviter, who
    may have used it: it can have roles in `origin_organization_id` only, the organization of that invitation.
    `session_nonce` is part of every session, so that a new nonce ends all sessions. `password_reset_at` is the time of
    the last reset by link.
    """

    email = models.EmailField(max_length=254, unique=True)
    name = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True)
    is_superuser = models.BooleanField(default=False)
    address_proved_at = models.DateTimeField(null=True, editable=False)
    origin_organization_id = models.UUIDField(null=True, editable=False)
    session_nonce = models.CharField(max_length=32, blank=True, default="", db_default="", editable=False)
    password_reset_at = models.DateTimeField(null=True, editable=False)

    known_roles: Sequence[RoleRow] | None = None
    """Every role, if it was read together with the user (`with_roles`)."""

    objects: ClassVar[UserManager] = UserManager()
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        verbose_name = "person"
        verbose_name_plural = "people"
        constraints = [models.UniqueConstraint(Lower("email"), name="user_email_any_case")]

    def __str__(self) -> str:
        return self.name or self.email

    @property
    def is_staff(self) -> bool:
        """Read by Django's admin; the console's own site decides about access."""
        return self.is_active

    def _get_session_auth_hash(self, secret: str | bytes | None = None) -> str:
        # Django's own hash until the first new nonce
        key_salt = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"
        text = f"{self.password}{self.session_nonce}"
        return salted_hmac(key_salt, text, secret=secret, algorithm="sha256").hexdigest()

    @staticmethod
    def new_session_nonce() -> str:
        """Return a `session_nonce` that no session has."""
        return secrets.token_hex(16)

    @property
    def browser_key(self) -> str:
        """Key under which a browser remembers a sign-in of this user. It changes when sessions are ended."""
        return f"{self.pk}.{self.session_nonce[:8]}"

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """Model permissions are not used: only superusers have them."""
        return self.is_active and self.is_superuser

    def has_perms(self, perm_list: list[str], obj: object = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and self.is_superuser


class MemberStatus(models.TextChoices):
    """Invited or active."""

    INVITED = "invited"
    ACTIVE = "active"


class MembershipQuerySet(ScopedQuerySet["Membership"]):
    """Memberships."""

    def active_of(self, user_id: uuid.UUID) -> MembershipQuerySet:
        """A user's accepted memberships in organizations and projects that are not deleted."""
        return self.filter(
            models.Q(project__isnull=True) | models.Q(project__deleted_at__isnull=True),
            user_id=user_id,
            user__is_active=True,
            status=MemberStatus.ACTIVE,
            organization__deleted_at__isnull=True,
        )


class Membership(ScopedModel, TreeModel):
    """A role of a user on an organization (`project` is empty) or on one of its projects.

    An invitation has no `user` until it is accepted. It has two one-time links: `invitation_sha256` is the token of the
    link shown to the inviter, `mailed_sha256` that of the mailed link. Only the mailed link confirms the address.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, null=True, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, null=True, related_name="memberships")
    email = models.EmailField(max_length=254)
    role = models.CharField(max_length=16, choices=Role)
    status = models.CharField(max_length=16, choices=MemberStatus, default=MemberStatus.INVITED)
    invitation_sha256 = models.CharField(max_length=64, null=True, unique=True, editable=False)  # noqa: DJ001 - unique, so empty is null
    mailed_sha256 = models.CharField(max_length=64, null=True, unique=True, editable=False)  # noqa: DJ001 - unique, so empty is null
    invitation_expires_at = models.DateTimeField(null=True, editable=False)
    invited_by = models.UUIDField(null=True, editable=False)
    rev = models.PositiveIntegerField(default=1, editable=False)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "email"],
                condition=models.Q(project__isnull=True),
                name="membership_once_per_organization",
            ),
            models.UniqueConstraint(
                fields=["project", "email"],
                condition=models.Q(project__isnull=False),
                name="membership_once_per_project",
            ),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
            models.CheckConstraint(
                condition=models.Q(project__isnull=True) | ~models.Q(role="org_admin"),
                name="membership_org_admin_is_org_level",
            ),
            models.CheckConstraint(
                condition=models.Q(status="invited", user__isnull=True) | models.Q(status="active", user__isnull=False),
                name="membership_active_has_user",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} ({self.role})"

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """Members of the organizations that the viewer has a role on, and of the projects that the viewer may see."""
        sight = viewer.visibility
        if sight.everything:
            return models.Q(organization__deleted_at__isnull=True)
        on_organization = models.Q(project__isnull=True, organization__in=sight.whole_organizations)
        return on_organization | models.Q(project__in=Project.objects.visible_to(viewer).values("pk"))


M = TypeVar("M", bound=models.Model)

_ROLE_COLUMNS = {
    "role_id": "pk",
    "role_organization": "organization_id",
    "role_project": "project_id",
    "role_name": "role",
    "role_status": "status",
    "role_organization_deleted_at": "organization__deleted_at",
    "role_project_deleted_at": "project__deleted_at",
}


def with_roles(rows: models.QuerySet[M], to_user: str = "") -> models.QuerySet[M]:
    """Read the memberships of a user together with `rows`, one user or one row of a user: `to_user` is its foreign key.

    The row is repeated for each membership, and comes once without any. `known_roles` takes the roles out of the result.
    """
    path = f"{to_user}__memberships" if to_user else "memberships"
    columns = {name: models.F(f"{path}__{column}") for name, column in _ROLE_COLUMNS.items()}
    repeated: models.QuerySet[M] = rows.annotate(**columns)
    return repeated


def known_roles(rows: Iterable[Any]) -> list[RoleRow]:
    """The roles in the result of `with_roles`, oldest first, as `MembershipQuerySet.active_of` would find them for an active
    user."""
    active = [
        row
        for row in rows
        if row.role_status == MemberStatus.ACTIVE
        and row.role_organization_deleted_at is None
        and row.role_project_deleted_at is None
    ]
    active.sort(key=lambda row: row.role_id)
    return [(row.role_organization, row.role_project, row.role_name) for row in active]


class RoleGrant(TreeModel):
    """History of memberships: a role of a user, from when, and granted by whom. Immutable except for its end.

    `granted_at` is when it took effect (for an invitation: when it was accepted). `granted_by` is None for a command
    and for the creator of the organization.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="role_grants")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, null=True, related_name="role_grants")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="role_grants")
    role = models.CharField(max_length=16, choices=Role)
    granted_by = models.UUIDField(null=True)
    granted_by_name = models.CharField(max_length=254, blank=True)
    granted_at = models.DateTimeField(default=clock.now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "user"],
                condition=models.Q(project__isnull=True, ended_at__isnull=True),
                name="role_grant_one_open_in_organization",
            ),
            models.UniqueConstraint(
                fields=["project", "user"],
                condition=models.Q(project__isnull=False, ended_at__isnull=True),
                name="role_grant_one_open_in_project",
            ),
        ]
        indexes = [
            # used by decisions, to find recently added members
            models.Index(fields=["organization", "granted_at"], name="role_grant_lately")
        ]

    def __str__(self) -> str:
        return f"{self.role} since {self.granted_at}"


class PasswordReset(TreeModel):
    """A one-time link to set a new password. Only the SHA-256 of its token is stored."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="password_resets")
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"reset of {self.user_id}"


class MailKind(models.TextChoices):
    """Kind of a mail."""

    INVITATION = "invitation"
    PASSWORD_RESET = "password_reset"  # noqa: S105 - a name


class MailRequest(TreeModel):
    """A mail to be sent, written in the transaction of its cause.

    It holds no secret: the one-time link is created and the account looked up when the mail is sent, so that a request
    takes the same time for any address.
    """

    kind = models.CharField(max_length=16, choices=MailKind)
    email = models.EmailField(max_length=254)
    membership = models.ForeignKey(Membership, on_delete=models.CASCADE, null=True, related_name="mail_requests")
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["email"], condition=models.Q(membership__isnull=True), name="mail_request_one_reset"
            ),
            models.UniqueConstraint(
                fields=["membership"], condition=models.Q(membership__isnull=False), name="mail_request_one_invitation"
            ),
        ]

    def __str__(self) -> str:
        return str(self.kind)


class KnownAddress(TreeModel):
    """An address (for IPv6 its /64) from which a user signed in, and when last. Kept for 30 days.

    Failed attempts from elsewhere do not lock the user out at a known address.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="known_addresses")
    address = models.CharField(max_length=64)
    last_sign_in_at = models.DateTimeField(default=clock.now)

    class Meta:
        verbose_name_plural = "known addresses"
        constraints = [models.UniqueConstraint(fields=["user", "address"], name="known_address_once")]
        indexes = [
            # used by the job that deletes old ones
            models.Index(fields=["last_sign_in_at"], name="known_address_by_time")
        ]

    def __str__(self) -> str:
        return self.address


class PersonalToken(TreeModel):
    """A bearer token of a user. Only its SHA-256 is stored."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=200)
    public_id = models.CharField(max_length=32)
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return self.name
