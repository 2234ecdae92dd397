"""The ownership tree: Organization > Project > Environment > everything else."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.core.validators import RegexValidator
from django.db import models

from apps.core.models import Mutable, TreeModel
from apps.core.visibility import ScopedModel, ScopedQuerySet, Viewer

SLUG = RegexValidator(r"\A[a-z0-9-]{1,63}\Z", "Lower-case letters, digits and hyphens, at most 63.")


class Posture(models.TextChoices):
    """How strict an environment's defaults are. Fixed at creation."""

    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


class NodeQuerySet(ScopedQuerySet[Any]):
    """Rows of one level of the tree."""

    def alive(self) -> NodeQuerySet:
        """Exclude nodes that are being deleted."""
        return self.filter(deleted_at__isnull=True)


class Node(ScopedModel, TreeModel, Mutable):
    """A level of the tree. `deleted_at` is the tombstone: a node with one is invisible, and its slug is free."""

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
    """A tenant, which owns everything below it. `created_by` is the user who created it through the API or the console."""

    level = "organization"
    created_by = models.UUIDField(null=True, editable=False, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["slug"], condition=models.Q(deleted_at__isnull=True), name="organization_slug_unique"
            )
        ]

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """Organizations in which the viewer has any role."""
        alive, sight = models.Q(deleted_at__isnull=True), viewer.visibility
        return alive if sight.everything else alive & models.Q(pk__in=sight.organizations)


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

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """Projects that the viewer has a role on, or on the organization of."""
        alive, sight = models.Q(deleted_at__isnull=True), viewer.visibility
        if sight.everything:
            return alive
        return alive & (models.Q(organization__in=sight.whole_organizations) | models.Q(pk__in=sight.projects))


class Environment(Node):
    """A deployment target: a set of agents under one posture and one approval policy.

    `policy` is the approval policy (the approvals app defines its schema). `retention_days` maps an artifact type to
    days. `enrollments_per_minute` is how many hosts may enroll with a valid token. `agent_upgrade_percent` is the share of
    upgradable agents that may install the agent program that this control plane serves (0: none). `current_deployment_id`
    is the active, not superseded deployment with the highest sequence number.
    """

    level = "environment"
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="environments")
    posture = models.CharField(max_length=16, choices=Posture)
    policy = models.JSONField(default=dict)
    max_in_flight_deployments = models.PositiveIntegerField(default=4)
    retention_days = models.JSONField(default=dict)
    enrollments_per_minute = models.PositiveSmallIntegerField(default=20, db_default=20)
    agent_upgrade_percent = models.PositiveSmallIntegerField(default=0, db_default=0)
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
            models.CheckConstraint(
                condition=models.Q(enrollments_per_minute__gte=1, enrollments_per_minute__lte=600),
                name="environment_enrollments_range",
            ),
            models.CheckConstraint(
                condition=models.Q(agent_upgrade_percent__lte=100), name="environment_upgrade_percent_range"
            ),
        ]

    @property
    def organization_id(self) -> uuid.UUID:
        """Id of the owning organization (one query unless the project is loaded)."""
        return self.project.organization_id

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """Environments of the projects that the viewer may see."""
        alive = models.Q(deleted_at__isnull=True)
        if viewer.visibility.everything:
            return alive
        return alive & models.Q(project__in=Project.objects.visible_to(viewer).values("pk"))


class InOrganization(ScopedModel):
    """Base of models with a foreign key `organization`: a row is visible to the viewers of its organization."""

    class Meta:
        abstract = True

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        return models.Q(organization__in=Organization.objects.visible_to(viewer).values("pk"))


class InEnvironment(ScopedModel):
    """Base of models with a foreign key `environment`: a row is visible to the viewers of its environment.

    Rows without an environment are not visible.
    """

    class Meta:
        abstract = True

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        return models.Q(environment__in=Environment.objects.visible_to(viewer).values("pk"))
