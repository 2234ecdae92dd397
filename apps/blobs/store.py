"""The file store interface, with a local folder and an S3 bucket as implementations."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

from django.conf import settings
from urllib3.exceptions import HTTPError

from apps.blobs.guard import Guard
from apps.core.db import is_full
from apps.core.errors import StorageUnavailable
from apps.core.readiness import NotReady
from apps.runtime.faults import fault_point

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

T = TypeVar("T")


class Store(Protocol):
    """Interface of a file store. Keys are `environment/ab/abcdef…`. When `put` returns, the whole file is on disk.

    Each method raises StorageUnavailable if the store does not respond in time or responds with an error.
    """

    def put(self, key: str, data: bytes) -> None: ...

    def open(self, key: str) -> IO[bytes]:
        """Return the file's bytes, fully loaded. Raises FileNotFoundError if there is no such file."""
        ...

    def delete(self, key: str) -> None:
        """Delete the file. No error if it does not exist."""

    def delete_prefix(self, prefix: str, *, until: float | None = None) -> bool:
        """Delete every file whose key begins with `prefix/`. Returns whether all are deleted.

        Stops at `until` (`time.monotonic()`), leaving files. Safe to repeat.
        """
        ...

    def listing(self) -> Iterator[tuple[str, datetime]]:
        """Iterate over every key and its modification time, in no order."""
        ...

    def check(self) -> None:
        """Write, read and delete a small file."""


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn disk errors into StorageUnavailable, except a full disk and a missing file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_full(error):
            raise
        raise StorageUnavailable(f"{name}: {error.strerror or type(error).__name__}") from error


