"""Models of stored files."""

from __future__ import annotations

from django.db import models

from apps.core import clock
from apps.core.models import TreeModel
from apps.core.visibility import ScopedQuerySet
from apps.tenancy.models import Environment, InEnvironment


class StoredBlob(InEnvironment, TreeModel):
    """A file of an environment, identified by the SHA-256 of its bytes. The file is stored before its row is written."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="blobs")
    sha256 = models.CharField(max_length=64)
    size = models.PositiveBigIntegerField()

    objects = ScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["environment", "sha256"], name="blob_once_per_environment")]

    def __str__(self) -> str:
        return self.sha256

    @property
    def key(self) -> str:
        """The file's key in the store."""
        return key_of(str(self.environment_id), self.sha256)


class FileSweep(models.Model):
    """The deletion of a file that no row names, in progress or finished.

    The row is written under the environment's lock, before the file is deleted. An upload of the same bytes sees it and
    does not rely on the file (`services.record_file`).
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="file_sweeps")
    sha256 = models.CharField(max_length=64)
    started_at = models.DateTimeField(default=clock.now)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["environment", "sha256", "-id"], name="file_sweep_latest")]  # used by uploads

    def __str__(self) -> str:
        return self.sha256


def key_of(environment_id: str, sha256: str) -> str:
    """Return the store's key of a file.

    Environments never share a file, so deleting one environment's files can't affect another's.
    """
    return f"{environment_id}/{sha256[:2]}/{sha256}"
