"""Limits that hold for one organization instead of the usual ones."""

from __future__ import annotations

from django.db import models

from apps.core.models import Mutable, TreeModel
from apps.core.visibility import ScopedModel, ScopedQuerySet, Viewer
from apps.tenancy.models import Organization

RANGES = {"person_calls": (60, 6_000), "agent_calls": (60, 6_000)}
"""{limit: the lowest and the highest number a minute that it can be set to}."""
USUAL = {"person_calls": 600, "agent_calls": 240}
"""{limit: the number a minute where no organization has one of its own}."""


class RateOverride(ScopedModel, TreeModel, Mutable):
    """Limits a minute of one organization. A limit that is null is the usual one."""

    organization = models.OneToOneField(Organization, on_delete=models.CASCADE, related_name="rate_override")
    person_calls = models.PositiveIntegerField("calls of a person", null=True, blank=True)
    agent_calls = models.PositiveIntegerField("calls of an agent", null=True, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(**{f"{name}__gte": low, f"{name}__lte": high})
                | models.Q(**{f"{name}__isnull": True}),
                name=f"rate_override_{name}_range",
            )
            for name, (low, high) in RANGES.items()
        ]

    def __str__(self) -> str:
        return f"Limits of {self.organization}"

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """The limits of organizations that the viewer administers; all of them for platform staff."""
        alive, sight = models.Q(organization__deleted_at__isnull=True), viewer.visibility
        return alive if sight.everything else alive & models.Q(organization__in=sight.administered)
