"""The tests of the example."""

import pytest

from tests.mutants.example import checked, countdown


def test_it_counts_down() -> None:
    assert countdown(3) == [3, 2, 1]


def test_negative_numbers_are_refused() -> None:
    assert checked(0) == 0
    with pytest.raises(ValueError, match=r"^negative$"):
        checked(-1)


def test_a_module_that_is_imported_late() -> None:
    from tests.mutants.example_late import successor

    assert successor(3) == 4
