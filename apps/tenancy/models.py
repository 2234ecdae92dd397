"""The ownership tree: Organization > Project > Environment > everything else."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.core.validators import RegexValidator
from django.db import models

from apps.core.models import Mutable, TreeModel

SLUG = RegexValidator(r"\A[a-z0-9-]{1,63}\Z", "Lower-case letters, digits and hyphens, at most 63.")


class Posture(models.TextChoices):
    """How careful an environment is. Fixed when it is made."""

    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


class NodeQuerySet(models.QuerySet[Any]):
    """Rows of one level of the tree."""

    def alive(self) -> NodeQuerySet:
        """Without those that are being deleted."""
        return self.filter(deleted_at__isnull=True)


class Node(TreeModel, Mutable):
    """A level of the tree. `deleted_at` is the tombstone: set, it exists for nobody, and its slug is free."""

    name = models.CharField(max_length=200)
    slug = models.CharField(max_length=63, validators=[SLUG])
    deleted_at = models.DateTimeField(null=True, editable=False)

    objects = NodeQuerySet.as_manager()
    level: ClassVar[str]

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.name


class Organization(Node):
    """A customer. Everything they have hangs below it."""

    level = "organization"

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["slug"], condition=models.Q(deleted_at__isnull=True), name="organization_slug_unique"
            )
        ]


class Project(Node):
    """A product or team inside an organization."""

    level = "project"
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="projects")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "slug"],
                condition=models.Q(deleted_at__isnull=True),
                name="project_slug_unique",
            )
        ]


class Environment(Node):
    """Where releases go: a set of agents under one posture and one approval policy.

    `policy` is the approval policy (its shape belongs to the approvals room), `retention_days` maps an artifact type
    to days, `current_deployment_id` is the highest-sequence active deployment that is not superseded.
    """

    level = "environment"
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="environments")
    posture = models.CharField(max_length=16, choices=Posture)
    policy = models.JSONField(default=dict)
    max_in_flight_deployments = models.PositiveIntegerField(default=4)
    retention_days = models.JSONField(default=dict)
    current_deployment_id = models.UUIDField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "slug"],
                condition=models.Q(deleted_at__isnull=True),
                name="environment_slug_unique",
            ),
            models.CheckConstraint(condition=models.Q(posture__in=Posture.values), name="environment_posture_known"),
            models.CheckConstraint(
                condition=models.Q(max_in_flight_deployments__gte=1, max_in_flight_deployments__lte=1000),
                name="environment_cap_range",
            ),
        ]

    @property
    def organization_id(self) -> uuid.UUID:
        """The organization that owns it (one query unless the project is loaded)."""
        return self.project.organization_id
