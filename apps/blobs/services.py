"""Keeping and reading files."""

from __future__ import annotations

import hashlib
import uuid
from typing import IO

from django.db import transaction

from apps.blobs.models import StoredBlob, key_of
from apps.blobs.store import store
from apps.core.errors import NotFound
from apps.runtime.faults import fault_point


def put(*, environment_id: uuid.UUID, data: bytes) -> StoredBlob:
    """Keep `data` for the environment; the same bytes are kept once. The row is part of the caller's transaction.

    The file is safely stored before the row is written: a rolled-back transaction leaves a file without a row, which
    the sweep collects after its grace period.
    """
    digest = hashlib.sha256(data).hexdigest()
    store().put(key_of(str(environment_id), digest), data)
    fault_point("blobs.put.before_row")
    with transaction.atomic():
        row, _ = StoredBlob.objects.get_or_create(
            environment_id=environment_id, sha256=digest, defaults={"size": len(data)}
        )
    return row


def open_blob(blob: StoredBlob) -> IO[bytes]:
    """The file's bytes as a stream to be closed. NotFound when the store has lost it."""
    try:
        return store().open(blob.key)
    except FileNotFoundError:
        raise NotFound("The stored file is not there.") from None


def read_blob(*, environment_id: uuid.UUID, sha256: str) -> bytes:
    """The bytes of a small file. NotFound when the environment has no such file."""
    row = StoredBlob.objects.filter(environment_id=environment_id, sha256=sha256).first()
    if row is None:
        raise NotFound()
    with open_blob(row) as stream:
        return stream.read()
