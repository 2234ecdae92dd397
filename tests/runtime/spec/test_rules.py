"""Every rule has a text that breaks it and a similar one that keeps it."""

from __future__ import annotations

import pytest

from apps.runtime.spec import CODES, compile_spec
from tests.runtime.spec.test_graph_rules import RULES as GRAPH_RULES
from tests.runtime.specs import HEAD, ONE, ring

STAGE = "single_ring.stages"
TWO = ring(("a", "identity", []), ("b", "dataguard_redact", [0]))
THREE = ring(("a", "identity", []), ("b", "dataguard_redact", [0]), ("c", "identity", [0, 1]))

SHARDED = ONE + "single_ring.shards=2\nsingle_ring.ordering=per_key\nsingle_ring.shard_key=customer.id\n"

# code, a text that breaks the rule, the line it is reported at, the nearest text that keeps it
RULES: list[tuple[str, str | bytes, int, str | bytes]] = [
    ("too_large", ONE + "#" * 262_144, 0, ONE + "#" * (262_144 - len(ONE))),
    ("too_many_lines", ONE + "\n" * 4092, 0, ONE + "\n" * 4091),
    ("bad_character", ONE + "a.b=\tx", 6, ONE + "a.b=x ~"),
    ("bad_character", ONE.encode() + b"a.b=\xff", 6, ONE.encode() + b"# \xff"),
    ("no_equals", ONE + "hello", 6, ONE + "#hello"),
    ("space_around_equals", ONE + "a.b= x", 6, ONE + "a.b=x y"),
    ("space_around_equals", ONE + "a.b =x", 6, ONE + "a.b=x"),
    ("bad_key", ONE + "a..b=x", 6, ONE + "a.b=x"),
    ("bad_key", ONE + "=x", 6, ONE + "a=x"),
    ("bad_index", ONE.replace("0.op", "00.op"), 5, ONE),
    ("bad_index", TWO.replace("depends_on.0", "depends_on.x"), 8, TWO),
    ("duplicate_key", ONE + "pipeline.name=orders", 6, ONE),
    ("unknown_key", ONE + "pipeline.nmae=x", 6, ONE),
    ("key_of_other_target", ONE + "lane_graph.on_full=block", 6, ONE),
    ("missing_spec_version", ONE.replace("spec.version=1\n", ""), 0, ONE),
    ("unsupported_spec_version", ONE.replace("spec.version=1", "spec.version=2"), 1, ONE),
    ("missing_name", ONE.replace("pipeline.name=orders\n", ""), 0, ONE),
    ("bad_name", ONE.replace("=orders", "=Orders"), 2, ONE.replace("=orders", "=" + "o" * 63)),
    ("bad_name", ONE.replace("=orders", "=" + "o" * 64), 2, ONE.replace("=orders", "=0_-")),
    ("missing_target", ONE.replace("pipeline.target=SingleRing\n", ""), 0, ONE),
    ("unknown_target", ONE.replace("SingleRing", "singlering"), 3, ONE),
    ("bad_integer", ONE + "single_ring.shards=01", 6, ONE + "single_ring.shards=1"),
    ("bad_integer", ONE + "single_ring.shards=1000000000", 6, ONE),
    ("shards_below_one", ONE + "single_ring.shards=0", 6, ONE),
    ("unknown_ordering", ONE + "single_ring.ordering=loose", 6, ONE + "single_ring.ordering=strict"),
    ("unknown_producer", ONE + "single_ring.producer=many", 6, ONE + "single_ring.producer=single"),
    ("mpmc_refused", ONE + "single_ring.producer=mpmc", 6, ONE),
    ("unknown_scheduling", ONE + "single_ring.scheduling=fair", 6, ONE + "single_ring.scheduling=dedicated"),
    ("work_queue_refused", ONE + "single_ring.scheduling=work_queue", 6, ONE),
    ("strict_needs_one_shard", ONE + "single_ring.shards=2\nsingle_ring.ordering=strict", 7, ONE),
    ("shards_need_per_key", ONE + "single_ring.shards=2", 6, SHARDED),
    ("shards_need_shard_key", ONE + "single_ring.shards=2\nsingle_ring.ordering=per_key", 6, SHARDED),
    ("shards_need_shard_key", SHARDED.replace("shard_key", "shardkey"), 6, SHARDED),
    ("too_many_shards", SHARDED.replace("shards=2", "shards=1025"), 6, SHARDED.replace("shards=2", "shards=1024")),
    ("bad_shard_key", ONE + "single_ring.shard_key=a..b", 6, ONE + "single_ring.shard_key=a.b"),
    ("unused_shard_key", ONE + "single_ring.shard_key=a.b", 6, ONE),
    ("no_stages", HEAD, 0, ONE),
    ("too_many_stages", ring(*[(f"s{n}", "identity", []) for n in range(5)]), 12,
     ring(*[(f"s{n}", "identity", []) for n in range(4)])),
    ("stage_gap", ONE.replace("stages.0", "stages.1"), 4, ONE),
    ("stage_gap", ONE + f"{STAGE}.2.id=b\n{STAGE}.2.op=identity", 6, ONE + f"{STAGE}.1.id=b\n{STAGE}.1.op=identity"),
    ("missing_stage_id", HEAD + f"{STAGE}.0.op=identity", 4, ONE),
    ("bad_stage_id", ring(("-a", "identity", [])), 4, ring(("a-", "identity", []))),
    ("duplicate_stage_id", ring(("a", "identity", []), ("a", "identity", [])), 6,
     ring(("a", "identity", []), ("b", "identity", []))),
    ("missing_stage_op", HEAD + f"{STAGE}.0.id=a", 4, ONE),
    ("unknown_op", ring(("a", "Identity", [])), 5, ONE),
    ("bad_op_argument", ring(("a", "identity:", [])), 5, ONE),
    ("bad_op_argument", ring(("a", "http_post", [])), 5, ring(("a", "http_post:https://h/x", []))),
    ("bad_op_argument", ring(("a", "http_post:ftp://h/", [])), 5, ONE),
    ("bad_op_argument", ring(("a", "http_post:https://u:p@h/", [])), 5, ONE),
    ("bad_op_argument", ring(("a", "http_post:https://h/" + "x" * 2048, [])), 5, ONE),
    ("bad_op_argument", ring(("a", "http_post:https://[::1/", [])), 5, ONE),
    ("bad_op_argument", ring(("a", "exec:|x", [])), 5, ring(("a", "exec:/bin/cat|-u", []))),
    ("dependency_gap", TWO.replace("depends_on.0", "depends_on.1"), 8, TWO),
    ("bad_dependency", TWO.replace("depends_on.0=0", "depends_on.0=a"), 8, TWO),
    ("unknown_dependency", TWO.replace("depends_on.0=0", "depends_on.0=7"), 8, TWO),
    ("self_dependency", TWO.replace("depends_on.0=0", "depends_on.0=1"), 8, TWO),
    ("forward_dependency", ring(("a", "identity", [1]), ("b", "identity", [])), 6, TWO),
    ("duplicate_dependency", THREE.replace("depends_on.1=1", "depends_on.1=0"), 12, THREE),
    ("dependencies_not_increasing", ring(*[(f"s{n}", "identity", d) for n, d in enumerate([[], [], [1, 0]])]), 11,
     ring(*[(f"s{n}", "identity", d) for n, d in enumerate([[], [], [0, 1]])])),
    ("missing_dependencies", ring(("a", "identity", []), ("b", "dataguard_check", [])), 7,
     ring(("a", "identity", []), ("b", "identity", []))),
]  # fmt: skip


