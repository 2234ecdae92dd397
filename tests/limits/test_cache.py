"""The counting cache is exact under threads and processes, and usable after a fork."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import time_machine

from apps.core import clock
from apps.limits.cache import SqliteCache


@pytest.fixture
def cache(tmp_path: Path) -> SqliteCache:
    return SqliteCache(str(tmp_path / "limits.sqlite3"), {})


def _count(path: str, times: int) -> None:
    cache = SqliteCache(path, {})
    for _ in range(times):
        if not cache.add("hits", 1, 60):
            cache.incr("hits")


def test_no_count_is_lost_between_four_processes(tmp_path: Path) -> None:
    path = str(tmp_path / "limits.sqlite3")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(path, 250)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert SqliteCache(path, {}).get("hits") == 1000


def test_exactly_one_of_many_threads_adds(cache: SqliteCache) -> None:
    outcomes: list[bool] = []
    gate = threading.Barrier(8)

    def attempt() -> None:
        gate.wait()
        outcomes.append(cache.add("only", 1, 60))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1


def test_a_forked_child_counts_on_a_connection_of_its_own(cache: SqliteCache) -> None:
    cache.set("hits", 0, 60)
    child = os.fork()
    if child == 0:
        cache.incr("hits")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.incr("hits") == 2


def test_an_entry_ends_with_its_time(cache: SqliteCache) -> None:
    with time_machine.travel(clock.now(), tick=False) as traveller:
        cache.set("soon", 1, 5)
        assert cache.get("soon") == 1
        traveller.shift(6)
        assert cache.get("soon") is None
        assert not cache.has_key("soon")
        with pytest.raises(ValueError, match="not found"):
            cache.incr("soon")
        assert cache.add("soon", 5, 60)
        assert cache.get("soon") == 5


def test_values_are_json_and_an_entry_without_a_timeout_stays(cache: SqliteCache) -> None:
    cache.set("thing", {"a": [1, None, True]}, None)
    assert cache.get("thing") == {"a": [1, None, True]}
    assert cache.touch("thing", 60)
    assert cache.delete("thing")
    assert not cache.delete("thing")
    assert not cache.touch("thing", 60)
    assert cache.get("thing", "gone") == "gone"


def test_the_file_is_for_its_owner_only(cache: SqliteCache, tmp_path: Path) -> None:
    cache.set("x", 1)
    assert (tmp_path / "limits.sqlite3").stat().st_mode & 0o077 == 0
    cache.clear()
    assert cache.get("x") is None