class FolderStore:
    """Files below one folder. Each is written to a temporary file, synced and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / key

    def put(self, key: str, data: bytes) -> None:
        with _named("put"):
            self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.root / ".drafts" / uuid.uuid4().hex
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            fault_point("blobs.store.before_rename")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def open(self, key: str) -> IO[bytes]:
        with _named("get"):
            return self._path(key).open("rb")

    def delete(self, key: str) -> None:
        with _named("delete"):
            self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str, *, until: float | None = None) -> bool:
        with _named("delete"):
            for folder, _, names in os.walk(self._path(prefix), topdown=False):
                for name in names:
                    if until is not None and time.monotonic() >= until:
                        return False
                    Path(folder, name).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    Path(folder).rmdir()
        return True

    def listing(self) -> Iterator[tuple[str, datetime]]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # a concurrent call created it first
                    written = path.stat().st_mtime
                    yield path.relative_to(self.root).as_posix(), datetime.fromtimestamp(written, tz=UTC)

    def check(self) -> None:
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)


CONNECT_SECONDS, READ_SECONDS, TRIES = 2, 5, 2
CALL_SECONDS = 15.0
BYTES_A_SECOND = 1024 * 1024
"""A call may take `CALL_SECONDS`, plus one second per this many bytes."""
CHECK_SECONDS = 4.0
IN_MEMORY = 1024 * 1024
_CHUNK = 256 * 1024
_guard = Guard(places=4)
_check_guard = Guard(places=1)


def _seconds_left(until: float | None) -> float:
    """Return the time limit of one call: `CALL_SECONDS`, or the time left to `until` if that is shorter."""
    return CALL_SECONDS if until is None else max(0.1, min(CALL_SECONDS, until - time.monotonic()))


class BucketStore:
    """Objects below a prefix of an S3 bucket; each upload carries its SHA-256, which the store checks."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @property
    def client(self) -> S3Client:
        return _s3_client(os.getpid())

    def _key(self, key: str) -> str:
        return self.prefix + key

    def put(self, key: str, data: bytes) -> None:
        self._call("put", lambda: self._put(key, data), CALL_SECONDS + len(data) / BYTES_A_SECOND)

    def _put(self, key: str, data: bytes) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, ChecksumSHA256=checksum)

    def open(self, key: str) -> IO[bytes]:
        return self._call("get", lambda: self._get(key), CALL_SECONDS)

    def _get(self, key: str) -> IO[bytes]:
        until = time.monotonic() + CALL_SECONDS
        answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key))
        kept = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))  # noqa: SIM115 - the caller closes it
        with contextlib.closing(answer["Body"]) as body:
            while piece := body.read(_CHUNK):
                kept.write(piece)
                if time.monotonic() > until:
                    kept.close()
                    raise StorageUnavailable("get: the response body did not end")
        kept.seek(0)
        return kept

    def delete(self, key: str) -> None:
        self._call("delete", lambda: self.client.delete_object(Bucket=self.bucket, Key=self._key(key)), CALL_SECONDS)

    def delete_prefix(self, prefix: str, *, until: float | None = None) -> bool:
        pages = self._pages(self._key(prefix) + "/", until)
        try:
            while until is None or time.monotonic() < until:
                keys = next(pages, None)
                if keys is None:
                    return True
                names: list[ObjectIdentifierTypeDef] = [{"Key": key} for key, _ in keys]
                if names:
                    self._call("delete", lambda: self._delete(names), _seconds_left(until))  # noqa: B023 - called at once
        except StorageUnavailable:
            if until is None or time.monotonic() < until:
                raise
        return False

    def _delete(self, names: list[ObjectIdentifierTypeDef]) -> None:
        answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": names, "Quiet": True})
        errors = answer.get("Errors", [])
        if errors:
            raise StorageUnavailable(f"delete: {errors[0].get('Code', 'refused')} for {len(errors)} objects")

    def listing(self) -> Iterator[tuple[str, datetime]]:
        for keys in self._pages(self.prefix):
            for key, written in keys:
                yield key.removeprefix(self.prefix), written

    def _pages(self, prefix: str, until: float | None = None) -> Iterator[list[tuple[str, datetime]]]:
        paginator = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        pages = iter(paginator)
        while True:
            page = self._call("list", lambda: next(pages, None), _seconds_left(until))
            if page is None:
                return
            yield [(item["Key"], item["LastModified"]) for item in page.get("Contents", [])]

    def check(self) -> None:
        self._call("check", self._check, CHECK_SECONDS, _check_guard)

    def _check(self) -> None:
        key = f".probes/{uuid.uuid4().hex}"
        self._put(key, b"x")
        with self._get(key) as found:
            if found.read() != b"x":
                raise StorageUnavailable("get: the bytes read differ from the bytes written")
        self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def _call(self, name: str, act: Callable[[], T], seconds: float, guard: Guard | None = None) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return (guard or _guard).call(act, seconds=seconds, name=name)
        except ClientError as error:
            details = error.response.get("Error", {})
            if details.get("Code") == "NoSuchKey":
                raise FileNotFoundError from None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
            raise StorageUnavailable(f"{name}: {status} {details.get('Code', '')}".rstrip()) from error
        except (BotoCoreError, OSError, HTTPError) as error:
            raise StorageUnavailable(f"{name}: {type(error).__name__}") from error


@lru_cache(maxsize=1)
def _s3_client(pid: int) -> S3Client:
    """Return this process's client: a fork must not share its parent's connections."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": TRIES, "mode": "standard"},
            # the bytes are compared with the digest in the database row
            response_checksum_validation="when_required",
        ),
    )


@lru_cache(maxsize=4)
def _store_at(url: str) -> Store:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    return BucketStore(parts.netloc, parts.path)


def store() -> Store:
    """Return the store that the settings select."""
    return _store_at(settings.BYTEOR_STORAGE_URL)


def check_store() -> None:
    """Readiness check: files can be written, read and deleted."""
    try:
        store().check()
    except StorageUnavailable as error:
        raise NotReady(f"storage: {error.reason}") from error
    except OSError as error:
        raise NotReady(f"storage is not writable: {error.strerror or type(error).__name__}") from error
