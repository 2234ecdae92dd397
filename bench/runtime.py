"""The spec compiler against `json.loads` and a jsonschema check of the same content; the interpreter against the same ops in a bare
loop, and against the same work written by hand for this very record over the fastest `json` of the standard library.

The baseline of the compiler checks what a schema can state of the same content, and no more: types, names, enumerations, ranges,
lengths, unknown keys, what each kind of role takes. It does not see what the compiler checks besides (every name that names
something, ends of lanes, cycles, ways through), reports one problem where the compiler reports all with their lines, and makes neither
canonical text, nor hash, nor plan. Nothing here waits, so processor time
is measured. Both sides get their text as the bytes that a request carries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import jsonschema

from apps.runtime.interpreter import Interpreter
from apps.runtime.ops import KINDS, Op, Slot, build_step
from apps.runtime.spec import Plan, compile_spec
from bench.measure import ratio, seconds_each

EXAMPLES = Path(__file__).parent.parent / "docs/examples"
RECORD = json.dumps({"id": 1, "total": 12.5, "customer": {"email": "ann@example.com", "card": "4111"}}).encode()
SMALL = (
    "spec.version=1\npipeline.name=p\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=redact\nsingle_ring.stages.0.op=dataguard_redact\n"
)

_NAME = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"}
_FIELD = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_-]{0,62}(\.[A-Za-z_][A-Za-z0-9_-]{0,62}){0,7}$"}
_OP = {
    "type": "string",
    "maxLength": 4096,
    "pattern": "^("
    + "|".join(f"{kind.name}:{kind.argument.pattern}" if kind.argument else kind.name for kind in KINDS.values())
    + ")$",
}


def _closed(properties: Mapping[str, object], *optional: str) -> dict[str, object]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_HEAD = {"spec": _closed({"version": {"const": 1}})}
RING_SCHEMA = _closed(
    {
        **_HEAD,
        "pipeline": _closed({"name": _NAME, "target": {"const": "SingleRing"}}),
        "single_ring": _closed(
            {
                "shards": {"type": "integer", "minimum": 1, "maximum": 1024},
                "ordering": {"enum": ["strict", "per_key"]},
                "producer": {"const": "single"},
                "scheduling": {"const": "dedicated"},
                "shard_key": _FIELD,
                "stages": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 4,
                    "items": _closed(
                        {
                            "id": _NAME,
                            "op": _OP,
                            "depends_on": {
                                "type": "array",
                                "items": {"type": "integer", "minimum": 0, "maximum": 3},
                                "uniqueItems": True,
                            },
                        },
                        "depends_on",
                    ),
                },
            },
            "shards", "ordering", "producer", "scheduling", "shard_key",
        ),
    }
)  # fmt: skip
_LANES = {"type": "array", "items": _NAME, "minItems": 2, "uniqueItems": True}
_LANE_KINDS = ["events", "journal", "sequenced_slots", "fanout_broadcast"]


def _role(kind: str, properties: Mapping[str, object], *optional: str) -> dict[str, object]:
    then = _closed({"name": True, "kind": True, **properties}, *optional)
    return {"if": {"properties": {"kind": {"const": kind}}}, "then": then}


GRAPH_SCHEMA = _closed(
    {
        **_HEAD,
        "pipeline": _closed({"name": _NAME, "target": {"const": "LaneGraph"}}),
        "lane_graph": _closed(
            {
                "on_full": {"enum": ["block", "drop"]},
                "lanes": {
                    "type": "array",
                    "items": _closed(
                        {
                            "name": _NAME,
                            "kind": {"enum": _LANE_KINDS},
                            "capacity": {"type": "integer", "minimum": 1, "maximum": 1_048_576},
                            "consumers": {"type": "integer", "minimum": 1, "maximum": 16},
                        },
                        "capacity", "consumers",
                    ),
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 2,
                    "items": _closed({"lane": _NAME, "kind": {"enum": ["ingress", "egress"]}}),
                },
                "roles": {
                    "type": "array",
                    "maxItems": 256,
                    "items": {
                        "type": "object",
                        "properties": {"name": _NAME, "kind": {"enum": ["stage", "bridge", "router", "merge"]}},
                        "required": ["name", "kind"],
                        "allOf": [
                            _role("stage", {"op": _OP, "rx": _NAME, "tx": _NAME}),
                            _role("bridge", {"rx": _NAME, "tx": _NAME}),
                            _role(
                                "router",
                                {
                                    "rx": _NAME, "tx": _LANES,
                                    "policy": {"enum": ["broadcast", "round_robin", "hash"]}, "hash_key": _FIELD,
                                },
                                "hash_key",
                            ),
                            _role("merge", {"rx": _LANES, "tx": _NAME, "policy": {"enum": ["arrival", "ordered"]}}),
                        ],
                    },
                },
            },
            "on_full", "roles",
        ),
    }
)  # fmt: skip


def as_json(text: str) -> bytes:
    """The content of a spec as compact JSON: objects where keys have words, lists where they have indexes."""
    top: dict[str, Any] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        key, value = line.split("=", 1)
        words = key.split(".")
        at = top
        for word in words[:-1]:
            at = at.setdefault(word, {})
        at[words[-1]] = int(value) if value.isdigit() else value

    def listed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if all(key.isdigit() for key in value):
            return [listed(value[key]) for key in sorted(value, key=int)]
        return {key: listed(item) for key, item in value.items()}

    return json.dumps(listed(top), separators=(",", ":")).encode()


def wide_graph(roles: int) -> str:
    """Routers, stages and merges behind each other, some of every kind, with so many roles: a multiple of four."""
    lines = ["spec.version=1", "pipeline.name=wide", "pipeline.target=LaneGraph", "lane_graph.on_full=block"]
    lanes, body, last = ["l0"], [], "l0"
    for number in range(0, roles, 4):
        left, right, one, other, joined = (f"{name}{number}" for name in ("left", "right", "one", "other", "joined"))
        lanes += [left, right, one, other, joined]
        policy = ("round_robin", "hash")[number // 4 % 2]
        key = [f"lane_graph.roles.{number}.hash_key=customer.id"] if policy == "hash" else []
        rows = (
            [f"name=split{number}", "kind=router", f"rx={last}", f"tx.0={left}", f"tx.1={right}", f"policy={policy}"],
            [f"name=redact{number}", "kind=stage", "op=dataguard_redact", f"rx={left}", f"tx={one}"],
            [f"name=carry{number}", "kind=bridge", f"rx={right}", f"tx={other}"],
            [f"name=join{number}", "kind=merge", f"rx.0={one}", f"rx.1={other}", f"tx={joined}", "policy=ordered"],
        )
        body += key + [f"lane_graph.roles.{number + at}.{row}" for at, role in enumerate(rows) for row in role]
        last = joined
    for number, lane in enumerate(lanes):
        lines += [f"lane_graph.lanes.{number}.name={lane}", f"lane_graph.lanes.{number}.kind=events"]
        lines.append(f"lane_graph.lanes.{number}.capacity=1024")
    for number, (lane, kind) in enumerate(((lanes[0], "ingress"), (last, "egress"))):
        lines += [f"lane_graph.endpoints.{number}.lane={lane}", f"lane_graph.endpoints.{number}.kind={kind}"]
    return "\n".join([*lines, *body]) + "\n"


def compare_compile(name: str, text: str, schema: Mapping[str, object], times: int) -> None:
    """Measure the compiler against its baseline on one spec."""
    done = compile_spec(text)
    if not done.ok:
        raise SystemExit(f"{name} does not compile: {done.diagnostics[:3]}")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    as_text, as_document = text.encode(), as_json(text)
    validator.validate(json.loads(as_document))
    lines = len(text.splitlines())
    ratio(
        f"compile {name} ({lines} lines) / loads + jsonschema",
        lambda: compile_spec(as_text),
        lambda: validator.validate(json.loads(as_document)),
        times,
        wanted="<= 0.50",
        clock=process_time,
    )


def plan_of(text: str) -> Plan:
    """The plan of a spec that compiles."""
    plan = compile_spec(text).plan
    if plan is None:
        raise SystemExit("a spec of the bench does not compile")
    return plan


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def redacted(row: dict[str, Any]) -> dict[str, Any]:
    """What the rules do, by hand."""
    row["customer"].pop("card", None)
    email = row["customer"]["email"]
    row["customer"]["email"] = email[0] + "*" * (len(email) - 5) + email[-4:]
    return row


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """What the schema asks for, by hand."""
    if not isinstance(row.get("id"), int) or row["id"] < 0 or not isinstance(row.get("customer"), dict):
        raise ValueError
    if not isinstance(row["customer"].get("email"), str) or len(row["customer"]["email"]) > 200:
        raise ValueError
    return row


def compare_run(
    name: str, plan: Plan, settings: Mapping[str, Mapping[str, object]], bare: Callable[[], object]
) -> None:
    """Measure the interpreter over one record: against its own ops in a bare loop, and against the work written by hand."""
    interpreter = Interpreter(plan, settings)
    steps = [build_step(Op(stage.op, stage.argument), settings.get(stage.id, {}), None)[0] for stage in plan.stages]
    known = [step for step in steps if step is not None]

    def ops() -> bytes:
        slot = Slot(RECORD)
        for step in known:
            step.run(slot)
        return slot.data()

    if not interpreter.process(RECORD).emitted == bare() == ops():
        raise SystemExit(f"{name}: the baseline does not do the same")
    for baseline, work in (("the same ops in a loop", ops), ("by hand", bare)):
        ratio(
            f"{name} / {baseline}",
            lambda: interpreter.process(RECORD),
            work,
            2000,
            15,
            wanted="<= 1.43",
            clock=process_time,
        )


def main() -> None:
    """Measure and print."""
    graph = (EXAMPLES / "21-fan-out-and-merge.kv").read_text()
    compare_compile("a small ring", SMALL, RING_SCHEMA, 300)
    full = (EXAMPLES / "05-diamond.kv").read_text() + "single_ring.shards=8\nsingle_ring.ordering=per_key\n"
    compare_compile("a ring of four stages", full + "single_ring.shard_key=customer.id\n", RING_SCHEMA, 200)
    compare_compile("a graph", graph, GRAPH_SCHEMA, 100)
    for roles in (64, 128, 256):
        compare_compile(f"a graph of {roles} roles", wide_graph(roles), GRAPH_SCHEMA, 3)
    few, many = wide_graph(64), wide_graph(256)
    grown = (
        seconds_each(lambda: compile_spec(many), 20, process_time)
        / seconds_each(lambda: compile_spec(few), 80, process_time)
        / 4
    )
    print(f"{'compile, time a role: 256 roles / 64 roles':52} {grown:6.2f} x   wanted about 1")

    rules = {"rules": ["customer.card:drop", "customer.email:mask=1:4:*"]}
    email = {"type": "string", "maxLength": 200}
    customer = {"type": "object", "required": ["email"], "properties": {"email": email}}
    schema = {
        "required": ["id", "customer"],
        "properties": {"id": {"type": "integer", "minimum": 0}, "customer": customer},
    }
    compare_run("redact", plan_of(SMALL), {"redact": rules}, lambda: _encode(redacted(json.loads(RECORD))).encode())
    both = plan_of((EXAMPLES / "03-check-then-redact.kv").read_text())
    check, redact = (stage.id for stage in both.stages)
    compare_run(
        "check, then redact",
        both,
        {check: {"schema": schema}, redact: rules},
        lambda: _encode(redacted(checked(json.loads(RECORD)))).encode(),
    )
    sharded = plan_of(SMALL + "single_ring.shards=8\nsingle_ring.ordering=per_key\nsingle_ring.shard_key=id\n")
    shards: list[int] = [0] * 8

    def in_shards() -> bytes:
        row = json.loads(RECORD)
        key = hashlib.sha256(_encode(row["id"]).encode()).digest()
        shards[int.from_bytes(key[:8], "big") % 8] += 1
        return _encode(redacted(row)).encode()

    compare_run("redact in eight shards", sharded, {"redact": rules}, in_shards)
    lanes = plan_of((EXAMPLES / "20-lane-graph.kv").read_text())
    compare_run("redact in a graph", lanes, {"redact": rules}, lambda: _encode(redacted(json.loads(RECORD))).encode())
    runner = Interpreter(plan_of(graph), {"check": {"schema": schema}, "redact": rules})

    def three_copies() -> list[bytes]:
        row = json.loads(RECORD)
        return [RECORD, _encode(redacted(row)).encode(), RECORD if checked(json.loads(RECORD)) else b""]

    if [emission.record for emission in runner.process(RECORD, "shop").emissions] != three_copies():
        raise SystemExit("fan-out: the baseline does not do the same")
    ratio(
        "a graph of three copies and a merge / by hand",
        lambda: runner.process(RECORD, "shop"),
        three_copies,
        1000,
        15,
    )
