"""A node of the tree with its parents."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db.models import Q

from apps.tenancy.models import Environment, Organization, Project


@dataclass(frozen=True, slots=True)
class Scope:
    """An organization, optionally with one of its projects and one of that project's environments. None is deleted."""

    organization: Organization
    project: Project | None = None
    environment: Environment | None = None

    @property
    def organization_id(self) -> uuid.UUID:
        return self.organization.pk

    @property
    def project_id(self) -> uuid.UUID | None:
        return self.project.pk if self.project else None

    @property
    def environment_id(self) -> uuid.UUID | None:
        return self.environment.pk if self.environment else None

    @property
    def level(self) -> str:
        """`organization`, `project` or `environment`."""
        return self.node.level

    @property
    def node(self) -> Organization | Project | Environment:
        """The deepest row of the scope."""
        return self.environment or self.project or self.organization

    def require_environment(self) -> Environment:
        """Return the environment. A scope without one is a programming error."""
        if self.environment is None:
            raise TypeError("this scope has no environment")
        return self.environment

    def as_dict(self) -> dict[str, str]:
        """`{organization_id, project_id?, environment_id?}` as text, for audit and logs."""
        ids = {
            "organization_id": self.organization_id,
            "project_id": self.project_id,
            "environment_id": self.environment_id,
        }
        return {name: str(value) for name, value in ids.items() if value is not None}

    def below(self, prefix: str = "") -> Q:
        """The condition for environments of the scope, or for rows whose environment is at `prefix` (`environment__`)."""
        path = {"environment": "pk", "project": "project", "organization": "project__organization"}[self.level]
        return Q(**{f"{prefix}{path}": self.node.pk})
