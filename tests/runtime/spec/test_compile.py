"""Canonical form, hash and plan; and that no text whatever can break the compiler."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.spec import CODES, Plan, PlanError, compile_spec, to_dot, to_svg
from tests.runtime.specs import ONE, compiled, plan_of, ring

ROOT = Path(__file__).parents[3]
KNOWN = [
    "spec.version", "pipeline.name", "pipeline.target", "single_ring.shards", "single_ring.ordering",
    "single_ring.producer", "single_ring.scheduling", "single_ring.shard_key", "single_ring.stages.0.id",
    "single_ring.stages.0.op", "single_ring.stages.1.id", "single_ring.stages.1.op",
    "single_ring.stages.1.depends_on.0", "single_ring.stages.999999.op", "lane_graph.roles.0.name",
]  # fmt: skip
VALUES = ["1", "0", "", "orders", "SingleRing", "LaneGraph", "strict", "per_key", "identity", "a", "http_post:http://["]
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
ops = st.sampled_from(["identity", "dataguard_check", "dataguard_redact", "dataguard_fused"])


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
        "pipeline.name=A{}",
    ],
)
def test_work_grows_with_the_size_and_no_faster(line: str) -> None:
    small, large = (ONE + "\n".join(line.format(n) for n in range(1, size)) for size in (1000, 4000))
    assert _calls(large) < 5 * _calls(small)


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
    told = [(code.strip(" `"), severity.strip(), rule.strip()) for code, severity, rule in rows]
    assert told == [(code, severity, rule) for code, (severity, rule) in CODES.items()]


def test_every_example_does_what_its_readme_says() -> None:
    folder = ROOT / "docs/examples"
    rows = [row.split("|") for row in (folder / "README.md").read_text().splitlines() if row.startswith("| `")]
    assert {row[1].strip(" `") for row in rows} == {path.name for path in folder.glob("*.kv")}
    for row in rows:
        done = compile_spec((folder / row[1].strip(" `")).read_bytes())
        assert done.ok is (row[3].strip() == "yes"), row
        named = {word for word in row[2].split("`")[1::2] if word in CODES}
        assert named == {item.code for item in done.errors}


def test_compiling_says_the_same_as_before() -> None:
    assert compiled(("a", "identity", [])) == compiled(("a", "identity", []))
