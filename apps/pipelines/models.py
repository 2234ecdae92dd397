"""Drafts and versions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import models

from apps.core.models import Mutable, TreeModel
from apps.core.visibility import M, ScopedQuerySet
from apps.tenancy.models import Environment, InEnvironment

MAX_NAME = 200
MAX_SPEC_CHARACTERS = 1024 * 1024
"""More than the spec limit of 256 KiB, so that an oversized spec is stored and gets a diagnostic like any other error."""


class DraftStatus(models.TextChoices):
    """Result of the last ingestion. `pending`: the present text is not ingested yet."""

    PENDING = "pending", "Pending"
    VALID = "valid", "Valid"
    INVALID = "invalid", "Invalid"


class PipelineDraft(InEnvironment, TreeModel, Mutable):
    """Editable pipeline text, with the result of its ingestion.

    `rev` counts edits and `ingest_rev` counts ingestions. Together they form the ETag; If-Match compares `rev` only.
    Status, hash and diagnostics are for display: a promotion compiles the text again.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="drafts", db_index=False)
    name = models.CharField(max_length=MAX_NAME)
    spec = models.TextField()
    status = models.CharField(max_length=16, choices=DraftStatus.choices, default=DraftStatus.PENDING, editable=False)
    pipeline_name = models.CharField(max_length=63, blank=True, editable=False)
    spec_hash = models.CharField(max_length=71, null=True, editable=False)  # noqa: DJ001 - null until there is one
    target = models.CharField(max_length=32, null=True, editable=False)  # noqa: DJ001 - null until it could be read
    capabilities = models.JSONField(default=list, editable=False)
    diagnostics = models.JSONField(default=list, editable=False)
    ingest_rev = models.PositiveIntegerField(default=0, editable=False)
    created_by = models.UUIDField(null=True, editable=False)
    created_by_name = models.CharField(max_length=200, blank=True, editable=False)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["environment", "id"], name="draft_page")]
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=DraftStatus.values), name="draft_status_known"),
        ]

    def __str__(self) -> str:
        return self.name


class FrozenError(TypeError):
    """Raised by an attempt to change a version."""

    def __init__(self) -> None:
        super().__init__("a version never changes")


class FrozenQuerySet(ScopedQuerySet[M]):
    """QuerySet that refuses updates. A database trigger enforces the same rule for other writers."""

    def update(self, **kwargs: Any) -> int:
        raise FrozenError

    def bulk_update(self, objs: Iterable[M], fields: Iterable[str], batch_size: int | None = None) -> int:
        raise FrozenError

    def bulk_create(self, objs: Iterable[M], *args: Any, **kwargs: Any) -> list[M]:
        if kwargs.get("update_conflicts"):
            raise FrozenError
        return super().bulk_create(objs, *args, **kwargs)


class PipelineVersion(InEnvironment, TreeModel):
    """Immutable spec in canonical form, numbered within its environment.

    `draft_id` and `copied_from` name its source. They are not foreign keys: the source may be deleted.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="versions", db_index=False)
    number = models.PositiveIntegerField(editable=False)
    name = models.CharField(max_length=63, editable=False)
    spec_hash = models.CharField(max_length=71, editable=False)
    target = models.CharField(max_length=32, editable=False)
    capabilities = models.JSONField(default=list, editable=False)
    spec = models.TextField(editable=False)
    draft_id = models.UUIDField(null=True, editable=False)
    copied_from = models.UUIDField(null=True, editable=False)
    created_by = models.UUIDField(null=True, editable=False)
    created_by_name = models.CharField(max_length=200, blank=True, editable=False)

    objects = FrozenQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["environment", "id"], name="version_page")]
        constraints = [
            models.UniqueConstraint(fields=["environment", "number"], name="version_number_once"),
            models.UniqueConstraint(fields=["environment", "spec_hash"], name="version_hash_once"),
            models.CheckConstraint(condition=models.Q(number__gte=1), name="version_number_from_one"),
            models.CheckConstraint(
                condition=models.Q(spec_hash__startswith="sha256:"), name="version_hash_names_its_kind"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Insert a new version. Raises FrozenError for a stored one."""
        if not self._state.adding:
            raise FrozenError
        super().save(*args, **{**kwargs, "force_insert": True})
