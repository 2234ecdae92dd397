"""Abstract bases of every row in the tree."""

from __future__ import annotations

from django.db import models

from apps.core import clock
from apps.core.ids import new_id


class TreeModel(models.Model):
    """A row with a UUIDv7 id and the moment it was made (UTC)."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        abstract = True


class Mutable(models.Model):
    """A row people may edit: `rev` counts the edits and is what a strong ETag names."""

    updated_at = models.DateTimeField(default=clock.now, editable=False)
    rev = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        abstract = True
