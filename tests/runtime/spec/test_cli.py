"""The compiler as a command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps.runtime.spec.cli import main
from apps.runtime.spec.compile import compile_spec
from tests.runtime.specs import ONE, ring

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    good, wrong, other = tmp_path / "good.kv", tmp_path / "wrong.kv", tmp_path / "other.kv"
    good.write_text(ONE + "future.key=1\n")
    wrong.write_text("oops\n" + ONE)
    other.write_text(ring(("b", "identity", [])))
    return SimpleNamespace(good=str(good), wrong=str(wrong), other=str(other), gone=str(tmp_path / "gone.kv"))


def test_validate_prints_path_line_code_and_message(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", files.good, files.wrong]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{files.good}:6: unknown_key: ")
    assert second.startswith(f"{files.wrong}:1: no_equals: ")


def test_warnings_alone_are_fine(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", files.good]) == 0
    assert capsys.readouterr().out


def test_canonical_hash_plan_and_dot_print_only_that(
    files: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    done = compile_spec(ONE)
    assert main(["canonical", files.good]) == 0
    assert capsys.readouterr().out == done.canonical
    assert main(["hash", files.good]) == 0
    assert capsys.readouterr().out == f"{done.spec_hash}\n"
    assert main(["hash", files.good, files.other]) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == [files.good, files.other]
    assert main(["plan", files.good]) == 0
    assert done.plan is not None
    assert json.loads(capsys.readouterr().out) == done.plan.as_dict()
    assert main(["dot", files.good]) == 0
    assert capsys.readouterr().out.startswith("digraph")


def test_every_command_knows_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    one, other, wrong = (str(EXAMPLES / f"{name}.kv") for name in ("20-lane-graph", "22-routed", "32-refused-cycle"))
    done = compile_spec(Path(one).read_bytes())
    assert done.plan is not None
    for command, expected in (("validate", ""), ("canonical", done.canonical), ("hash", f"{done.spec_hash}\n")):
        assert main([command, one]) == 0
        assert capsys.readouterr().out == expected
    assert main(["plan", one]) == 0
    assert json.loads(capsys.readouterr().out) == done.plan.as_dict()
    assert main(["dot", one]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        '  "lane:in" -> "role:redact";',
        '  "role:redact" -> "lane:out";',
        "}",
    ]
    assert main(["diff", one, other]) == 0
    kinds = {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert kinds >= {"capability_gained", "lane_added", "role_added", "role_removed", "setting_changed"}
    assert main(["validate", wrong]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{wrong}:18: cycle: ")


@pytest.mark.parametrize("command", ["validate", "canonical", "hash", "plan", "dot"])
def test_errors_and_missing_files_exit_1(
    command: str, files: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, files.wrong]) == 1
    assert main([command, files.gone]) == 1
    assert f"{files.gone}:0: unreadable: " in capsys.readouterr().err


def test_diff_prints_a_line_for_each_change(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", files.good, files.other]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["stage_removed", "stage_added"]
    assert main(["diff", files.good, files.good]) == 0
    assert capsys.readouterr().out == ""
    assert main(["diff", files.good, files.wrong]) == 1
    assert main(["diff", files.gone, files.good]) == 1


def test_standard_input_is_a_file_called_dash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(ONE.encode())))
    assert main(["hash", "-"]) == 0
    assert capsys.readouterr().out.startswith("sha256:")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["what"],
        ["validate"],
        ["validate", "--strict"],
        ["diff", "one"],
        ["diff", "a", "b", "c"],
        ["diff", "-", "-"],
    ],
    ids=str,
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "usage: spec" in capsys.readouterr().err


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "usage: spec" in capsys.readouterr().out
