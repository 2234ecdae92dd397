"""Abstract base models."""

from __future__ import annotations

from django.db import models

from apps.core import clock
from apps.core.ids import new_id


class TreeModel(models.Model):
    """A row with a UUIDv7 id and its creation time (UTC)."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        abstract = True


class Mutable(models.Model):
    """An editable row. `rev` counts the edits and is the strong ETag."""

    updated_at = models.DateTimeField(default=clock.now, editable=False)
    rev = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        abstract = True
