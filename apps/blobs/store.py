"""The port to where files live: a folder, or a bucket that speaks S3."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast
from urllib.parse import unquote, urlsplit

from django.conf import settings

from apps.core.readiness import NotReady
from apps.runtime.faults import fault_point

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef


class Store(Protocol):
    """What a store promises. Keys are `environment/ab/abcdef…`. A file that `put` has answered for is on disk, whole."""

    def put(self, key: str, data: bytes) -> None: ...

    def open(self, key: str) -> IO[bytes]:
        """The file's bytes. FileNotFoundError when it is not there."""
        ...

    def delete(self, key: str) -> None:
        """Remove it; no error when it is gone."""

    def delete_prefix(self, prefix: str) -> None:
        """Remove every file whose key begins with `prefix/`."""

    def listing(self) -> Iterator[tuple[str, datetime]]:
        """Every key with the moment it was written."""
        ...

    def check(self) -> None:
        """Raise when files can't be written here."""


class FolderStore:
    """Files below one folder, written beside, synced and renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / key

    def put(self, key: str, data: bytes) -> None:
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
        return self._path(key).open("rb")

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    def listing(self) -> Iterator[tuple[str, datetime]]:
        for path in sorted(self.root.glob("**/*")):
            if path.is_file():
                yield (
                    path.relative_to(self.root).as_posix(),
                    datetime.fromtimestamp(path.stat().st_mtime, tz=UTC),
                )

    def check(self) -> None:
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)


class BucketStore:
    """Objects below a prefix of an S3 bucket; each upload carries its SHA-256, which the store checks."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @property
    def client(self) -> S3Client:
        return _s3_client()

    def _key(self, key: str) -> str:
        return self.prefix + key

    def put(self, key: str, data: bytes) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, ChecksumSHA256=checksum)

    def open(self, key: str) -> IO[bytes]:
        try:
            body = self.client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
        except self.client.exceptions.NoSuchKey:
            raise FileNotFoundError(key) from None
        return cast(IO[bytes], body)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_prefix(self, prefix: str) -> None:
        for page in self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(prefix) + "/"
        ):
            names: list[ObjectIdentifierTypeDef] = [{"Key": item["Key"]} for item in page.get("Contents", [])]
            if names:
                self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": names})

    def listing(self) -> Iterator[tuple[str, datetime]]:
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self.prefix), item["LastModified"]

    def check(self) -> None:
        self.client.head_bucket(Bucket=self.bucket)


@lru_cache(maxsize=1)
def _s3_client() -> S3Client:
    import boto3

    return boto3.client("s3")


@lru_cache(maxsize=4)
def _store_at(url: str) -> Store:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    return BucketStore(parts.netloc, parts.path)


def store() -> Store:
    """The store that the settings name."""
    return _store_at(settings.BYTEOR_STORAGE_URL)


def check_store() -> None:
    """Readiness: files can be written."""
    try:
        store().check()
    except Exception as error:  # whatever the disk or the bucket answers, it is not ready
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NotReady(f"storage can't be written: {why}") from error
