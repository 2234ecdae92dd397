"""Sliding windows: exact over threads and processes, on Redis and on the SQLite file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from apps.limits import stores, windows
from apps.limits.cache import SqliteCache
from apps.limits.stores import RedisStore, SqliteStore, Store
from apps.limits.windows import Window
from tests.services import Missing, redis_server, without

SECOND = 1_000_000


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    try:
        with redis_server() as url:
            # a database of this test process, and none that it empties for its caches (tests/conftest.py)
            worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
            yield f"{url.rsplit('/', 1)[0]}/{6 + worker % 4}"
    except Missing as missing:
        without(missing)


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    windows._leases.reset()
    windows._local.reset()
    if request.param == "sqlite":
        kept = SqliteStore(SqliteCache(str(tmp_path / "limits.sqlite3"), {}))
        monkeypatch.setattr(windows, "store", lambda: kept)
        yield kept
        return
    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
        client.flushdb()
        made = RedisStore(client)
        monkeypatch.setattr(windows, "store", lambda: made)
        yield made


def take(store: Store, key: str, limit: int, *, window: float = 60, wanted: int = 1, lease: float = 0) -> stores.Slots:
    return store.take(key, limit=limit, window=int(window * SECOND), wanted=wanted, lease=int(lease * SECOND))


def test_a_window_allows_its_limit_and_states_what_is_left_and_when_more_is(store: Store) -> None:
    window = Window("person:1", 3)
    before = time.time()
    taken = [windows.take(window) for _ in range(5)]
    assert [each.allowed for each in taken] == [True, True, True, False, False]
    assert [each.remaining for each in taken] == [2, 1, 0, 0, 0]
    assert {each.limit for each in taken} == {3}
    for each in taken:
        assert each.shared
        assert 0 < each.retry_after <= 60
        assert before + 59 <= each.reset_at <= time.time() + 61
    assert windows.take(Window("person:2", 3)).allowed


def in_time(seconds: float, calls: Callable[[str], list[stores.Slots]]) -> tuple[str, list[stores.Slots]]:
    """A new key with what `calls` made with it, the last within `seconds` of the first by the store's clock.

    On a busy machine this process can stand still for longer than a short window: then the calls show nothing.
    """
    for number in range(20):
        made = calls(key := f"k{number}")
        if made[-1].now - made[0].now < seconds * SECOND:
            return key, made
    raise AssertionError(f"the calls never came within {seconds} s")


def test_what_was_refused_does_not_count_and_waiting_for_retry_after_succeeds(store: Store) -> None:
    key, taken = in_time(2, lambda key: [take(store, key, 2, window=2) for _ in range(7)])
    assert [bool(each.taken) for each in taken] == [True, True] + [False] * 5
    time.sleep((taken[-1].oldest + 2 * SECOND - taken[-1].now) / SECOND + 0.001)
    assert take(store, key, 2, window=2).taken


def test_waiting_for_retry_after_succeeds_also_after_the_limit_was_lowered(store: Store) -> None:
    def calls(key: str) -> list[stores.Slots]:
        made = []
        for pause in (0.05, 0.05, 0.4, 0.0):
            made.append(take(store, key, 4, window=1))
            time.sleep(pause)
        refused = take(store, key, 2, window=1)
        time.sleep(max(0.0, (refused.oldest + SECOND - refused.now) / SECOND + 0.001))
        return [*made, refused, *(take(store, key, 2, window=1) for _ in range(2))]

    # while the slot of the fourth call is still in use
    _, taken = in_time(1.5, calls)
    assert [bool(each.taken) for each in taken] == [True] * 4 + [False, True, False]


def test_a_process_that_counts_alone_states_when_a_call_passes_after_the_limit_was_lowered() -> None:
    now = [100.0]
    local = windows._Local(clock=lambda: now[0])
    for _ in range(4):
        assert local.count(Window("k", 4)).allowed
        now[0] += 10
    refused = local.count(Window("k", 2))
    assert (refused.allowed, refused.retry_after) == (False, 120 + 60 - 140)
    now[0] += refused.retry_after
    assert local.count(Window("k", 2)).allowed


def test_never_more_than_the_limit_in_any_window(store: Store) -> None:
    """Asked without a pause until three windows are full: no stretch as long as one holds more than the limit."""
    let_in: list[int] = []
    while len(let_in) < 3 * 7:
        slots = take(store, "k", 7, window=0.3)
        if slots.taken:
            let_in.append(slots.now)
    for earlier, later in zip(let_in, let_in[7:], strict=False):
        assert later - earlier >= 0.3 * SECOND


def test_of_parallel_calls_exactly_the_limit_is_let_in(store: Store) -> None:
    gate, let_in = threading.Barrier(8), []

    def call() -> None:
        gate.wait()
        for _ in range(10):
            let_in.append(bool(take(store, "k", 37).taken))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(let_in) == 37


PROCESS = """
import sys, time, redis
from pathlib import Path
from apps.limits.cache import SqliteCache
from apps.limits.stores import RedisStore, SqliteStore
import django
from django.conf import settings
settings.configure()
kind, where = sys.argv[1:]
store = RedisStore(redis.Redis.from_url(where)) if kind == "redis" else SqliteStore(SqliteCache(where, {}))
store.take("warm" + str(time.time_ns()), limit=1, window=1000, wanted=1, lease=0)
print("ready", flush=True)
input()
for _ in range(3):
    refused = 0
    while refused < 10:
        slots = store.take("k", limit=20, window=1_000_000, wanted=1, lease=0)
        print(slots.now, int(bool(slots.taken)))
        refused += not slots.taken
    time.sleep(0.7)
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_four_processes_share_a_window_also_across_its_edge(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue("redis_url") if kind == "redis" else str(tmp_path / "limits.sqlite3")
    if kind == "redis":
        with redis.Redis.from_url(where) as client:
            client.flushdb()
    command = [sys.executable, "-c", PROCESS, kind, where]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line.split() for process in processes for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * 4
    calls = sorted((int(now), taken == "1") for now, taken in lines)
    let_in = [now for now, taken in calls if taken]
    assert all(later - earlier >= SECOND for earlier, later in zip(let_in, let_in[20:], strict=False))
    # each of those refused, 30 of each process, found the window full
    refused = [now for now, taken in calls if not taken]
    assert len(refused) == 4 * 30
    assert all(bisect_right(let_in, now) - bisect_right(let_in, now - SECOND) == 20 for now in refused)


def test_leases_spare_the_store_while_more_than_half_is_free_and_never_overstate_what_remains(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = store.take
    monkeypatch.setattr(store, "take", lambda *args, **named: asked.append(1) or original(*args, **named))
    window = Window("agent:1", 40)
    taken = [windows.lease(window) for _ in range(41)]
    assert [each.allowed for each in taken] == [True] * 40 + [False]
    # three leases of six fit into the free half of 40; from then on each call asks
    assert len(asked) == 3 + (41 - 18)
    for made, each in enumerate(taken[:40], start=1):
        assert each.remaining <= 40 - made
    assert taken[39].remaining == 0


def test_calls_at_the_same_time_lose_no_slot_that_one_of_them_leased(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked = threading.Barrier(2), []
    original = store.take

    def take_together(*args: Any, **named: Any) -> stores.Slots:
        asked.append(1)
        if len(asked) <= 2:
            gate.wait(timeout=30)
        return original(*args, **named)

    monkeypatch.setattr(store, "take", take_together)
    window = Window("agent:1", 40)
    threads = [threading.Thread(target=windows.lease, args=(window,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 2
    assert [windows.lease(window).remaining for _ in range(10)] == list(range(9, -1, -1))
    assert len(asked) == 2
    windows.lease(window)
    assert len(asked) == 3


def test_a_call_with_a_leased_slot_states_no_more_than_other_processes_left(store: Store) -> None:
    window = Window("agent:1", 40)
    assert windows.lease(window).remaining == 40 - 6
    for used in range(7, 41):
        assert take(store, "agent:1", 40).used == used
    assert [windows.lease(window).remaining for _ in range(5)] == [4, 3, 2, 1, 0]
    assert not windows.lease(window).allowed


def test_a_leased_slot_counts_as_long_as_a_call_made_with_it(store: Store) -> None:
    def later(key: str) -> list[stores.Slots]:
        leased = take(store, key, 20, window=1, wanted=6, lease=1)
        assert len(leased.taken) == 6
        time.sleep(1.1)
        return [leased, take(store, key, 20, window=1)]

    # within a window of the last moment at which they may be used
    key, taken = in_time(2, later)
    assert taken[-1].used == 7
    time.sleep(1.1)
    assert take(store, key, 20, window=1).used == 1


def test_a_call_after_a_lease_does_not_let_the_leased_slots_end_sooner(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        store = RedisStore(client)
        assert len(take(store, "agent:1", 40, wanted=6, lease=60).taken) == 6
        assert take(store, "agent:1", 40).used == 7
        [name] = client.keys()
        # they may be used for a minute, and count for a minute after that
        assert client.pttl(name) > 110_000


def test_unused_leased_slots_are_given_back(store: Store) -> None:
    window = Window("agent:1", 40)
    windows.lease(window)
    assert take(store, "agent:1", 40).used == 7
    windows.give_back_leases()
    assert take(store, "agent:1", 40).used == 3
    assert windows.lease(window).remaining == 40 - 3 - 6


def test_while_the_store_is_away_this_process_counts_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = RedisStore(redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2))
    monkeypatch.setattr(windows, "store", lambda: nowhere)
    windows._local.reset()
    before = windows.away_count()
    taken = [windows.take(Window("person:1", 2)) for _ in range(3)]
    assert [each.allowed for each in taken] == [True, True, False]
    assert not any(each.shared for each in taken)
    assert windows.away_count() == before + 3
    assert "store does not answer" in caplog.text
    windows._local.reset()


def test_old_slots_of_unused_windows_are_deleted(tmp_path: Path) -> None:
    cache = SqliteCache(str(tmp_path / "limits.sqlite3"), {})
    SqliteStore(cache).take("gone", limit=1, window=SECOND, wanted=1, lease=0)
    cache.connection().execute("UPDATE slots SET until = until - 7200 * 1000000")
    for n in range(500):
        cache.set(f"k{n}", 1)
    assert cache.connection().execute("SELECT count(*) FROM slots").fetchone() == (0,)


def test_the_store_is_the_one_of_the_limits_cache(settings: Any) -> None:
    assert isinstance(stores.store(), RedisStore if "redis" in settings.CACHES["limits"]["BACKEND"] else SqliteStore)
