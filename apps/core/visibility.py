"""Which rows of the tree a caller may see: one queryset method for every model that belongs to a place of the tree."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from django.db import models

from apps.core.fsm import GuardedQuerySet


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a caller may see by its roles.

    `everything` is true for platform staff. `organizations` are those with any role of the caller, `whole_organizations`
    those with a role on the organization itself, which reaches all of its projects, `administered` those with org_admin;
    `projects` have a role of their own.
    """

    everything: bool = False
    organizations: frozenset[uuid.UUID] = frozenset()
    whole_organizations: frozenset[uuid.UUID] = frozenset()
    administered: frozenset[uuid.UUID] = frozenset()
    projects: frozenset[uuid.UUID] = frozenset()


class Viewer(Protocol):
    """A caller whose roles are known. `apps.access.principals.Principal` is one."""

    @property
    def visibility(self) -> Visibility: ...


class ScopedModel(models.Model):
    """Base of the models that belong to a place of the tree. Their queryset is a `ScopedQuerySet`."""

    class Meta:
        abstract = True

    @classmethod
    def visible_where(cls, viewer: Viewer) -> models.Q:
        """The condition for the rows that `viewer` may see."""
        raise NotImplementedError


M = TypeVar("M", bound=ScopedModel)


class ScopedQuerySet(models.QuerySet[M]):
    """Rows that belong to a place of the tree."""

    def visible_to(self, viewer: Viewer) -> Self:
        """The rows that `viewer` may see. No query beyond that of the viewer's roles."""
        return self.filter(self.model.visible_where(viewer))


class GuardedScopedQuerySet(GuardedQuerySet, ScopedQuerySet[Any]):  # type: ignore[override]  # the managers made of both
    """Rows that belong to a place of the tree, and whose status only transitions change."""
