"""Whether `make mutants` sees what there is to see, and whether its list of survivors still fits the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import listed_survivors, report, run_mutants
from tests.mutants.making import ROOT, make_mutants
from tests.mutants.plugin import Baseline, Runner
from tests.mutants.targets import GROUPS, modules

EXAMPLE = "tests/mutants/example.py"
LATE = "tests/mutants/example_late.py"


def test_each_change_of_the_example_gets_its_verdict(tmp_path: Path) -> None:
    results = run_mutants([EXAMPLE, LATE], ["tests/mutants/test_example.py"], tmp_path / "run", patience=1)
    verdicts = {(result["function"], result["change"]): result["verdict"] for result in results}
    assert {change for change, verdict in verdicts.items() if verdict != "killed"} == {
        ("checked", "if number > 1000 → if False"),
        ("checked", "> 1000 → >= 1000"),
        ("checked", "1000 → 1001"),
        ("never_called", "True → False"),
    }
    assert set(verdicts.values()) == {"killed", "survived"}
    noticed = {(r["function"], r["change"]): r["by"] for r in results}
    assert noticed["successor", "1 → 2"].endswith("::test_a_module_that_is_imported_late")
    assert noticed["checked", "if number < 0 → if False"].endswith("::test_negative_numbers_are_refused")
    assert noticed["countdown", "start -= 1 → start = 1"].endswith("(never ended)")
    assert [r["tests"] for r in results if r["function"] == "never_called"] == [0]


def test_a_test_that_fails_alone_is_no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = make_mutants(EXAMPLE)[0]
    baseline = Baseline(seconds={"sound": 2.0, "unsound": 1.0}, tests={(EXAMPLE, mutant.line): {"sound", "unsound"}})
    runner = Runner([], baseline, database=None, plan={"seconds": 1, "patience": 1})  # type: ignore[arg-type]
    tried: list[list[str]] = []

    def fails(functions: object, code: object, tests: list[str]) -> tuple[str, str]:
        tried.append(tests)
        return ("survived", "") if tests == ["sound"] and code is None else ("killed", tests[0])

    monkeypatch.setattr(runner, "_tried", fails)
    monkeypatch.setattr(runner, "_verdict", lambda mutant, tests: fails([], mutant, tests))
    result = runner.run(mutant)
    assert (result["verdict"], result["by"], result["tests"]) == ("killed", "sound", 1)
    assert tried == [["unsound", "sound"], ["unsound"], ["sound"], ["sound"]]
    runner.run(mutant)
    assert tried[4:] == [["sound"]], "each is tried alone once"


def test_a_sample_is_always_the_same_and_a_larger_one_holds_it() -> None:
    first, again = make_mutants(EXAMPLE), make_mutants(EXAMPLE)
    assert [mutant.key for mutant in first] == [mutant.key for mutant in again]
    assert len({mutant.key for mutant in first}) == len(first) > 10


def test_what_is_wrong_with_the_list_of_survivors_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"path": "apps/a.py", "function": "f", "change": "1 → 2", "line": 1, "tests": 1, "by": "t", "seconds": 1}
    killed, survived, undecided = ({**one, "verdict": word} for word in ("killed", "survived", "undecided"))
    key = ("apps/a.py", "f", "1 → 2")
    assert report([killed], {}) == []
    assert report([undecided], {}) == []
    assert report([killed], {key: "why"}) == ["listed as a survivor, but killed by t: apps/a.py f 1 → 2"]
    assert report([survived], {}) == ["1 of 1 survived and are not listed", "fewer than 90% of the decided are killed"]
    assert 'change = "1 → 2"' in capsys.readouterr().out
    assert report([survived], {key: "why"}) == ["fewer than 90% of the decided are killed"]


def test_each_listed_survivor_is_a_change_that_is_still_made_with_the_reason_why_it_stays() -> None:
    listed = listed_survivors()
    made = {mutant.key for path in {path for path, _, _ in listed} for mutant in make_mutants(path)}
    assert sorted(listed.keys() - made) == []
    assert [key for key, why in listed.items() if len(why) < 10] == []


def test_the_modules_and_tests_of_each_group_exist() -> None:
    for group in GROUPS.values():
        assert modules(group)
        assert [test for test in group.tests if not (ROOT / test).exists()] == []
