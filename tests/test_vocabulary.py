"""The check of the project's vocabulary."""

from __future__ import annotations

import pytest

from tests.vocabulary import ALLOWED, PACKAGES, ROOT, findings, findings_in


def test_the_checked_packages_are_clean() -> None:
    assert [str(finding) for finding in findings()] == []


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def tell_agent(): ...", "tell"),
        ("class StandingAgent: ...", "standing"),
        ("def act(told): ...", "told"),
        ("said = 1", "said"),
        ("row.gone = True", "gone"),
        ("MOST_TOLD = 1", "told"),
        ('"""Whoever asks gets it."""', "whoever"),
        ('def act():\n    """Revoke the key.\n\n    Nobody can use it."""', "nobody"),
        ('RETRY = 1\n"""After this the row is gone."""', "gone"),
        ('"""A refusal is put on\n    record."""', "on record"),
    ],
)
def test_a_forbidden_word_is_found_in_names_and_docstrings(source: str, word: str) -> None:
    assert [finding.word for finding in findings_in("apps/x.py", source)] == [word]


@pytest.mark.parametrize(
    "source",
    [
        "outstanding = 1",  # part of another word
        "file.tell()",  # a name of another library
        'text = "It told me."',  # no docstring
        '"""Calls `file.tell()`."""',  # code in a docstring
    ],
)
def test_other_uses_are_not_reported(source: str) -> None:
    assert findings_in("apps/x.py", source) == []


def test_every_exception_is_needed_and_explained() -> None:
    for (path, word), reason in ALLOWED.items():
        assert path.startswith(PACKAGES)
        assert word in (ROOT / path).read_text()
        assert reason