@pytest.mark.parametrize(("code", "wrong", "line", "right"), RULES, ids=[f"{r[0]}-{n}" for n, r in enumerate(RULES)])
def test_a_broken_rule_is_reported_with_its_code_and_line_and_its_neighbour_is_not(
    code: str, wrong: str | bytes, line: int, right: str | bytes
) -> None:
    refused = compile_spec(wrong)
    found = [item for item in refused.diagnostics if item.code == code]
    assert [item.line for item in found] == [line], refused.diagnostics
    assert found[0].message
    assert found[0].severity == CODES[code][0]
    assert refused.ok is (CODES[code][0] == "warning")
    assert code not in {item.code for item in compile_spec(right).diagnostics}


def test_every_code_there_is_has_an_example() -> None:
    assert {rule[0] for rule in (*RULES, *GRAPH_RULES)} == set(CODES)


def test_every_diagnostic_states_what_to_do() -> None:
    for _, wrong, _, _ in (*RULES, *GRAPH_RULES):
        for item in compile_spec(wrong).diagnostics:
            assert item.message.endswith(".")
            assert item.hint.endswith((".", "?"))
            assert item.as_dict().keys() == {"severity", "code", "line", "key", "message", "hint"}


def test_all_problems_are_reported_at_once_in_line_order() -> None:
    text = (
        "spec.version=9\npipeline.name=No Good\npipeline.target=SingleRing\nsingle_ring.producer=mpmc\noops\n"
        f"{STAGE}.0.id=a\n{STAGE}.0.op=nothing\n{STAGE}.1.id=a\n{STAGE}.1.op=dataguard_check\n"
    )
    done = compile_spec(text)
    assert [(item.line, item.code) for item in done.diagnostics] == [
        (1, "unsupported_spec_version"),
        (2, "bad_name"),
        (4, "mpmc_refused"),
        (5, "no_equals"),
        (7, "unknown_op"),
        (8, "duplicate_stage_id"),
        (9, "missing_dependencies"),
    ]
    assert (done.ok, done.canonical, done.spec_hash, done.plan) == (False, None, None, None)


def test_a_spec_without_a_target_still_has_its_ring_checked() -> None:
    codes = {item.code for item in compile_spec("single_ring.stages.0.op=nothing").diagnostics}
    assert codes >= {"missing_target", "unknown_op", "missing_stage_id"}


def test_a_wrong_spec_still_gives_its_name_and_what_it_would_need() -> None:
    done = compile_spec(ring(("a", "exec:/bin/cat", [])) + "oops")
    assert (done.name, done.target, done.capabilities) == ("orders", "SingleRing", ("action:exec",))


def test_a_misspelled_key_gets_a_suggestion() -> None:
    (item,) = compile_spec(ONE + "single_ring.shrads=1").diagnostics
    assert "single_ring.shards" in item.hint
