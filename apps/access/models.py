"""People, their memberships, and their personal tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower

from apps.access.roles import Role
from apps.core.models import TreeModel
from apps.tenancy.models import Organization, Project


class UserManager(BaseUserManager["User"]):
    """Finds people by their e-mail, whatever its case."""

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email=(username or "").lower())

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """A new person with a local password (None: none that works)."""
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save()
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Platform staff."""
        return self.create_user(email, password, is_superuser=True, **fields)


class User(TreeModel, AbstractBaseUser):
    """A person. What they may do comes from memberships; a superuser manages the platform, and decides nothing."""

    email = models.EmailField(max_length=254, unique=True)
    name = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True)
    is_superuser = models.BooleanField(default=False)

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
        """Django's admin asks; who gets in is decided by the console's own site."""
        return self.is_active

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """Model permissions are not used here: only superusers have them."""
        return self.is_active and self.is_superuser

    def has_perms(self, perm_list: list[str], obj: object = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and self.is_superuser


class MemberStatus(models.TextChoices):
    """An invitation, or a member."""

    INVITED = "invited"
    ACTIVE = "active"


class Membership(TreeModel):
    """A role of a person on an organization (project empty) or on one of its projects.

    Until the invitation is accepted there is no `user`. `invitation_sha256` is of the one-time link's token.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, null=True, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, null=True, related_name="memberships")
    email = models.EmailField(max_length=254)
    role = models.CharField(max_length=16, choices=Role)
    status = models.CharField(max_length=16, choices=MemberStatus, default=MemberStatus.INVITED)
    invitation_sha256 = models.CharField(max_length=64, null=True, unique=True, editable=False)  # noqa: DJ001 - unique, so empty is null
    invitation_expires_at = models.DateTimeField(null=True, editable=False)
    invited_by = models.UUIDField(null=True, editable=False)
    rev = models.PositiveIntegerField(default=1, editable=False)

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


class PersonalToken(TreeModel):
    """A bearer token of a person. Only its SHA-256 is kept."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=200)
    public_id = models.CharField(max_length=32)
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return self.name
