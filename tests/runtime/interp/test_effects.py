"""`http_post` and `exec` ask the world through a port; the record goes on once that has happened."""

from __future__ import annotations

import json

import pytest

from apps.runtime.interpreter import Interpreter, SettingsError
from apps.runtime.ops import EffectFailed, EffectRefused
from apps.runtime.spec import compile_spec
from tests.runtime.specs import compiled, plan_of, ring

URL = "https://hooks.example.com/orders?x=1|2"
STEPS = (
    ("redact", "dataguard_redact", []),
    ("notify", f"http_post:{URL}", [0]),
    ("archive", "exec:/usr/bin/archive|--fast|a b", [1]),
)
RULES: dict[str, dict[str, object]] = {"redact": {"rules": ["card:drop"]}}


class RecordedEffects:
    """Effects that record what they were asked for, and fail or refuse on demand."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, bytes]] = []
        self.raises: Exception | None = None

    def http_post(self, url: str, body: bytes) -> None:
        self._ask(url, body)

    def exec(self, argv: tuple[str, ...], body: bytes) -> None:
        if self.raises is not None:
            raise self.raises
        self._ask(argv, body)

    def _ask(self, what: object, body: bytes) -> None:
        self.asked.append((what, body))


def test_effects_get_the_bytes_as_the_stages_before_left_them_and_the_record_is_forwarded() -> None:
    effects = RecordedEffects()
    outcome = Interpreter(plan_of(*STEPS), RULES, effects).process(b'{"id": 1.0, "card": "4111"}')
    assert effects.asked == [(URL, b'{"id":1.0}'), (("/usr/bin/archive", "--fast", "a b"), b'{"id":1.0}')]
    assert (outcome.emitted, outcome.passed) == (b'{"id":1.0}', ("redact", "notify", "archive"))


def test_bytes_that_are_no_json_reach_an_effect_untouched() -> None:
    effects = RecordedEffects()
    assert Interpreter(plan_of(("p", "http_post:http://h/", [])), {}, effects).process(b"\xff").emitted == b"\xff"
    assert effects.asked == [("http://h/", b"\xff")]


def test_a_record_whose_effect_failed_counts_as_never_seen_and_can_be_run_again() -> None:
    effects = RecordedEffects()
    runner = Interpreter(plan_of(*STEPS), RULES, effects)
    effects.raises = EffectFailed("exit_status", "The program ended with 3.")
    with pytest.raises(EffectFailed) as error:
        runner.process(b'{"id":1}')
    assert (error.value.code, error.value.message) == ("exit_status", "The program ended with 3.")
    assert {stats["received"] for stats in runner.metrics()["stages"].values()} == {0}
    effects.raises = None
    assert runner.process(b'{"id":1}').emitted == b'{"id":1}'
    assert [what for what, _ in effects.asked] == [URL, URL, ("/usr/bin/archive", "--fast", "a b")]
    assert {stats["forwarded"] for stats in runner.metrics()["stages"].values()} == {1}


def test_an_effect_that_is_refused_refuses_the_record_at_its_stage() -> None:
    effects = RecordedEffects()
    effects.raises = EffectRefused("not_allowed", "This host does not run that.")
    runner = Interpreter(plan_of(*STEPS), RULES, effects)
    outcome = runner.process(b'{"id":1}')
    assert outcome.emitted is None
    assert outcome.refused is not None
    assert (outcome.refused.stage, outcome.refused.code) == ("archive", "not_allowed")
    assert runner.metrics()["stages"]["archive"] == {
        "received": 1,
        "forwarded": 0,
        "refused": 1,
        "codes": {"not_allowed": 1},
    }


def test_a_plan_that_acts_on_the_world_does_not_start_where_nothing_does_that_for_it() -> None:
    with pytest.raises(SettingsError) as error:
        Interpreter(plan_of(*STEPS), RULES)
    found = [(item.pointer, item.code) for item in error.value.problems]
    assert found == [("/notify", "effects_missing"), ("/archive", "effects_missing")]
    with pytest.raises(SettingsError) as error:
        Interpreter(plan_of(*STEPS), {**RULES, "notify": {"rules": ["a:drop"]}}, RecordedEffects())
    assert [(item.pointer, item.code) for item in error.value.problems] == [("/notify/rules", "rules_not_taken")]


def test_the_capabilities_of_effects_are_in_the_plan_and_of_their_stages() -> None:
    done = compiled(*STEPS)
    assert done.plan is not None
    assert done.capabilities == done.plan.capabilities == ("action:exec", "action:http_post")
    assert [stage.capability for stage in done.plan.stages] == [None, "action:http_post", "action:exec"]
    assert json.loads(json.dumps(done.plan.as_dict()))["stages"][2]["argument"] == "/usr/bin/archive|--fast|a b"
    assert compile_spec(ring(*STEPS)).errors == ()
