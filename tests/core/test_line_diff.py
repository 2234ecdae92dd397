"""The line diff takes bounded time for every pair of texts, and its result turns one into the other."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.core.line_diff import STEPS_AT_LEAST, STEPS_PER_LINE, LineDiff, line_diff, split_lines

# few different lines, as in JSON: the shape on which diffs grow cubic
repeating = st.lists(st.sampled_from(["{", "}", "},", '"type": "string"', "a", "b", "c", ""]), max_size=120)
distinct = st.lists(st.text(st.characters(blacklist_characters="\n"), max_size=6), max_size=40)


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A text, and the same with some of its parts moved, dropped or doubled."""
    old = draw(st.one_of(repeating, distinct))
    cuts = sorted(draw(st.lists(st.integers(0, len(old)), max_size=6)))
    parts = [old[i:j] for i, j in zip([0, *cuts], [*cuts, len(old)], strict=True)]
    chosen = draw(st.lists(st.integers(0, len(parts) - 1), max_size=8))
    return old, [line for index in chosen for line in parts[index]]


def holds(old: str, new: str) -> LineDiff:
    made = line_diff(old, new)
    before, after = split_lines(old), split_lines(new)
    assert [line.text for line in made.lines if line.tag in "- "] == before
    assert [line.text for line in made.lines if line.tag in "+ "] == after
    assert [line.old_number for line in made.lines if line.tag in "- "] == list(range(1, len(before) + 1))
    assert [line.new_number for line in made.lines if line.tag in "+ "] == list(range(1, len(after) + 1))
    assert made.removed == sum(line.tag == "-" for line in made.lines)
    assert made.added == sum(line.tag == "+" for line in made.lines)
    assert made.steps <= STEPS_PER_LINE * (len(before) + len(after)) + STEPS_AT_LEAST
    return made


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.tuples(repeating, repeating), st.tuples(distinct, distinct), edited()))
def test_a_diff_applied_to_the_old_text_gives_the_new_within_linear_steps(pair: tuple[list[str], list[str]]) -> None:
    holds("\n".join(pair[0]), "\n".join(pair[1]))


@settings(max_examples=100, deadline=None)
@given(st.one_of(repeating, distinct))
def test_a_text_does_not_differ_from_itself(lines: list[str]) -> None:
    assert not holds("\n".join(lines), "\n".join(lines)).changed


def schema(prefix: str, count: int) -> str:
    properties = {f"{prefix}{n}": {"type": "string"} for n in range(count)}
    return json.dumps({"schema": {"properties": properties, "type": "object"}}, indent=2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(schema("a", 5_000), schema("b", 5_000), id="every property renamed"),
        pytest.param(schema("a", 5_000), schema("a", 5_000).replace("string", "number"), id="every type changed"),
        pytest.param("x\n" * 20_000, "x\ny\n" * 10_000, id="one line repeated"),
        pytest.param(
            "\n".join(f"k{n}" for n in range(20_000)), "\n".join(f"k{n}" for n in range(20_000))[::-1], id="reversed"
        ),
        pytest.param("a\nb\n" * 5_000, "b\na\n" * 5_000, id="shifted by one"),
        pytest.param(
            "\n".join(f"{n % 701}" for n in range(20_000)), "\n".join(f"{n % 709}" for n in range(20_000)), id="periods"
        ),
    ],
)
def test_texts_on_which_other_algorithms_take_minutes_stay_within_linear_steps(old: str, new: str) -> None:
    holds(old, new)
    holds(new, old)


def test_twice_the_lines_take_about_twice_the_steps() -> None:
    steps = [line_diff(schema("a", n), schema("b", n)).steps for n in (1_000, 2_000, 4_000)]
    assert steps[1] <= 2.2 * steps[0]
    assert steps[2] <= 2.2 * steps[1]


def test_a_few_changes_in_a_long_text_are_found_one_by_one() -> None:
    old = schema("a", 2_000)
    new = old.replace('"a77": {', '"renamed": {').replace('"a1500": {\n', '"a1500": {\n          "minLength": 1,\n')
    made = holds(old, new)
    assert (made.removed, made.added) == (1, 2)


def test_lines_end_at_the_line_feed_alone() -> None:
    made = line_diff("rule one\u2028rule two\x85three\r\n", "rule one\n")
    assert [(line.tag, line.text) for line in made.lines] == [
        ("-", "rule one\u2028rule two\x85three\r"),
        ("+", "rule one"),
    ]
    assert split_lines("") == []
    assert split_lines("a\n\n") == ["a", ""]
