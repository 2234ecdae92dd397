"""A graph run over records: every kind of role, every policy, full lanes, and that no schedule changes a byte."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.interpreter import Emission, Interpreter
from apps.runtime.ops import EffectFailed
from apps.runtime.outcome import Outcome
from tests.runtime.graphs import graphs, seeds
from tests.runtime.interp.test_effects import RecordedEffects
from tests.runtime.schedules import check_any_schedule
from tests.runtime.specs import Lane, Role, bridge, graph, graph_plan, merge, router, stage

IN, OUT = ("in", "events"), ("out", "journal")
ENDS = (("ingress", "in"), ("egress", "out"))


def _run(text: str, *records: bytes, stages: dict[str, dict[str, object]] | None = None) -> list[list[Emission]]:
    runner = Interpreter(graph_plan(text), stages or {})
    return [list(outcome.emissions) for outcome in runner.run(records)]


def _lanes(*names: str, kind: str = "events") -> list[Lane]:
    return [IN, OUT, *((name, kind) for name in names)]


def test_a_stage_and_a_bridge_send_the_record_on() -> None:
    text = graph(_lanes("a"), ENDS, {"s": stage("dataguard_redact", "in", "a"), "b": bridge("a", "out")})
    runner = Interpreter(graph_plan(text), {"s": {"rules": ["card:drop"]}})
    outcome = runner.process(b'{"id":1,"card":"4"}')
    assert outcome == Outcome((Emission("out", b'{"id":1}'),), (), ("s", "b"))
    assert (outcome.emitted, outcome.refused) == (b'{"id":1}', None)
    refused = runner.process(b"[]")
    assert (refused.emissions, refused.passed) == ((), ())
    assert [(item.stage, item.code) for item in refused.refusals] == [("s", "not_an_object")]
    assert runner.metrics()["stages"] == {
        "s": {"received": 2, "forwarded": 1, "refused": 1, "codes": {"not_an_object": 1}},
        "b": {"received": 1, "forwarded": 1, "refused": 0, "codes": {}},
    }


def test_copies_of_a_record_do_not_see_what_happens_to_each_other() -> None:
    split: dict[str, tuple[list[Lane], dict[str, Role]]] = {
        "broadcast": ([], {"split": router("broadcast", "in", "a", "b")}),
        "fanout": ([("f", "fanout_broadcast", {"consumers": 2})], {"split": bridge("in", "f")}),
    }
    for way, (more, roles) in split.items():
        first, second = ("f", "f") if way == "fanout" else ("a", "b")
        used = [] if way == "fanout" else ["a", "b"]
        text = graph(
            [*_lanes(*used, "x", "y"), *more],
            ENDS,
            {
                **roles,
                "one": stage("dataguard_redact", first, "x"),
                "two": stage("dataguard_redact", second, "y"),
                "join": merge("ordered", "out", "x", "y"),
            },
        )
        stages: dict[str, dict[str, object]] = {"one": {"rules": ["a:drop"]}, "two": {"rules": ["b:drop"]}}
        assert _run(text, b'{"a":1,"b":2}', stages=stages) == [[("out", b'{"b":2}'), ("out", b'{"a":1}')]]


def test_a_fanout_keeps_for_its_egress_what_a_stage_on_another_copy_removes() -> None:
    text = graph(
        [IN, OUT, ("f", "fanout_broadcast", {"consumers": 2})],
        [*ENDS, ("egress", "f")],
        {"a": bridge("in", "f"), "b": stage("dataguard_redact", "f", "out")},
    )
    record = b'{ "card": 1, "id": 2 }'
    assert _run(text, record, stages={"b": {"rules": ["card:drop"]}}) == [[("f", record), ("out", b'{"id":2}')]]


def test_a_round_robin_takes_its_ways_in_turn_over_all_records() -> None:
    text = graph(
        [IN, ("a", "journal"), ("b", "journal"), ("c", "journal")],
        [("ingress", "in"), ("egress", "a"), ("egress", "b"), ("egress", "c")],
        {"turn": router("round_robin", "in", "b", "a", "c")},
    )
    came = _run(text, b"1", b"2", b"3", b"4")
    assert came == [[("b", b"1")], [("a", b"2")], [("c", b"3")], [("b", b"4")]]


def test_a_hash_sends_equal_keys_one_way_and_refuses_records_without_the_key() -> None:
    text = graph(
        [IN, ("a", "journal"), ("b", "journal")],
        [("ingress", "in"), ("egress", "a"), ("egress", "b")],
        {"way": router("hash", "in", "a", "b", hash_key="customer.id")},
    )
    runner = Interpreter(graph_plan(text), {})
    records = [json.dumps({"n": n, "customer": {"id": f"c{n % 5}"}}).encode() for n in range(40)]
    ways: dict[str, set[str]] = {}
    for record, outcome in zip(records, runner.run(records), strict=True):
        (emission,) = outcome.emissions
        assert emission.record == record
        ways.setdefault(json.loads(record)["customer"]["id"], set()).add(emission.lane)
    assert all(len(lanes) == 1 for lanes in ways.values())
    # eight bytes of the SHA-256 of the canonical JSON, as a big-endian number, modulo two: fixed for ever
    digests = {key: hashlib.sha256(f'"{key}"'.encode()).digest() for key in ways}
    assert {key: lanes.pop() for key, lanes in ways.items()} == {key: "ab"[it[7] % 2] for key, it in digests.items()}
    codes = [runner.process(record).refusals[0].code for record in (b"{}", b'{"customer":[]}', b"x")]
    assert codes == ["key_missing", "key_missing", "not_json"]
    assert runner.metrics()["stages"]["way"] == {"received": 43, "forwarded": 40, "refused": 3, "codes": Counter(codes)}


UNEVEN: dict[str, Role] = {
    "split": router("broadcast", "in", "a", "b"),
    "mark": stage("dataguard_redact", "a", "c"),
    "on": bridge("c", "d"),
}


@pytest.mark.parametrize(
    ("policy", "order"), [("ordered", [b'{"id":1}', b'{"id":1,"x":2}']), ("arrival", [b'{"id":1,"x":2}', b'{"id":1}'])]
)
def test_ordered_goes_by_the_lanes_numbers_and_arrival_by_who_passed_fewer_roles(
    policy: str, order: list[bytes]
) -> None:
    text = graph(_lanes("a", "b", "c", "d"), ENDS, {**UNEVEN, "join": merge(policy, "out", "d", "b")})
    (came,) = _run(text, b'{"id":1,"x":2}', stages={"mark": {"rules": ["x:drop"]}})
    assert [emission.record for emission in came] == order


def test_an_events_lane_with_many_producers_takes_records_as_they_arrive() -> None:
    text = graph(
        [*_lanes("a", "b", "c", "d", "e")],
        ENDS,
        {**UNEVEN, "z": bridge("d", "e"), "y": bridge("b", "e"), "last": bridge("e", "out")},
    )
    (came,) = _run(text, b'{"id":1,"x":2}', stages={"mark": {"rules": ["x:drop"]}})
    assert [emission.record for emission in came] == [b'{"id":1,"x":2}', b'{"id":1}']


def _crowd(on_full: str, kind: str) -> str:
    """Three copies of each record, merged onto one lane that holds two."""
    return graph(
        [*_lanes("a", "b", "c"), ("few", kind, {"capacity": 2})],
        ENDS,
        {
            "split": router("broadcast", "in", "a", "b", "c"),
            "mark": stage("dataguard_redact", "c", "few"),
            "join": merge("ordered", "few", "a", "b"),
            "on": bridge("few", "out"),
        }
        if kind == "events"
        else {
            "split": router("broadcast", "in", "a", "b", "c"),
            "join": merge("ordered", "few", "a", "b", "c"),
            "on": bridge("few", "out"),
        },
        on_full=on_full,
    )


def test_a_lane_that_drops_loses_what_arrives_last_and_counts_it() -> None:
    runner = Interpreter(graph_plan(_crowd("drop", "events")), {"mark": {"rules": ["x:drop"]}})
    outcome = runner.process(b'{"x":1}')
    # the marked copy passed two roles, as did those through the merge, and `join` is named before `mark`
    assert [item.record for item in outcome.emissions] == [b'{"x":1}', b'{"x":1}']
    assert outcome.dropped == ("few",)
    assert runner.metrics()["lanes"]["few"] == {"received": 3, "dropped": 1}
    runner.process(b'{"x":2}')
    assert runner.metrics()["lanes"]["few"] == {"received": 6, "dropped": 2}


@pytest.mark.parametrize(("on_full", "kind"), [("block", "events"), ("drop", "journal"), ("drop", "sequenced_slots")])
def test_nothing_is_lost_where_lanes_block_nor_ever_from_journals_and_sequences(on_full: str, kind: str) -> None:
    stages: dict[str, dict[str, object]] = {"mark": {"rules": ["x:drop"]}} if kind == "events" else {}
    runner = Interpreter(graph_plan(_crowd(on_full, kind)), stages)
    outcome = runner.process(b"{}")
    assert (len(outcome.emissions), outcome.dropped) == (3, ())
    assert "few" not in runner.metrics()["lanes"]


def test_records_come_in_by_the_lane_that_is_named() -> None:
    text = graph(
        [("left", "events"), ("right", "events"), OUT],
        [("ingress", "left"), ("ingress", "right"), ("egress", "out")],
        {"join": merge("arrival", "out", "left", "right")},
    )
    runner = Interpreter(graph_plan(text), {})
    assert runner.process(b"1", "right").emitted == b"1"
    assert runner.process(b"2", lane="left").emitted == b"2"
    for lane in (None, "out", "nowhere"):
        with pytest.raises(ValueError, match="left, right"):
            runner.process(b"3", lane)
    assert runner.metrics()["stages"]["join"]["received"] == 2


def test_a_graph_without_roles_forwards_and_a_record_may_come_out_on_several_lanes() -> None:
    assert _run(graph([IN], [("ingress", "in"), ("egress", "in")], {}), b"\xff") == [[("in", b"\xff")]]


def test_a_failed_effect_leaves_the_record_unseen_also_by_the_round_robin_before_it() -> None:
    text = graph(
        [*_lanes("a", "b", "c")],
        ENDS,
        {
            "turn": router("round_robin", "in", "a", "b"),
            "call": stage("exec:/bin/cat", "a", "c"),
            "join": merge("arrival", "out", "c", "b"),
        },
    )
    effects = RecordedEffects()
    runner = Interpreter(graph_plan(text), {}, effects)
    effects.raises = EffectFailed("no_such_program", "It is not there.")
    with pytest.raises(EffectFailed):
        runner.process(b"1")
    assert {tally["received"] for tally in runner.metrics()["stages"].values()} == {0}
    effects.raises = None
    assert runner.process(b"1").passed == ("turn", "call", "join")
    assert effects.asked == [(("/bin/cat",), b"1")]
    assert runner.process(b"2").passed == ("turn", "join")


# --- schedules ---

records = st.sampled_from(
    [
        b'{"id":1,"by":""}',
        b'{"id":2,"by":"","x":[1.50]}',
        b'{"id":12345,"by":"","x":1}',
        b'{"by":""}',
        b"no json",
        b'{"id":"q"}',
    ]
)


@given(graphs, st.lists(records, min_size=1, max_size=4), seeds.map(Random))
@settings(max_examples=200, deadline=None)
def test_whatever_the_schedule_the_same_comes_out(text: str, came: list[bytes], random: Random) -> None:
    check_any_schedule(text, came, random)
