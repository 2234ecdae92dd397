"""An op is one module and one row: what each brings along is true, and everything that knows ops reads the registry."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest

from apps.console.management.commands import op_docs
from apps.runtime.agent import VERSION
from apps.runtime.config import check_config, config_schema
from apps.runtime.interpreter import Interpreter, SettingsError
from apps.runtime.ops import (
    KINDS,
    EffectFailed,
    Example,
    Need,
    OpKind,
    StageInput,
    Step,
    all_settings,
    needs_of,
)
from apps.runtime.ops.rules import ACTIONS, action_of, parse_rules
from apps.runtime.spec import compile_spec
from apps.runtime.trust import version_tuple
from bench.runtime import RING_SCHEMA, as_json
from tests.runtime.graphs import graph_of
from tests.runtime.interp.test_effects import RecordedEffects
from tests.runtime.op_examples import example_settings, op_text, op_texts, settings_for
from tests.runtime.schedules import check_any_schedule
from tests.runtime.scratch_op import SCRATCH
from tests.runtime.specs import compiled, graph_plan, plan_of, ring

ROOT = Path(__file__).parents[3]
EXAMPLES = [(kind, example) for kind in KINDS.values() for example in kind.examples]
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def stage_config(settings: object) -> dict[str, object]:
    return {"stages": {"s": settings}}


def problems(kind: OpKind, settings: object) -> list[tuple[str, str]]:
    plan = plan_of(("s", op_text(kind), []))
    return [(item.pointer, item.code) for item in check_config(stage_config(settings), plan)]


# --- each op ---


@pytest.mark.parametrize(("kind", "example"), EXAMPLES, ids=[f"{k.name}-{n}" for n, (k, _) in enumerate(EXAMPLES)])
def test_every_example_compiles_is_a_good_config_and_leaves_what_it_states(kind: OpKind, example: Example) -> None:
    done = compile_spec(ring(("s", op_text(kind, example), [])))
    assert done.plan is not None, done.diagnostics
    assert check_config(stage_config(dict(example.settings)), done.plan) == ()
    effects = RecordedEffects()
    outcome = Interpreter(done.plan, {"s": example.settings}, effects).process(example.record)
    assert outcome.emitted == example.result
    assert bool(effects.asked) is (kind.capability is not None)


@each_kind
def test_the_first_example_passes_and_the_argument_has_the_documented_form(kind: OpKind) -> None:
    first = kind.examples[0]
    assert first.result is not None
    assert (kind.argument is None) is (first.argument is None)
    if kind.argument is not None:
        assert first.argument is not None
        assert re.fullmatch(kind.argument.pattern, first.argument)
        assert compile_spec(ring(("s", kind.name, []))).errors[0].hint == f"Write {kind.form}."
    assert version_tuple(kind.since) <= version_tuple(VERSION)


@each_kind
def test_a_config_gives_the_op_its_settings_and_no_others(kind: OpKind) -> None:
    taken = {setting.name for setting in kind.settings}
    given = example_settings(kind.name, "s")
    assert set(given) == taken
    assert problems(kind, given) == []
    assert problems(kind, {**given, "odd": 1}) == [("/stages/s/odd", "unknown_key")]
    for name in taken:
        rest = {key: value for key, value in given.items() if key != name}
        assert problems(kind, rest) == [("/stages/s", f"{name}_missing")]
        wrong = problems(kind, {**given, name: None})
        assert wrong
        assert all(pointer.startswith(f"/stages/s/{name}") for pointer, _ in wrong)
    for other in KINDS.values():
        for name, value in example_settings(other.name, "s").items():
            if name not in taken:
                assert problems(kind, {**given, name: value}) == [(f"/stages/s/{name}", f"{name}_not_taken")]


def test_two_ops_that_name_a_setting_alike_mean_the_same() -> None:
    for one, other in product(KINDS.values(), repeat=2):
        for mine, theirs in product(one.settings, other.settings):
            assert (mine.name == theirs.name) is (mine is theirs)


def test_the_examples_of_actions_are_rules_and_have_the_documented_form() -> None:
    for action in ACTIONS.values():
        assert parse_rules([f"a:{action.example}"], strict=True)[1] == ()
        assert action.example.partition("=")[0] == action.name
        assert ("=" in action.example) is ("=" in action.form)
        assert version_tuple(action.since) <= version_tuple(VERSION)


@each_kind
def test_what_a_stage_needs_of_an_agent_is_its_op_and_the_actions_of_its_rules(kind: OpKind) -> None:
    op, *rest = needs_of(kind.name, example_settings(kind.name, "s"))
    assert op == Need(f"the op {kind.name}", kind.since)
    assert {need.what for need in rest} == {
        f"the action {action_of(rule)} of a rule" for rule in example_settings(kind.name, "s").get("rules", [])
    }
    assert {need.since for need in rest} <= {action.since for action in ACTIONS.values()}
    assert needs_of(kind.name, None) == [op]


def test_the_reference_has_the_tables_of_the_code() -> None:
    text = (ROOT / "docs/spec.md").read_text()
    assert op_docs.with_tables(text) == text
    for name in op_docs.TABLES:
        assert op_docs.block(name) in text
    assert (ROOT / "docs/config.schema.json").read_text() == op_docs.schema_file()


def test_the_rows_of_the_reference_are_the_ops() -> None:
    rows = [line.split(" | ") for line in op_docs.op_table().splitlines()[2:]]
    assert [row[0].split("`")[1].split(":")[0] for row in rows] == list(KINDS)
    assert [len(row) for row in rows] == [5] * len(KINDS)


# --- a new op ---


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> OpKind:
    """A row more, as long as the test runs."""
    monkeypatch.setitem(KINDS, SCRATCH.name, SCRATCH)
    return SCRATCH


def test_a_new_op_compiles_and_is_unknown_without_its_row(scratch: OpKind, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ring(("s", scratch.name, []))
    done = compile_spec(text)
    assert (done.ok, done.capabilities) == (True, ())
    assert done.plan is not None
    assert [stage.op for stage in done.plan.stages] == [scratch.name]
    assert [item.code for item in compile_spec(ring(("s", scratch.name + ":x", []))).errors] == ["bad_op_argument"]
    monkeypatch.delitem(KINDS, scratch.name)
    (problem,) = compile_spec(text).errors
    assert problem.code == "unknown_op"
    # what another version compiled is refused by name
    assert [item.code for item in check_config(stage_config({}), done.plan)] == ["unknown_op"]
    with pytest.raises(SettingsError) as error:
        Interpreter(done.plan, {"s": {"keep": []}})
    assert [(item.pointer, item.code) for item in error.value.problems] == [("/s", "unknown_op")]


def test_a_new_op_has_its_settings_checked_and_published(scratch: OpKind) -> None:
    test_a_config_gives_the_op_its_settings_and_no_others(scratch)
    for kind in KINDS.values():
        test_a_config_gives_the_op_its_settings_and_no_others(kind)
    assert list(all_settings()) == ["keep", "rules", "schema"]
    valid = jsonschema.Draft202012Validator(config_schema()).is_valid
    assert valid(stage_config({"keep": ["a"]}))
    assert not valid(stage_config({"keep": 1}))


def test_a_new_op_runs(scratch: OpKind) -> None:
    for example in scratch.examples:
        test_every_example_compiles_is_a_good_config_and_leaves_what_it_states(scratch, example)


def test_a_new_op_is_in_the_random_graphs_and_runs_there(scratch: OpKind) -> None:
    assert scratch.name in op_texts()
    emitted = 0
    graphs = [text for seed in range(40) if f"op={scratch.name}\n" in (text := graph_of(seed))]
    assert len(graphs) > 3
    for number, text in enumerate(graphs):
        plan = graph_plan(text)
        assert check_config({"stages": settings_for(plan)}, plan) == ()
        outcomes = check_any_schedule(text, [b'{"id":1,"by":"","x":2}', b"[]"], Random(number))
        emitted += sum(len(outcome.emissions) for outcome in outcomes)
    assert emitted


def test_the_bench_knows_every_op() -> None:
    validator = jsonschema.Draft202012Validator(RING_SCHEMA)
    for text in op_texts():
        assert validator.is_valid(json.loads(as_json(compiled(("s", text, [])).canonical or "")))
    assert not validator.is_valid(json.loads(as_json(ring(("s", "no_such_op", [])))))


def test_a_new_op_is_in_the_reference_once_it_is_written(scratch: OpKind) -> None:
    text = (ROOT / "docs/spec.md").read_text()
    written = op_docs.with_tables(text)
    assert written != text
    assert "| `scratch_keep` | keeps the fields that are named | `keep` | none | 9.0.0 |" in written
    assert '| `scratch_keep` | `{"keep": ["id", "by"]}` | `{"a": 1.0, "id": 2}` | `{"id":2}` |' in written
    assert json.loads(op_docs.schema_file()) != json.loads((ROOT / "docs/config.schema.json").read_text())


@pytest.mark.parametrize("act", [lambda to: to.http_post("http://h/", b""), lambda to: to.exec(("/bin/true",), b"")])
def test_an_op_that_names_no_capability_reaches_nothing_outside(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(stage: StageInput) -> Step:
        return Step(lambda slot: act(stage.effects))

    monkeypatch.setitem(KINDS, "sly", OpKind("sly", "acts without asking", "0.1.0", build, (Example(b"{}", b"{}"),)))
    effects = RecordedEffects()
    with pytest.raises(EffectFailed, match="effects_missing"):
        Interpreter(plan_of(("s", "sly", [])), {}, effects).process(b"{}")
    assert effects.asked == []
