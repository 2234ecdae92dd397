"""Deletes stored files that no row names.

A file is stored before the row that names it is written, so a call that fails in between leaves a file without a row.
"""

from __future__ import annotations

import datetime as dt
import itertools
import uuid

from django.db import transaction

from apps.blobs.models import FileSweep, StoredBlob, key_of
from apps.blobs.store import store
from apps.core import clock
from apps.core.db import delete_in_chunks
from apps.core.errors import NotFound
from apps.core.isolation import for_each
from apps.tenancy.selectors import lock_environment

CHUNK = 500


def sweep_orphans(*, before: dt.datetime) -> int:
    """Delete files written before `before` that no row names. Returns their number.

    A file whose deletion fails does not block the others.
    """
    left = FileSweep.objects.filter(finished_at=None).values_list(
        "environment_id", "sha256"
    )  # left by a run that was killed
    deleted = for_each("orphan_files", [key_of(str(where), sha256) for where, sha256 in left], _sweep)
    delete_in_chunks(FileSweep.objects.filter(finished_at__lt=before))
    old = (key for key, written in store().listing() if written < before)
    while keys := list(itertools.islice(old, CHUNK)):
        deleted += for_each("orphan_files", _unnamed(keys), _sweep)
    return deleted


def _parts(key: str) -> tuple[uuid.UUID, str] | None:
    """Split a key into (environment, digest). Returns None for a key that no row can name."""
    parts = key.split("/")
    try:
        return (uuid.UUID(parts[0]), parts[2]) if len(parts) == 3 else None
    except ValueError:
        return None


def _unnamed(keys: list[str]) -> list[str]:
    """Return the `keys` that no row names."""
    places = {key: _parts(key) for key in keys}
    digests = [place[1] for place in places.values() if place is not None]
    named = set(StoredBlob.objects.filter(sha256__in=digests).values_list("environment_id", "sha256"))
    return [key for key, place in places.items() if place not in named]


def _sweep(key: str) -> int:
    """Delete one file, unless a row names it by now.

    An upload of the same bytes whose row is not written yet finds the sweep's row and stores the bytes again.
    """
    place = _parts(key)
    sweep: FileSweep | None = None
    if place is not None:
        with transaction.atomic():
            try:
                environment = lock_environment(place[0])
            except NotFound:  # the environment is deleted: nothing is uploaded to it any more
                pass
            else:
                if StoredBlob.objects.filter(environment=environment, sha256=place[1]).exists():
                    return 0
                sweep = FileSweep.objects.filter(environment=environment, sha256=place[1], finished_at=None).first()
                sweep = sweep or FileSweep.objects.create(environment=environment, sha256=place[1])
    store().delete(key)
    if sweep is not None:
        FileSweep.objects.filter(pk=sweep.pk).update(finished_at=clock.now())
    return 1
