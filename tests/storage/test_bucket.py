"""The bucket store against an S3 server that is as bad as can be: bounded in time, and each fault by its name."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from apps.blobs import guard, store
from apps.blobs.store import BucketStore, _s3_client
from apps.core.errors import StorageUnavailable
from tests.flows.world import until
from tests.storage.proxy import BUCKET, CREDENTIALS, FaultProxy

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture
def bucket(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketStore]:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": proxy.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "CHECK_SECONDS", store.CALL_SECONDS)
    monkeypatch.setattr(store, "_guard", guard.Guard(places=4))
    _s3_client.cache_clear()
    yield BucketStore(BUCKET, "some/prefix")
    _s3_client.cache_clear()


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Calls end after two seconds. Not around calls that have to succeed: a busy machine may take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CALL_SECONDS", 2.0)
        patch.setattr(store, "CHECK_SECONDS", 2.0)
        yield


def test_what_is_put_is_read_listed_and_deleted(bucket: BucketStore) -> None:
    for name in ("a/1", "a/2", "b/1"):
        bucket.put(name, name.encode())
    with bucket.open("a/2") as found:
        assert found.read() == b"a/2"
    assert {key for key, _ in bucket.listing()} == {"a/1", "a/2", "b/1"}
    bucket.delete_prefix("a")
    bucket.delete("b/1")
    bucket.delete("never there")
    assert not list(bucket.listing())
    with pytest.raises(FileNotFoundError):
        bucket.open("a/1")
    bucket.check()


def test_deleting_what_lies_below_a_prefix_is_bounded_as_a_whole(
    bucket: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        bucket.put(f"a/{number}", b"x")
    pages = bucket.client.get_paginator
    monkeypatch.setattr(bucket.client, "get_paginator", lambda name: _Small(pages(name)))
    delete, calls = bucket._delete, []

    def slowly(names: list[Any]) -> None:
        calls.append(len(names))
        delete(names)

    monkeypatch.setattr(bucket, "_delete", slowly)
    with monkeypatch.context() as patch:
        # each page takes ten seconds of this clock
        patch.setattr(store, "time", SimpleNamespace(monotonic=lambda: 10.0 * len(calls)))
        assert bucket.delete_prefix("a", until=30.0) is False
    assert calls == [1, 1, 1]
    assert len(list(bucket.listing())) == 3
    assert bucket.delete_prefix("a") is True
    assert not list(bucket.listing())


class _Small:
    """A paginator whose pages hold one key each."""

    def __init__(self, paginator: Any) -> None:
        self._paginator = paginator

    def paginate(self, **options: Any) -> Any:
        return self._paginator.paginate(**options, PaginationConfig={"PageSize": 1})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang", "no response in 2 s"),
        ("refuse", "EndpointConnectionError"),
        ("403", "403 AccessDenied"),
        ("503", "503 SlowDown"),
    ],
)
def test_each_fault_is_unavailable_in_time_and_named(
    bucket: BucketStore, proxy: FaultProxy, fault: str, words: str
) -> None:
    bucket.put("kept", b"kept")
    hangs = fault == "hang"
    with proxy.broken(fault), impatient() if hangs else contextlib.nullcontext():
        for act in (
            lambda: bucket.put("x", b"x"),
            lambda: bucket.open("kept"),
            lambda: bucket.delete("kept"),
            bucket.check,
        ):
            began = time.monotonic()
            with pytest.raises(StorageUnavailable) as raised:
                act()
            assert time.monotonic() - began < 20
            assert words in raised.value.reason
            assert "AccessDenied" not in raised.value.detail
            if hangs:
                break
    with bucket.open("kept") as found:
        assert found.read() == b"kept"


def test_an_object_that_is_lost_is_not_there_and_one_that_is_changed_fails_the_check(
    bucket: BucketStore, proxy: FaultProxy
) -> None:
    bucket.put("kept", b"kept")
    with proxy.broken("lose"), pytest.raises(FileNotFoundError):
        bucket.open("kept")
    with proxy.broken("flip"), pytest.raises(StorageUnavailable, match="differ from the bytes written"):
        bucket.check()


def test_a_bucket_that_is_not_there_is_no_lost_object(bucket: BucketStore) -> None:
    with pytest.raises(StorageUnavailable, match="404 NoSuchBucket"):
        BucketStore("nobody-made-this", "").open("kept")


def test_a_store_that_hangs_holds_a_few_threads_and_refuses_the_others_at_once(
    bucket: BucketStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []

    def hold() -> None:
        with contextlib.suppress(StorageUnavailable, FileNotFoundError):
            bucket.open("kept").close()

    held = store._guard._begun
    with proxy.broken("hang"):
        # the client itself gives none of the four up before this
        monkeypatch.setattr(store, "CALL_SECONDS", 60.0)
        threads = [threading.Thread(target=hold) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(held) == 4 and time.monotonic() - min(held.values()) > guard.SLOW_SECONDS)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(StorageUnavailable) as raised:
                bucket.open("kept")
            reasons.append(raised.value.reason)
        assert time.monotonic() - began < 20
        assert reasons == ["get: earlier calls are still waiting for the store"] * 20
        assert len(held) == 4
    for thread in threads:
        thread.join()
