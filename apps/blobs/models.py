"""Which file belongs to which environment."""

from __future__ import annotations

from django.db import models

from apps.core.models import TreeModel
from apps.tenancy.models import Environment


class StoredBlob(TreeModel):
    """One file of an environment, by the SHA-256 of its bytes. The file is there before the row is."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="blobs")
    sha256 = models.CharField(max_length=64)
    size = models.PositiveBigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["environment", "sha256"], name="blob_once_per_environment")]

    def __str__(self) -> str:
        return self.sha256

    @property
    def key(self) -> str:
        """Where the store keeps it."""
        return key_of(str(self.environment_id), self.sha256)


def key_of(environment_id: str, sha256: str) -> str:
    """The store's key: environments never share a file, so that deleting one can't touch a sibling's."""
    return f"{environment_id}/{sha256[:2]}/{sha256}"
