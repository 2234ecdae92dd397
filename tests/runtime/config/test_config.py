"""Configs: the good, every kind of bad, all at once, and their hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.config import CONFIG_SCHEMA, adapters_of, check_config, config_hash
from apps.runtime.config.secrets import secret_name, secret_value
from apps.runtime.spec import Plan, compile_spec
from tests.runtime.ops.test_records import values
from tests.runtime.specs import graph, graph_plan, plan_of

ROOT = Path(__file__).parents[3]
PLAN = plan_of(("a", "identity", []))
GUARD = plan_of(("check", "dataguard_check", []), ("redact", "dataguard_redact", [0]))
ORDERS = graph_plan((ROOT / "docs/examples/02-redact-orders.kv").read_text())
FULL: dict[str, Any] = json.loads((ROOT / "docs/examples/config-redact-orders.json").read_text())


FUSED = plan_of(("a", "dataguard_fused", []))
LANES = graph_plan(
    graph(
        [("a", "events"), ("b", "events")],
        [(kind, lane) for kind in ("ingress", "egress") for lane in ("a", "b")],
        {},
    )
)


def found(config: object, plan: Plan = PLAN) -> list[tuple[str, str]]:
    return [(item.pointer, item.code) for item in check_config(config, plan)]


def test_the_example_is_a_config_for_its_spec() -> None:
    assert check_config(FULL, ORDERS) == ()


def test_every_key_is_optional_where_the_ops_need_none() -> None:
    assert check_config({}, PLAN) == ()
    assert check_config({"adapters": {}, "tuning": {}, "stages": {}, "environment": {}}, PLAN) == ()


FILE = {"type": "file", "path": "a.jsonl"}
PORT = {"type": "http", "port": 9000}
BAD_PARTS: list[tuple[object, str, str]] = [
    ([], "", "wrong_type"),
    (None, "", "wrong_type"),
    ({"stage": {}}, "/stage", "unknown_key"),
    ({"tuning": []}, "/tuning", "wrong_type"),
    ({"tuning": {"profile": "fast"}}, "/tuning/profile", "bad_value"),
    ({"tuning": {"profile": ["default"]}}, "/tuning/profile", "bad_value"),
    ({"tuning": {"batch_size": 0}}, "/tuning/batch_size", "bad_value"),
    ({"tuning": {"batch_size": True}}, "/tuning/batch_size", "bad_value"),
    ({"tuning": {"buffer_records": 1.5}}, "/tuning/buffer_records", "bad_value"),
    ({"tuning": {"threads": 1}}, "/tuning/threads", "unknown_key"),
    ({"adapters": {"ingres": {}}}, "/adapters/ingres", "unknown_key"),
    ({"adapters": {"ingress": {}}}, "/adapters/ingress/type", "bad_value"),
    ({"adapters": {"ingress": {"type": "kafka"}}}, "/adapters/ingress/type", "bad_value"),
    ({"adapters": {"ingress": {"type": "file"}}}, "/adapters/ingress/path", "bad_path"),
    ({"adapters": {"ingress": {"type": "file", "path": ""}}}, "/adapters/ingress/path", "bad_path"),
    ({"adapters": {"ingress": {"type": "file", "path": "a\nb"}}}, "/adapters/ingress/path", "bad_path"),
    ({"adapters": {"ingress": {"type": "file", "path": "a", "follow": 1}}}, "/adapters/ingress/follow", "wrong_type"),
    ({"adapters": {"egress": {"type": "file", "path": "x/../../etc"}}}, "/adapters/egress/path", "path_escape"),
    ({"adapters": {"egress": {"type": "file", "path": "x", "follow": True}}}, "/adapters/egress/follow", "unknown_key"),
    ({"adapters": {"ingress": {"type": "http"}}}, "/adapters/ingress/port", "bad_value"),
    ({"adapters": {"ingress": {"type": "http", "port": 0}}}, "/adapters/ingress/port", "bad_value"),
    (
        {"adapters": {"ingress": {"type": "http", "port": 80, "host": "0.0.0.0"}}},
        "/adapters/ingress/host",
        "not_loopback",
    ),
    ({"adapters": {"ingress": {"type": "http", "port": 80, "path": "x"}}}, "/adapters/ingress/path", "bad_value"),
    ({"adapters": {"egress": {"type": "http"}}}, "/adapters/egress/url", "bad_url"),
    ({"adapters": {"egress": {"type": "http", "url": "file:///etc"}}}, "/adapters/egress/url", "bad_url"),
    ({"adapters": {"egress": {"type": "http", "url": "https://u:p@h/"}}}, "/adapters/egress/url", "bad_url"),
    ({"stages": []}, "/stages", "wrong_type"),
    ({"stages": {"a": []}}, "/stages/a", "wrong_type"),
    ({"stages": {"A": {}, "a": {}}}, "/stages/A", "unknown_stage"),
    ({"stages": {"a": {"rule": []}}}, "/stages/a/rule", "unknown_key"),
    ({"environment": []}, "/environment", "wrong_type"),
    ({"environment": {"1A": "x"}}, "/environment/1A", "bad_name"),
    ({"environment": {"A": 1}}, "/environment/A", "wrong_type"),
    ({"environment": {"A": "x" * 4097}}, "/environment/A", "too_long"),
    ({"environment": {"A": {}}}, "/environment/A/secret_ref", "bad_secret_ref"),
    ({"environment": {"A": {"secret_ref": "vault:x"}}}, "/environment/A/secret_ref", "bad_secret_ref"),
    ({"environment": {"A": {"secret_ref": "file:../x"}}}, "/environment/A/secret_ref", "path_escape"),
    ({"environment": {"A": {"secret_ref": "env:A", "b": 1}}}, "/environment/A/b", "unknown_key"),
    ({"environment": {f"A{n}": "x" for n in range(257)}}, "/environment", "too_many"),
    ({"environment": {"DB_PASSWORD": "hunter2"}}, "/environment/DB_PASSWORD", "looks_like_secret"),
    ({"environment": {"A": "AKIAIOSFODNN7EXAMPLE"}}, "/environment/A", "looks_like_secret"),
    ({"environment": {"A": "\x00"}}, "/environment/A", "bad_text"),
    ({"environment": {"A": "\ud800"}}, "/environment/A", "bad_text"),
    ({"tuning": {"batch_size": 2**60}}, "/tuning/batch_size", "number_out_of_range"),
    ({"tuning": {"batch_size": float("nan")}}, "/tuning/batch_size", "number_out_of_range"),
    ({"stages": {"a": {"schema": {"title": "x" * 262_144}}}}, "", "too_large"),
]
BAD_LANES: list[tuple[object, str, str]] = [
    ({"adapters": {"ingress": {"lanes": []}}}, "/adapters/ingress/lanes", "wrong_type"),
    ({"adapters": {"ingress": {"lanes": {}, "type": "file"}}}, "/adapters/ingress/type", "unknown_key"),
    ({"adapters": {"ingress": {"lanes": {"A": FILE}}}}, "/adapters/ingress/lanes/A", "unknown_lane"),
    ({"adapters": {"ingress": {"lanes": {"a": 1}}}}, "/adapters/ingress/lanes/a", "wrong_type"),
    ({"adapters": {"egress": {"lanes": {"a": {"type": "http"}}}}}, "/adapters/egress/lanes/a/url", "bad_url"),
    ({"adapters": {"egress": {"lanes": {"a": FILE, "b": FILE}}}}, "/adapters/egress/lanes/b/path", "used_twice"),
    (
        {"adapters": {"ingress": {"lanes": {"a": PORT, "b": {**PORT, "path": "/b"}}}}},
        "/adapters/ingress/lanes/b/port",
        "used_twice",
    ),
]
BAD_SETTINGS: list[tuple[object, str, str]] = [
    ({"stages": {"a": {"rules": [], "schema": True}}}, "/stages/a/rules", "no_rules"),
    ({"stages": {"a": {"rules": ["x"], "schema": True}}}, "/stages/a/rules/0", "no_action"),
    (
        {"stages": {"a": {"rules": ["x:drop"], "schema": {"pattern": "x"}}}},
        "/stages/a/schema/pattern",
        "unknown_keyword",
    ),
]
BAD = [
    *((PLAN, *row) for row in BAD_PARTS),
    *((LANES, *row) for row in BAD_LANES),
    *((FUSED, *row) for row in BAD_SETTINGS),
]
each_bad_one = pytest.mark.parametrize(
    ("plan", "config", "pointer", "code"), BAD, ids=[f"{b[3]}-{n}" for n, b in enumerate(BAD)]
)


@each_bad_one
def test_a_wrong_config_is_reported_with_place_and_reason(plan: Plan, config: object, pointer: str, code: str) -> None:
    assert found(config, plan) == [(pointer, code)]


def test_a_config_too_deep_to_follow_is_refused() -> None:
    config: object = {}
    for _ in range(5000):
        config = {"a": config}
    assert [code for _, code in found(config)] == ["too_deep"]


def test_the_stages_are_held_against_the_plan() -> None:
    assert found({}, GUARD) == [("/stages/check", "schema_missing"), ("/stages/redact", "rules_missing")]
    stages = {"check": {"schema": {}, "rules": ["a:drop"]}, "redact": {"rules": ["a:drop"]}, "gone": {}}
    assert found({"stages": stages}, GUARD) == [
        ("/stages/check/rules", "rules_not_taken"),
        ("/stages/gone", "unknown_stage"),
    ]
    assert found({"stages": {"a": {"schema": True}}}, PLAN) == [("/stages/a/schema", "schema_not_taken")]


def test_the_examples_of_graphs_are_configs_for_their_specs() -> None:
    config = json.loads((ROOT / "docs/examples/config-fan-out.json").read_text())
    plan = compile_spec((ROOT / "docs/examples/21-fan-out-and-merge.kv").read_bytes()).plan
    assert plan is not None
    assert check_config(config, plan) == ()
    assert {lane: adapter["type"] for lane, adapter in adapters_of(config, plan, "ingress").items()} == {
        "shop": "file",
        "market": "http",
    }
    assert set(adapters_of(config, plan, "egress")) == {"orders", "out"}


def test_the_adapters_are_held_against_the_plans_lanes() -> None:
    plan = graph_plan((ROOT / "docs/examples/21-fan-out-and-merge.kv").read_text())
    stages = {"check": {"schema": True}, "redact": {"rules": ["a:drop"]}}

    def problems(ingress: object) -> list[tuple[str, str]]:
        return found({"adapters": {"ingress": ingress}, "stages": stages}, plan)

    assert problems({"lanes": {"shop": FILE}}) == []
    assert problems(FILE) == [("/adapters/ingress", "lanes_needed")]
    assert problems({"lanes": {"out": FILE, "shop": PORT}}) == [("/adapters/ingress/lanes/out", "unknown_lane")]


def test_one_adapter_is_for_the_only_lane_whatever_it_is_called() -> None:
    config = {"adapters": {"ingress": FILE, "egress": {"lanes": {"egress": FILE}}}}
    assert check_config(config, PLAN) == ()
    assert adapters_of(config, PLAN, "ingress") == {"ingress": FILE}
    assert adapters_of(config, PLAN, "egress") == {"egress": FILE}
    assert adapters_of({}, PLAN, "egress") == {}
    graph = graph_plan((ROOT / "docs/examples/20-lane-graph.kv").read_text())
    assert adapters_of({"adapters": {"ingress": FILE}}, graph, "ingress") == {"in": FILE}
    assert found(
        {"adapters": {"egress": {"lanes": {"egress": FILE}}}, "stages": {"redact": {"rules": ["a:drop"]}}}, graph
    ) == [("/adapters/egress/lanes/egress", "unknown_lane")]


def test_all_problems_are_reported_at_once() -> None:
    config = {"x": 1, "tuning": {"profile": 1}, "adapters": {"egress": 1}, "environment": {"A": "x", "PASSWORD": "y"}}
    assert [pointer for pointer, _ in found(config, GUARD)] == [
        "/x", "/tuning/profile", "/adapters/egress", "/environment/PASSWORD", "/stages/check", "/stages/redact",
    ]  # fmt: skip


def test_no_answer_repeats_a_secret() -> None:
    (problem,) = check_config({"environment": {"A": "ghp_abcdefghijklmnopqrstuvwxyz012345"}}, PLAN)
    assert "ghp_" not in problem.detail


SECRET_ONLY = {
    "looks_like_secret",
    "path_escape",
    "bad_text",
    "number_out_of_range",
    "too_large",
    "bad_path",
    "bad_url",
    "used_twice",
}
BEYOND_THE_SHAPE = {*SECRET_ONLY, "no_action", "unknown_keyword", "wrong_type"}


@each_bad_one
def test_the_published_schema_refuses_what_it_can_express(plan: Plan, config: object, pointer: str, code: str) -> None:
    valid = jsonschema.Draft202012Validator(CONFIG_SCHEMA).is_valid(config)
    assert not valid or code in BEYOND_THE_SHAPE


@given(
    st.dictionaries(st.sampled_from(["tuning", "adapters", "stages", "environment", "x"]), values, max_size=5)
    | st.sampled_from([FULL, {}]),
    st.sampled_from([PLAN, ORDERS]),
)
@settings(deadline=None)
def test_what_is_accepted_the_published_schema_accepts_too(config: dict[str, object], plan: Plan) -> None:
    if check_config(config, plan) == ():
        jsonschema.Draft202012Validator(CONFIG_SCHEMA).validate(config)
        assert config_hash(config) == config_hash(json.loads(json.dumps(config, sort_keys=True)))


def test_the_published_file_is_the_schema_in_the_code() -> None:
    assert json.loads((ROOT / "docs/config.schema.json").read_text()) == CONFIG_SCHEMA
    jsonschema.Draft202012Validator.check_schema(CONFIG_SCHEMA)


def test_the_hash_is_of_the_canonical_form() -> None:
    assert config_hash({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert config_hash({"b": 1.0, "a": "é"}) == config_hash({"a": "é", "b": 1})
    for odd in (float("nan"), 2**53, "\ud800", {1: 2}):
        with pytest.raises(ValueError, match="canonical"):
            config_hash(odd)


@pytest.mark.parametrize(
    "value",
    [
        "byt_pat_abc", "AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyz012345", "github_pat_11AA", "glpat-x",
        "xoxb-123-456", "sk_live_abc", "-----BEGIN RSA PRIVATE KEY-----\nMII", "-----BEGIN PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "postgres://user:pw@db/orders", "Bearer abcdefghijklmnop1234",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "xK9mP2qL5vN8rT3wY6zB", "9f86d081884c7d659a2feaa0c55ad015",
    ],
)  # fmt: skip
def test_these_values_look_like_secrets(value: str) -> None:
    assert secret_value(value)
    assert secret_value(f"prefix {value} suffix")


@pytest.mark.parametrize(
    "value",
    [
        "", "orders", "eu-central-1-prod-cluster-07", "/var/lib/byteor/data/orders-in.jsonl", "2026-11-24T09:15:18Z",
        "https://hooks.example.com/a/b/c?x=1", "0190163d-8694-739b-aea5-966c26f8ad91", "sha256:" + "9f86d081" * 8,
        "kafka-broker-1.prod.example.com:9092,kafka-broker-2.prod.example.com:9092", "true", "Hello, world and all.",
        "org.example.orders.pipeline.RedactionStage", "0" * 40,
    ],
)  # fmt: skip
def test_these_values_do_not(value: str) -> None:
    assert secret_value(value) is None


def test_names_that_hold_secrets_are_known() -> None:
    assert all(map(secret_name, ["DB_PASSWORD", "API_KEY", "apiKey", "AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "pwd"]))
    assert not any(map(secret_name, ["REGION", "SORT_KEY", "TOKENIZER", "TOKEN_TTL", "PASSWORD_FILE", "_"]))
