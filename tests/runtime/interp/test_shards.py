"""A ring with a shard key: equal keys one shard, their order kept, records without the key refused."""

from __future__ import annotations

import hashlib
import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.interpreter import Interpreter
from apps.runtime.spec import Plan, compile_spec
from tests.runtime.specs import ONE

SHARDED = ONE + "single_ring.ordering=per_key\nsingle_ring.shard_key=customer.id\n"


def _plan(shards: int) -> Plan:
    plan = compile_spec(SHARDED + f"single_ring.shards={shards}\n").plan
    assert plan is not None
    return plan


def _record(number: int, key: object) -> bytes:
    return json.dumps({"n": number, "customer": {"id": key}}).encode()


def test_equal_keys_are_in_one_shard_and_come_out_in_the_order_they_came_in() -> None:
    runner = Interpreter(_plan(4), {})
    records = [_record(number, number * 7 % 13) for number in range(200)]
    outcomes = list(runner.run(records))
    assert [outcome.emitted for outcome in outcomes] == records
    shards: dict[object, set[int]] = {}
    for record, outcome in zip(records, outcomes, strict=True):
        shards.setdefault(json.loads(record)["customer"]["id"], set()).add(outcome.shard)
    assert all(len(found) == 1 for found in shards.values())
    assert set().union(*shards.values()) == {0, 1, 2, 3}


def test_the_shard_of_a_key_is_fixed_for_ever() -> None:
    runner = Interpreter(_plan(8), {})
    keys = ("ann", 1, 1.5, None, ["a"], {"b": 1, "a": 2}, {"a": 2, "b": 1})
    texts = (b'"ann"', b"1", b"1.5", b"null", b'["a"]', b'{"a":2,"b":1}', b'{"a":2,"b":1}')
    expected = [hashlib.sha256(text).digest()[7] % 8 for text in texts]
    assert [runner.process(_record(0, key)).shard for key in keys] == expected == [3, 1, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("shards", [1, 4])
def test_a_record_without_the_key_is_refused_before_any_stage_and_counted_at_the_ingress(shards: int) -> None:
    runner = Interpreter(_plan(shards), {})
    for record, code in (
        (b"{}", "key_missing"),
        (b'{"customer":1}', "key_missing"),
        (b'{"customer.id":1}', "key_missing"),
        (b"x", "not_json"),
        (b"[]", "not_an_object"),
    ):
        outcome = runner.process(record)
        assert outcome.refused is not None
        assert (outcome.refused.stage, outcome.refused.code, outcome.passed) == ("lane:ingress", code, ())
    runner.process(_record(1, "k"))
    assert runner.metrics()["stages"] == {
        "lane:ingress": {
            "received": 6,
            "forwarded": 1,
            "refused": 5,
            "codes": {"key_missing": 3, "not_json": 1, "not_an_object": 1},
        },
        "a": {"received": 1, "forwarded": 1, "refused": 0, "codes": {}},
    }


def test_what_comes_out_does_not_depend_on_the_number_of_shards() -> None:
    records = [_record(number, number % 5) for number in range(50)]
    outcomes = {tuple(outcome.emitted for outcome in Interpreter(_plan(n), {}).run(records)) for n in (1, 2, 3, 1024)}
    assert len(outcomes) == 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_shards_may_run_in_any_order_as_long_as_each_keeps_its_own(keys: list[int], random: Random) -> None:
    records = [_record(number, key) for number, key in enumerate(keys)]
    expected = dict(zip(records, Interpreter(_plan(3), {}).run(records), strict=True))
    waiting: dict[int, list[bytes]] = {}
    for record in records:
        waiting.setdefault(expected[record].shard, []).append(record)
    runner, came = Interpreter(_plan(3), {}), {}
    while waiting:
        shard = random.choice(sorted(waiting))
        record = waiting[shard].pop(0)
        came[record] = runner.process(record)
        if not waiting[shard]:
            del waiting[shard]
    assert came == expected


def test_without_a_key_per_key_is_one_shard_that_takes_anything() -> None:
    plan = compile_spec(ONE + "single_ring.ordering=per_key\n").plan
    assert plan is not None
    assert Interpreter(plan, {}).process(b"\x00").emitted == b"\x00"
