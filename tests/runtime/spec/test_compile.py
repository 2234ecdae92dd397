"""Canonical form, hash and plan; and that no text whatever can break the compiler."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.spec import CODES, Plan, PlanError, compile_spec, to_dot, to_svg
from tests.runtime.graphs import graphs, seeds
from tests.runtime.op_examples import op_texts
from tests.runtime.specs import ONE, bridge, compiled, graph, graph_plan, merge, plan_of, ring, router

ROOT = Path(__file__).parents[3]
KNOWN = [
    "spec.version", "pipeline.name", "pipeline.target", "single_ring.shards", "single_ring.ordering",
    "single_ring.producer", "single_ring.scheduling", "single_ring.shard_key", "single_ring.stages.0.id",
    "single_ring.stages.0.op", "single_ring.stages.1.id", "single_ring.stages.1.op",
    "single_ring.stages.1.depends_on.0", "single_ring.stages.999999.op", "lane_graph.on_full", "lane_graph.lanes.0.name",
    "lane_graph.lanes.0.kind", "lane_graph.lanes.0.capacity", "lane_graph.lanes.0.consumers", "lane_graph.lanes.1.name",
    "lane_graph.endpoints.0.lane", "lane_graph.endpoints.0.kind", "lane_graph.roles.0.name", "lane_graph.roles.0.kind",
    "lane_graph.roles.0.op", "lane_graph.roles.0.rx", "lane_graph.roles.0.tx", "lane_graph.roles.0.rx.0",
    "lane_graph.roles.0.tx.1", "lane_graph.roles.0.policy", "lane_graph.roles.0.hash_key", "lane_graph.roles.1.rx",
    "lane_graph.roles.1.tx", "lane_graph.roles.1.name", "lane_graph.roles.1.kind", "lane_graph.roles.1.policy",
]  # fmt: skip
VALUES = [
    "1", "0", "", "orders", "SingleRing", "LaneGraph", "strict", "per_key", "identity", "a", "http_post:http://[", "b",
    "events", "fanout_broadcast", "ingress", "egress", "stage", "bridge", "router", "merge", "hash", "arrival", "drop",
]  # fmt: skip
lines = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda key, value: f"{key}={value}", st.sampled_from(KNOWN), st.sampled_from(VALUES) | st.text(max_size=20)
    ),
)


@given(st.lists(lines, max_size=30).map("\n".join) | st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_no_text_breaks_the_compiler(text: str | bytes) -> None:
    done = compile_spec(text)
    assert done.ok is (not done.errors)
    assert (done.plan is None) is (done.canonical is None) is (done.spec_hash is None) is (not done.ok)
    assert [item.line for item in done.diagnostics] == sorted(item.line for item in done.diagnostics)
    for item in done.diagnostics:
        assert item.code in CODES
        assert item.message.isascii()


ids = st.lists(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,12}", fullmatch=True), min_size=1, max_size=4, unique=True)
ops = st.sampled_from(op_texts())


@st.composite
def rings(draw: st.DrawFn) -> str:
    steps = []
    for number, stage_id in enumerate(draw(ids)):
        depends_on = sorted(draw(st.sets(st.integers(0, number - 1), min_size=1))) if number else []
        steps.append((stage_id, draw(ops), depends_on))
    return ring(*steps)


@given(rings(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_equal_meaning_gives_equal_bytes_and_the_canonical_text_is_its_own(text: str, random: object) -> None:
    done = compile_spec(text)
    assert done.ok
    assert done.canonical is not None
    assert compile_spec(done.canonical).canonical == done.canonical
    shuffled = text.splitlines()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    noisy = "# noise\r\n\r\n" + "\r\n".join([*shuffled, "future.key=1", "single_ring.shards=1"]) + "\r\n"
    other = compile_spec(noisy)
    assert (other.canonical, other.spec_hash, other.plan) == (done.canonical, done.spec_hash, done.plan)
    assert compile_spec(noisy.encode()).spec_hash == done.spec_hash


@given(rings())
@settings(deadline=None)
def test_a_plan_survives_its_json_in_any_key_order(text: str) -> None:
    plan = compile_spec(text).plan
    assert plan is not None
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert Plan.from_dict(json.loads(rfc8785.dumps(plan.as_dict()))) == plan  # type: ignore[arg-type]


@given(graphs, seeds.map(Random))
@settings(deadline=None)
def test_a_graph_means_the_same_however_its_lines_and_numbers_are_ordered(text: str, random: Random) -> None:
    done = compile_spec(text)
    assert done.canonical is not None
    assert compile_spec(done.canonical).canonical == done.canonical
    assert compile_spec(done.canonical).diagnostics == ()
    plan = done.plan
    assert plan is not None
    assert Plan.from_dict(json.loads(rfc8785.dumps(plan.as_dict()))) == plan  # type: ignore[arg-type]
    places = {role.name: number for number, role in enumerate(plan.roles)}
    for barrier in plan.barriers:
        at = places.get(barrier.waiter, len(places))
        assert all(places[name] < at for name in barrier.waits_for if name in places)
    other = compile_spec(_renumbered(text, random))
    assert (other.canonical, other.spec_hash, other.plan) == (done.canonical, done.spec_hash, plan)
    assert to_svg(plan).count("<rect") == len(plan.lanes) + len(plan.roles)
    assert to_dot(plan).count(" -> ") == sum(len(role.rx) + len(role.tx) for role in plan.roles)


def _renumbered(text: str, random: Random) -> str:
    """The same graph with its lanes, endpoints and roles numbered in another order, its lines shuffled, and noise between."""
    lines = text.splitlines()
    for group in ("lanes", "endpoints", "roles"):
        start = f"lane_graph.{group}."
        count = len({line.split(".")[2] for line in lines if line.startswith(start)})
        new = random.sample(range(count), count)
        for at, line in enumerate(lines):
            if line.startswith(start):
                number, rest = line.removeprefix(start).split(".", 1)
                lines[at] = f"{start}{new[int(number)]}.{rest}"
    random.shuffle(lines)
    return "# noise\r\n\r\n" + "\r\n".join([*lines, "future.key=1"]) + "\r\n"


def test_what_a_graph_leaves_out_is_written_out_and_what_means_nothing_is_dropped() -> None:
    text = graph(
        [("out", "journal", {"consumers": 1}), ("in", "events"), ("b", "fanout_broadcast"), ("a", "events")],
        [("egress", "out"), ("ingress", "in")],
        {"z": router("broadcast", "in", "b", "a"), "m": merge("ordered", "out", "b", "a")},
    )
    assert compile_spec(text).canonical == (
        "spec.version=1\npipeline.name=orders\npipeline.target=LaneGraph\nlane_graph.on_full=block\n"
        "lane_graph.lanes.0.name=a\nlane_graph.lanes.0.kind=events\nlane_graph.lanes.0.capacity=1024\n"
        "lane_graph.lanes.1.name=b\nlane_graph.lanes.1.kind=fanout_broadcast\nlane_graph.lanes.1.capacity=1024\n"
        "lane_graph.lanes.1.consumers=1\nlane_graph.lanes.2.name=in\nlane_graph.lanes.2.kind=events\n"
        "lane_graph.lanes.2.capacity=1024\nlane_graph.lanes.3.name=out\nlane_graph.lanes.3.kind=journal\n"
        "lane_graph.lanes.3.capacity=1024\nlane_graph.endpoints.0.lane=in\nlane_graph.endpoints.0.kind=ingress\n"
        "lane_graph.endpoints.1.lane=out\nlane_graph.endpoints.1.kind=egress\nlane_graph.roles.0.name=m\n"
        "lane_graph.roles.0.kind=merge\nlane_graph.roles.0.rx.0=b\nlane_graph.roles.0.rx.1=a\n"
        "lane_graph.roles.0.tx=out\nlane_graph.roles.0.policy=ordered\nlane_graph.roles.1.name=z\n"
        "lane_graph.roles.1.kind=router\nlane_graph.roles.1.rx=in\nlane_graph.roles.1.tx.0=a\n"
        "lane_graph.roles.1.tx.1=b\nlane_graph.roles.1.policy=broadcast\n"
    )


def test_the_order_of_a_routers_or_merges_lanes_counts_where_it_decides() -> None:
    def hash_of(policy: str, *tx: str) -> str | None:
        lanes = [("in", "events"), ("a", "journal"), ("b", "journal")]
        ends = [("ingress", "in"), ("egress", "a"), ("egress", "b")]
        more = {"hash_key": "id"} if policy == "hash" else {}
        return compile_spec(graph(lanes, ends, {"r": router(policy, "in", *tx, **more)})).spec_hash

    assert hash_of("broadcast", "a", "b") == hash_of("broadcast", "b", "a")
    assert hash_of("round_robin", "a", "b") != hash_of("round_robin", "b", "a")
    assert hash_of("hash", "a", "b") != hash_of("hash", "b", "a")


def test_a_graphs_plan_has_roles_in_order_with_what_they_wait_for_and_both_ends_of_each_lane() -> None:
    plan = graph_plan((ROOT / "docs/examples/21-fan-out-and-merge.kv").read_text())
    assert (plan.plan_v, plan.ingress, plan.egress) == (2, ("market", "shop"), ("orders", "out"))
    assert [role.name for role in plan.roles] == ["sources", "check", "redact", "join"]
    assert [(item.waiter, item.waits_for) for item in plan.barriers] == [
        ("sources", ("lane:market", "lane:shop")),
        ("check", ("sources",)),
        ("redact", ("sources",)),
        ("join", ("check", "redact")),
        ("lane:orders", ("sources",)),
        ("lane:out", ("join",)),
    ]
    assert [(lane.name, lane.capacity, lane.producers, lane.consumers) for lane in plan.lanes] == [
        ("checked", 1024, ("check",), ("join",)),
        ("clean", 1024, ("redact",), ("join",)),
        ("market", 1024, ("endpoint:ingress",), ("sources",)),
        ("orders", 1024, ("sources",), ("endpoint:egress", "check", "redact")),
        ("out", 1024, ("join",), ("endpoint:egress",)),
        ("shop", 4096, ("endpoint:ingress",), ("sources",)),
    ]
    assert [(stage.id, stage.op) for stage in plan.stages] == [
        ("check", "dataguard_check"),
        ("redact", "dataguard_redact"),
    ]


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("roles", lambda roles: roles[::-1]),
        ("roles", lambda roles: [{**roles[0], "kind": "tap"}, *roles[1:]]),
        ("roles", lambda roles: [{**roles[0], "policy": "ordered", "hash_key": "id"}, *roles[1:]]),
        ("roles", lambda roles: [{**roles[0], "rx": ["nowhere", "shop"]}, *roles[1:]]),
        ("roles", lambda roles: roles[:-1]),
        ("stages", lambda stages: stages[1:]),
        ("lanes", lambda lanes: lanes[1:]),
        ("lanes", lambda lanes: [{**lanes[0], "capacity": 0}, *lanes[1:]]),
        ("lanes", lambda lanes: [{**lanes[0], "producers": []}, *lanes[1:]]),
        ("ingress", lambda ingress: ingress[1:]),
        ("egress", lambda egress: [*egress, "nowhere"]),
        ("plan_v", lambda version: 1),
        ("plan_v", lambda version: 3),
    ],
)
def test_a_graphs_plan_that_can_not_be_run_is_refused(member: str, change: Callable[[Any], object]) -> None:
    value = graph_plan((ROOT / "docs/examples/21-fan-out-and-merge.kv").read_text()).as_dict()
    with pytest.raises(PlanError):
        Plan.from_dict({**value, member: change(value[member])})


def test_a_rings_plan_is_byte_for_byte_what_bundles_already_hold() -> None:
    plan = compile_spec((ROOT / "docs/examples/05-diamond.kv").read_bytes()).plan
    assert plan is not None
    digest = hashlib.sha256(rfc8785.dumps(plan.as_dict())).hexdigest()  # type: ignore[arg-type]
    assert digest == "d6b038266b021b7d302c9dbdbba97aed99f3e2f3e997b72ec173382f6072d36e"


def test_the_canonical_text_and_its_hash_are_what_they_have_always_been() -> None:
    done = compile_spec(ONE)
    assert done.canonical == (
        "spec.version=1\npipeline.name=orders\npipeline.target=SingleRing\nsingle_ring.shards=1\n"
        "single_ring.ordering=strict\nsingle_ring.producer=single\nsingle_ring.scheduling=dedicated\n"
        "single_ring.stages.0.id=a\nsingle_ring.stages.0.op=identity\n"
    )
    assert done.spec_hash == "sha256:9dd14bc7d55fea75bc678954c05b51bac9a47eeb7b32f27d279d904965d79761"


def test_a_plan_has_barriers_and_lanes_with_both_ends() -> None:
    plan = plan_of(("a", "identity", []), ("b", "dataguard_redact", [0]), ("c", "identity", []))
    assert [(item.waiter, item.waits_for) for item in plan.barriers] == [
        ("a", ("lane:ingress",)),
        ("b", ("a",)),
        ("c", ("lane:ingress",)),
        ("lane:egress", ("b", "c")),
    ]
    assert [(lane.name, lane.producers, lane.consumers) for lane in plan.lanes] == [
        ("ingress", ("source",), ("a", "c")),
        ("egress", ("b", "c"), ("sink",)),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"plan_v": 2},
        {"plan_v": 3},
        {"plan_v": True},
        {"stages": {}},
        {"stages": [{"id": "a"}]},
        {"name": 1},
        {"more": 1},
        {"settings": {"shards": []}},
        {"diagnostics": [{"severity": "odd"}]},
        {"capabilities": [1]},
    ],
    ids=str,
)
def test_what_is_not_a_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict({**plan_of(("a", "identity", [])).as_dict(), **change})
    with pytest.raises(PlanError):
        Plan.from_dict(None)


def test_a_plan_whose_stages_are_not_in_order_is_refused() -> None:
    plan = plan_of(("a", "identity", []), ("b", "identity", [0])).as_dict()
    stages = plan["stages"]
    assert isinstance(stages, list)
    with pytest.raises(PlanError):
        Plan.from_dict({**plan, "stages": stages[::-1]})


def _calls(text: str) -> int:
    count = 0

    def counter(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(counter)
    try:
        compile_spec(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "line",
    [
        "k{}.x=1",
        "oops{}",
        "single_ring.stages.{}.op=exec:",
        "single_ring.stages.0.depends_on.{}=0",
        "lane_graph.lanes.{}.name=a{}",
        "lane_graph.endpoints.{}.lane=a",
        "lane_graph.roles.0.tx.{}=a",
        "pipeline.name=A{}",
    ],
)
def test_work_grows_with_the_size_and_no_faster(line: str) -> None:
    one = ONE.replace("SingleRing", "LaneGraph") if line.startswith("lane_graph") else ONE
    small, large = (one + "\n".join(line.format(n, n) for n in range(1, size)) for size in (1000, 4000))
    assert _calls(large) < 5 * _calls(small)


def _chain(roles: int) -> str:
    """A right graph of bridges in a row."""
    lanes = [(f"l{number}", "events") for number in range(roles + 1)]
    ends = [("ingress", "l0"), ("egress", f"l{roles}")]
    return graph(lanes, ends, {f"r{number}": bridge(f"l{number}", f"l{number + 1}") for number in range(roles)})


def _bundle_of_ways(roles: int) -> str:
    """A wrong graph: many producers and many consumers on one lane, and all of them in circles."""
    return graph([("a", "events")], [("ingress", "a")], {f"r{number}": bridge("a", "a") for number in range(roles)})


@pytest.mark.parametrize("made", [_chain, _bundle_of_ways])
def test_work_on_a_graph_grows_with_its_size_and_no_faster(made: Callable[[int], str]) -> None:
    assert _calls(made(240)) < 5 * _calls(made(60))
    assert _steps(made(240)) < 5 * _steps(made(60))


def _steps(text: str) -> int:
    """Lines of Python run: what counts also the turns of a loop that calls nothing."""
    count = 0

    def counter(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return counter

    before = sys.gettrace()
    sys.settrace(counter)
    try:
        compile_spec(text)
    finally:
        sys.settrace(before)
    return count


def test_one_endless_line_is_no_more_work_than_a_short_one() -> None:
    assert _calls("a" * 250_000 + "=1") < 300
    assert _calls("." * 250_000 + "=1") < 300


def test_the_graphs_escape_what_they_show_and_repeat_no_ids() -> None:
    plan = plan_of(("ingress", "identity", []), ("egress", "dataguard_redact", [0]), ("a" * 63, "identity", []))
    svg = to_svg(plan)
    assert svg.startswith("<svg ")
    assert "style" not in svg
    assert " id=" not in svg
    assert 'role="img"' in svg
    assert svg == to_svg(plan)
    dot = to_dot(plan)
    assert dot.splitlines()[0] == 'digraph "orders" {'
    assert '"stage:ingress" -> "stage:egress";' in dot
    odd = Plan.from_dict({**plan.as_dict(), "name": '<script>"&'})
    assert "<script>" not in to_svg(odd)
    assert 'digraph "<script>\\"&" {' in to_dot(odd)


def test_the_reference_names_every_code_and_no_other() -> None:
    text = (ROOT / "docs/spec.md").read_text()
    table = text.split("## Diagnostics", 1)[1]
    rows = [row.split("|")[1:4] for row in table.splitlines() if row.startswith("| `")]
    documented = [(code.strip(" `"), severity.strip(), rule.strip()) for code, severity, rule in rows]
    assert documented == [(code, severity, rule) for code, (severity, rule) in CODES.items()]


def test_every_example_does_what_its_readme_states() -> None:
    folder = ROOT / "docs/examples"
    rows = [row.split("|") for row in (folder / "README.md").read_text().splitlines() if row.startswith("| `")]
    assert {row[1].strip(" `") for row in rows} == {path.name for path in folder.glob("*.kv")}
    for row in rows:
        done = compile_spec((folder / row[1].strip(" `")).read_bytes())
        assert done.ok is (row[3].strip() == "yes"), row
        named = {word for word in row[2].split("`")[1::2] if word in CODES}
        assert named == {item.code for item in done.errors}


def test_compiling_gives_the_same_as_before() -> None:
    assert compiled(("a", "identity", [])) == compiled(("a", "identity", []))
