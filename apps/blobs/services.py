"""Store and read files.

A file is stored first, outside any transaction. Its row is written in the transaction of the object that names it, so
that no lock is held during a call to the store. A file whose row is never written is deleted after a day.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import IO

import structlog

from apps.blobs.models import FileSweep, StoredBlob, key_of
from apps.blobs.store import store
from apps.core.errors import NotFound, StorageUnavailable
from apps.runtime.faults import fault_point

log = structlog.get_logger(__name__)

errors: Counter[str] = Counter(lost=0, changed=0)
"""Number of files that this process found missing or corrupt, by kind."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the store. `sweep` is the id of the last deletion of the same bytes that was known before the upload."""

    environment_id: uuid.UUID
    sha256: str
    size: int
    sweep: int | None


def _latest_sweep(environment_id: uuid.UUID, sha256: str) -> int | None:
    """Return the last deletion of these bytes. Raises StorageUnavailable while it is in progress."""
    rows = FileSweep.objects.filter(environment_id=environment_id, sha256=sha256).order_by("-pk")
    latest = rows.values_list("pk", "finished_at").first()
    if latest is None:
        return None
    if latest[1] is None:
        raise StorageUnavailable("the same bytes are being deleted")
    return int(latest[0])


def store_file(*, environment_id: uuid.UUID, data: bytes) -> StoredFile:
    """Store `data` in the environment's store, once per digest. Raises StorageUnavailable.

    Call it outside any transaction, then `record_file` in the transaction that names the file.
    """
    digest = hashlib.sha256(data).hexdigest()
    sweep = _latest_sweep(environment_id, digest)
    store().put(key_of(str(environment_id), digest), data)
    return StoredFile(environment_id, digest, len(data), sweep)


def record_file(file: StoredFile) -> StoredBlob:
    """Write the row of a stored file, in the caller's transaction, which has locked the environment.

    Raises StorageUnavailable if the same bytes were deleted since they were stored: store them again.
    """
    fault_point("blobs.put.before_row")
    if _latest_sweep(file.environment_id, file.sha256) != file.sweep:
        raise StorageUnavailable("the same bytes were deleted meanwhile")
    row: StoredBlob
    row, _ = StoredBlob.objects.get_or_create(
        environment_id=file.environment_id, sha256=file.sha256, defaults={"size": file.size}
    )
    return row


def open_blob(blob: StoredBlob) -> IO[bytes]:
    """Return the file's bytes as a stream, verified against the row's digest. The caller closes it.

    Raises NotFound if the store has no such file, and StorageUnavailable if it does not respond or keeps returning
    other bytes. The log names the file in both cases.
    """
    where = {"environment_id": str(blob.environment_id), "sha256": blob.sha256, "key": blob.key}
    for _ in range(2):
        try:
            stream = store().open(blob.key)
        except FileNotFoundError:
            log.error("stored file missing", **where)
            errors["lost"] += 1
            raise NotFound("The stored file is missing.") from None
        checked = _checked(stream, blob)
        if checked is not None:
            return checked
    log.error("stored file corrupt", **where)
    errors["changed"] += 1
    raise StorageUnavailable("get: the bytes differ from the stored digest")


def _checked(stream: IO[bytes], blob: StoredBlob) -> IO[bytes] | None:
    """Return `stream` at its beginning if its bytes match the row's digest, else close it and return None."""
    digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != blob.sha256:
        stream.close()
        return None
    stream.seek(0)
    return stream
