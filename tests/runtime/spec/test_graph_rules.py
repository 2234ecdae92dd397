"""Every rule of a LaneGraph has a text that breaks it and a similar one that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from apps.runtime.spec import CODES, compile_spec
from tests.runtime.specs import GRAPH_HEAD, Lane, Role, bridge, graph, merge, router, stage

IN, OUT = ("in", "events"), ("out", "journal")
ENDS = (("ingress", "in"), ("egress", "out"))
ONE = graph([IN, OUT], ENDS, {"carry": bridge("in", "out")})
MID: tuple[Lane, ...] = (IN, OUT, ("a", "events"), ("b", "events"))


def _four(lanes: Sequence[Lane] = MID, **roles: Role) -> str:
    """Lanes in, out, a and b: split, then joined, unless `roles` has others."""
    both: dict[str, Role] = {"split": router("broadcast", "in", "a", "b"), "join": merge("ordered", "out", "a", "b")}
    return graph(lanes, ENDS, {**both, **roles})


FOUR = _four()
FAN = graph(
    [IN, OUT, ("fan", "fanout_broadcast", {"consumers": 2})],
    [*ENDS, ("egress", "fan")],
    {"carry": bridge("in", "fan"), "on": bridge("fan", "out")},
)


def _chain(roles: int) -> str:
    """A graph of so many bridges, one behind the other."""
    lanes = [("in", "events"), *((f"l{n}", "events") for n in range(1, roles)), ("out", "events")]
    names = [name for name, _ in lanes]
    return graph(lanes, ENDS, {f"r{n}": bridge(names[n], names[n + 1]) for n in range(roles)})


def _doubled(times: int) -> str:
    """A graph that copies each record and merges the copies again, so many times."""
    lanes: list[Lane] = [IN, OUT]
    roles: dict[str, Role] = {}
    last = "in"
    for n in range(times):
        lanes += [(f"a{n}", "events"), (f"b{n}", "events"), (f"c{n}", "events")]
        roles[f"split{n}"] = router("broadcast", last, f"a{n}", f"b{n}")
        roles[f"join{n}"] = merge("arrival", f"c{n}", f"a{n}", f"b{n}")
        last = f"c{n}"
    return graph(lanes, ENDS, {**roles, "last": bridge(last, "out")})


def _circle(*, opened: bool) -> str:
    """A merge that is fed by what it feeds, or, opened, by an ingress."""
    lanes = [IN, OUT, ("a", "events"), ("b", "fanout_broadcast", {"consumers": 1 if opened else 2})]
    roles: dict[str, Role] = {"join": merge("arrival", "b", "in", "a"), "on": bridge("b", "out")}
    if opened:
        return graph(lanes, [*ENDS, ("ingress", "a")], roles)
    return graph(lanes, ENDS, {**roles, "again": bridge("b", "a")})


def _line(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def _swap(text: str, old: str, new: str) -> str:
    """`text` with the one line `old` changed to `new`; without it if `new` is empty."""
    lines = text.splitlines()
    lines[lines.index(old)] = new
    return "\n".join(line for line in lines if line) + "\n"


L, E, R = "lane_graph.lanes", "lane_graph.endpoints", "lane_graph.roles"
HASH = _four(split=router("hash", "in", "a", "b", hash_key="customer.id"))

# code, a text that breaks the rule, how the line begins at which it is reported (None: the whole), the nearest text that keeps it
_TABLE: list[tuple[str, str, str | None, str]] = [
    ("unknown_on_full", ONE + "lane_graph.on_full=wait", "lane_graph.on_full", ONE + "lane_graph.on_full=drop"),
    ("lane_gap", ONE.replace(f"{L}.1", f"{L}.2"), f"{L}.2.name", ONE),
    ("missing_lane_name", _swap(ONE, f"{L}.1.name=out", ""), f"{L}.1.kind", ONE),
    ("bad_lane_name", graph([IN, ("Out", "journal")], ENDS, {}), f"{L}.1.name", ONE),
    ("duplicate_lane_name", ONE + f"{L}.2.name=in\n{L}.2.kind=events", f"{L}.2.name", ONE),
    ("missing_lane_kind", _swap(ONE, f"{L}.1.kind=journal", ""), f"{L}.1.name", ONE),
    ("unknown_lane_kind", ONE.replace("=journal", "=queue"), f"{L}.1.kind", ONE.replace("=journal", "=sequenced_slots")),
    ("capacity_out_of_range", ONE + f"{L}.0.capacity=0", f"{L}.0.capacity", ONE + f"{L}.0.capacity=1"),
    ("capacity_out_of_range", ONE + f"{L}.0.capacity=1048577", f"{L}.0.capacity", ONE + f"{L}.0.capacity=1048576"),
    ("consumers_out_of_range", FAN.replace("consumers=2", "consumers=0"), f"{L}.2.consumers", FAN),
    ("consumers_out_of_range", FAN.replace("consumers=2", "consumers=17"), f"{L}.2.consumers", FAN),
    ("consumers_need_fanout", ONE + f"{L}.0.consumers=2", f"{L}.0.consumers", ONE + f"{L}.0.consumers=1"),
    ("consumers_mismatch", FAN.replace("consumers=2", "consumers=3"), f"{L}.2.consumers", FAN),
    ("consumers_mismatch", _swap(FAN, f"{L}.2.consumers=2", ""), f"{L}.2.name", FAN),
    ("unknown_lane", ONE.replace("0.tx=out", "0.tx=gone"), f"{R}.0.tx", ONE),
    ("unknown_lane", ONE.replace("0.lane=in", "0.lane=ni"), f"{E}.0.lane", ONE),
    ("lane_without_producer", ONE + f"{L}.2.name=x\n{L}.2.kind=events\n{E}.2.lane=x\n{E}.2.kind=egress", f"{L}.2.name",
     ONE + f"{L}.2.name=x\n{L}.2.kind=events\n{E}.2.lane=x\n{E}.2.kind=egress\n{E}.3.lane=x\n{E}.3.kind=ingress"),
    ("lane_without_consumer", ONE + f"{L}.2.name=x\n{L}.2.kind=events\n{E}.2.lane=x\n{E}.2.kind=ingress", f"{L}.2.name", ONE),
    ("too_many_producers", FOUR + f"{E}.2.lane=out\n{E}.2.kind=ingress", f"{L}.1.name",
     FOUR.replace("=journal", "=events") + f"{E}.2.lane=out\n{E}.2.kind=ingress"),
    ("too_many_consumers", FOUR + f"{E}.2.lane=in\n{E}.2.kind=egress", f"{L}.0.name",
     FOUR.replace("0.kind=events", "0.kind=fanout_broadcast", 1) + f"{L}.0.consumers=2\n{E}.2.lane=in\n{E}.2.kind=egress"),
    ("endpoint_gap", ONE.replace(f"{E}.1", f"{E}.3"), f"{E}.3.lane", ONE),
    ("missing_endpoint_lane", _swap(ONE, f"{E}.1.lane=out", ""), f"{E}.1.kind", ONE),
    ("missing_endpoint_kind", _swap(ONE, f"{E}.1.kind=egress", ""), f"{E}.1.lane", ONE),
    ("unknown_endpoint_kind", ONE.replace("=egress", "=exit"), f"{E}.1.kind", ONE),
    ("duplicate_endpoint", ONE + f"{E}.2.lane=in\n{E}.2.kind=ingress", f"{E}.2.lane",
     ONE),
    ("no_ingress", graph([IN, OUT], ENDS[1:], {"carry": bridge("in", "out")}), None, ONE),
    ("no_egress", graph([IN, OUT], ENDS[:1], {"carry": bridge("in", "out")}), None, ONE),
    ("no_egress", GRAPH_HEAD, None, ONE),
    ("too_many_roles", _chain(257), f"{R}.256.name", _chain(256)),
    ("role_gap", ONE.replace(f"{R}.0", f"{R}.1"), f"{R}.1.name", ONE),
    ("missing_role_name", _swap(ONE, f"{R}.0.name=carry", ""), f"{R}.0.kind", ONE),
    ("bad_role_name", ONE.replace("=carry", "=a b"), f"{R}.0.name", ONE.replace("=carry", "=" + "a" * 63)),
    ("duplicate_role_name", FOUR.replace("name=join", "name=split"), f"{R}.1.name", FOUR.replace("name=join", "name=in")),
    ("missing_role_kind", _swap(ONE, f"{R}.0.kind=bridge", ""), f"{R}.0.name", ONE),
    ("unknown_role_kind", ONE.replace("=bridge", "=tap"), f"{R}.0.kind", ONE),
    ("role_key_not_taken", ONE + f"{R}.0.op=identity", f"{R}.0.op", ONE.replace("=bridge", "=stage") + f"{R}.0.op=identity"),
    ("role_key_not_taken", ONE + f"{R}.0.policy=ordered", f"{R}.0.policy", ONE),
    ("role_key_not_taken", ONE + f"{R}.0.tx.0=out", f"{R}.0.tx.0", ONE),
    ("role_key_not_taken", FOUR + f"{R}.0.tx=a", f"{R}.0.tx=", FOUR),
    ("missing_role_op", ONE.replace("=bridge", "=stage"), f"{R}.0.name", ONE),
    ("missing_rx", _swap(ONE, f"{R}.0.rx=in", ""), f"{R}.0.name", ONE),
    ("missing_rx", FOUR.replace(".rx.0=", ".xr.0=").replace(".rx.1=", ".xr.1="), f"{R}.1.name", FOUR),
    ("missing_tx", _swap(ONE, f"{R}.0.tx=out", ""), f"{R}.0.name", ONE),
    ("port_gap", FOUR.replace(".tx.1=", ".tx.2="), f"{R}.0.tx.2", FOUR),
    ("port_gap", FOUR.replace(".rx.0=", ".rx.7="), f"{R}.1.rx.1", FOUR),
    ("duplicate_port", FOUR + f"{R}.0.tx.2=a", f"{R}.0.tx.2", FOUR),
    ("router_needs_two_tx", _swap(FOUR, f"{R}.0.tx.1=b", ""), f"{R}.0.tx.0", FOUR),
    ("merge_needs_two_rx", _swap(FOUR, f"{R}.1.rx.1=b", ""), f"{R}.1.rx.0", FOUR),
    ("missing_policy", _swap(FOUR, f"{R}.0.policy=broadcast", ""), f"{R}.0.name", FOUR),
    ("unknown_policy", FOUR.replace("=broadcast", "=ordered"), f"{R}.0.policy", FOUR.replace("=broadcast", "=round_robin")),
    ("unknown_policy", FOUR.replace("=ordered", "=hash"), f"{R}.1.policy", FOUR.replace("=ordered", "=arrival")),
    ("hash_needs_hash_key", FOUR.replace("=broadcast", "=hash"), f"{R}.0.policy", HASH),
    ("hash_key_without_hash", FOUR + f"{R}.0.hash_key=id", f"{R}.0.hash_key", HASH),
    ("hash_key_without_hash", ONE + f"{R}.0.hash_key=id", f"{R}.0.hash_key", ONE),
    ("bad_hash_key", HASH.replace("=customer.id", "=customer..id"), f"{R}.0.hash_key", HASH),
    ("cycle", _circle(opened=False), f"{R}.0.name", _circle(opened=True)),
    ("cycle", _four(split=bridge("b", "b")), f"{R}.0.name", FOUR),
    ("role_off_path", FOUR + f"{R}.2.name=x\n{R}.2.kind=bridge\n{R}.2.rx=y\n{R}.2.tx=y\n{L}.4.name=y\n{L}.4.kind=events",
     f"{R}.2.name", FOUR),
    ("too_many_copies", _doubled(14), f"{R}.0.name", _doubled(13)),
    ("unknown_op", graph([IN, OUT], ENDS, {"s": stage("teleport", "in", "out")}), f"{R}.0.op",
     graph([IN, OUT], ENDS, {"s": stage("exec:/bin/cat", "in", "out")})),
    ("bad_op_argument", graph([IN, OUT], ENDS, {"s": stage("http_post:x", "in", "out")}), f"{R}.0.op", ONE),
    ("bad_integer", ONE + f"{L}.0.capacity=1k", f"{L}.0.capacity", ONE + f"{L}.0.capacity=10"),
    ("bad_index", ONE + f"{R}.0.rx.x=in", f"{R}.0.rx.x", ONE),
    ("bad_index", ONE.replace(f"{L}.1.kind", f"{L}.01.kind"), f"{L}.01.kind", ONE),
    ("unknown_key", ONE + f"{L}.0.colour=red", f"{L}.0.colour", ONE),
    ("key_of_other_target", ONE + "single_ring.shards=1", "single_ring", ONE),
]  # fmt: skip
RULES = [(code, wrong, 0 if at is None else _line(wrong, at), right) for code, wrong, at, right in _TABLE]


@pytest.mark.parametrize(("code", "wrong", "line", "right"), RULES, ids=[f"{r[0]}-{n}" for n, r in enumerate(RULES)])
def test_a_broken_rule_is_reported_with_its_code_and_line_and_its_neighbour_is_not(
    code: str, wrong: str, line: int, right: str
) -> None:
    refused = compile_spec(wrong)
    found = [item for item in refused.diagnostics if item.code == code]
    assert [item.line for item in found] == [line], refused.diagnostics
    assert found[0].message
    assert refused.ok is (CODES[code][0] == "warning")
    accepted = compile_spec(right)
    assert accepted.ok, accepted.diagnostics
    assert code not in {item.code for item in accepted.diagnostics}


def test_all_problems_are_reported_at_once_in_line_order_and_what_only_follows_from_them_is_not() -> None:
    text = graph(
        [IN, ("out", "journal", {"capacity": 0}), ("in", "events")],
        [("ingress", "in"), ("egress", "ou")],
        {"a": stage("nothing", "in", "out"), "b": router("hash", "out", "gone")},
    )
    assert [(item.line, item.code) for item in compile_spec(text).diagnostics] == [
        (8, "capacity_out_of_range"),
        (9, "duplicate_lane_name"),
        (13, "unknown_lane"),
        (17, "unknown_op"),
        (23, "router_needs_two_tx"),
        (23, "unknown_lane"),
        (24, "hash_needs_hash_key"),
    ]


def test_a_cycle_is_reported_by_the_names_along_it_and_each_one_that_shares_no_role() -> None:
    def pair(one: str, other: str) -> Mapping[str, Role]:
        return {one: bridge(f"{other}x", f"{one}x"), other: bridge(f"{one}x", f"{other}x")}

    lanes: list[Lane] = [("io", "events"), *((f"{name}x", "events") for name in "abcd")]
    done = compile_spec(graph(lanes, [("ingress", "io"), ("egress", "io")], {**pair("a", "b"), **pair("c", "d")}))
    found = [item.message for item in done.diagnostics if item.code == "cycle"]
    assert found == ["Records go in a circle: a -> b -> a.", "Records go in a circle: c -> d -> c."]


def test_ways_of_which_a_record_takes_one_are_no_copies() -> None:
    for policy, more in (("round_robin", ""), ("hash", "\n{}.hash_key=id")):
        lines = _doubled(40).replace("policy=broadcast", f"policy={policy}").splitlines()
        text = "\n".join(
            line + more.format(line[: line.rindex(".")]) if "=" + policy in line else line for line in lines
        )
        assert compile_spec(text).ok


def test_a_role_behind_a_cycle_is_not_reported_as_in_it() -> None:
    lanes: list[Lane] = [IN, OUT, ("a", "events"), ("b", "fanout_broadcast", {"consumers": 2}), ("c", "events")]
    roles = {
        "late": bridge("c", "out"),
        "join": merge("arrival", "b", "in", "a"),
        "again": bridge("b", "a"),
        "on": bridge("b", "c"),
    }
    found = [item for item in compile_spec(graph(lanes, ENDS, roles)).diagnostics if item.code == "cycle"]
    assert [item.message for item in found] == ["Records go in a circle: join -> again -> join."]


def test_a_graph_needs_no_role_and_a_spec_without_a_target_has_its_graph_checked() -> None:
    assert compile_spec(graph([IN], [("ingress", "in"), ("egress", "in")], {})).ok
    codes = {item.code for item in compile_spec("lane_graph.roles.0.kind=bridge").diagnostics}
    assert codes >= {"missing_target", "missing_role_name", "missing_rx", "no_ingress"}
