"""A reviewer reads what a spec changes in meaning."""

from __future__ import annotations

from apps.runtime.spec import compile_spec, semantic_diff
from tests.runtime.specs import ONE, Lane, bridge, compiled, graph, merge, router, stage

BASE = compiled(("check", "dataguard_check", []), ("redact", "dataguard_redact", [0]))


def _changes(*args: object) -> list[tuple[str, str, str | None, str | None]]:
    return [(c.kind, c.subject, c.before, c.after) for c in semantic_diff(*args)]  # type: ignore[arg-type]


def test_a_first_version_has_every_stage_new() -> None:
    assert _changes(None, BASE) == [
        ("stage_added", "check", None, "dataguard_check"),
        ("stage_added", "redact", None, "dataguard_redact"),
    ]
    assert _changes(compile_spec("nonsense"), BASE) == _changes(None, BASE)


def test_the_same_meaning_is_no_change() -> None:
    assert semantic_diff(BASE, compile_spec("# other text\r\n" + (BASE.canonical or ""))) == ()


def test_a_spec_with_errors_can_not_be_compared() -> None:
    (change,) = semantic_diff(BASE, compile_spec("pipeline.name=orders"))
    assert change.kind == "not_comparable"


def test_each_kind_of_change_is_named() -> None:
    new = compiled(
        ("redact", "dataguard_fused", []), ("tap", "identity", [0]), ("check", "dataguard_check", [0]), name="sales"
    )
    assert _changes(BASE, new) == [
        ("name_changed", "pipeline.name", "orders", "sales"),
        ("stage_moved", "redact", "2", "1"),
        ("op_changed", "redact", "dataguard_redact", "dataguard_fused"),
        ("depends_on_changed", "redact", "check", ""),
        ("stage_added", "tap", None, "identity"),
        ("depends_on_changed", "check", "", "redact"),
    ]
    assert ("stage_removed", "tap", "identity", None) in _changes(new, BASE)


def test_a_stage_that_only_got_another_number_did_not_move() -> None:
    new = compiled(("tap", "identity", []), ("check", "dataguard_check", [0]), ("redact", "dataguard_redact", [1]))
    assert _changes(BASE, new) == [
        ("stage_added", "tap", None, "identity"),
        ("depends_on_changed", "check", "", "tap"),
    ]


def test_every_change_is_a_sentence() -> None:
    for change in semantic_diff(BASE, compile_spec(ONE)):
        assert change.text.endswith(".")
        assert change.as_dict()["text"] == change.text


LANES: list[Lane] = [("in", "events"), ("a", "events"), ("b", "events"), ("out", "journal")]
ENDS = [("ingress", "in"), ("egress", "out")]
GRAPH = compile_spec(
    graph(LANES, ENDS, {"split": router("broadcast", "in", "a", "b"), "join": merge("ordered", "out", "a", "b")})
)


def test_a_graph_is_compared_by_its_lanes_endpoints_and_roles() -> None:
    assert _changes(None, GRAPH) == [
        ("lane_added", "a", None, "events"),
        ("lane_added", "b", None, "events"),
        ("lane_added", "in", None, "events"),
        ("lane_added", "out", None, "journal"),
        ("endpoint_added", "in", None, "ingress"),
        ("endpoint_added", "out", None, "egress"),
        ("role_added", "split", None, "router broadcast"),
        ("role_added", "join", None, "merge ordered"),
    ]
    assert [change.text for change in semantic_diff(None, GRAPH)][-1] == (
        "Role join (merge ordered) is new, from a and b to out."
    )


def test_each_kind_of_change_of_a_graph_is_named_and_nothing_else() -> None:
    lanes: list[Lane] = [
        ("in", "journal"), ("a", "events", {"capacity": 8}), ("c", "events"), ("out", "journal"), ("more", "events"),
    ]  # fmt: skip
    new = compile_spec(
        graph(
            lanes,
            [*ENDS, ("ingress", "more")],
            {
                "split": router("hash", "in", "a", "c", hash_key="id"),
                "join": merge("arrival", "out", "c", "a", "more"),
            },
            on_full="drop",
        )
    )
    assert _changes(GRAPH, new) == [
        ("setting_changed", "on_full", "block", "drop"),
        ("lane_removed", "b", "events", None),
        ("capacity_changed", "a", "1024", "8"),
        ("lane_added", "c", None, "events"),
        ("lane_kind_changed", "in", "events", "journal"),
        ("lane_added", "more", None, "events"),
        ("endpoint_added", "more", None, "ingress"),
        ("policy_changed", "split", "broadcast", "hash"),
        ("hash_key_changed", "split", None, "id"),
        ("tx_changed", "split", "a, b", "a, c"),
        ("policy_changed", "join", "ordered", "arrival"),
        ("rx_changed", "join", "a, b", "c, a, more"),
    ]
    assert ("endpoint_removed", "more", "ingress", None) in _changes(new, GRAPH)
    for change in semantic_diff(GRAPH, new):
        assert change.text.endswith(".")


def test_a_role_that_becomes_a_stage_with_an_effect_gains_its_capability() -> None:
    was = compile_spec(graph([LANES[0], LANES[3]], ENDS, {"r": bridge("in", "out")}))
    now = compile_spec(graph([LANES[0], LANES[3]], ENDS, {"r": stage("exec:/bin/x", "in", "out")}))
    assert _changes(was, now) == [
        ("capability_gained", "action:exec", None, "action:exec"),
        ("role_kind_changed", "r", "bridge", "stage"),
        ("op_changed", "r", None, "exec:/bin/x"),
    ]


def test_a_ring_that_becomes_a_graph_loses_its_stages_and_gets_roles() -> None:
    kinds = {kind for kind, *_ in _changes(BASE, GRAPH)}
    assert kinds == {"target_changed", "setting_changed", "stage_removed", "lane_added", "endpoint_added", "role_added"}
    assert "role_removed" in {kind for kind, *_ in _changes(GRAPH, BASE)}
