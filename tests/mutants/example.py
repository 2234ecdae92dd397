"""A module to mutate, for the tests of `make mutants`: `test_example` notices most changes of it, not all."""

from __future__ import annotations

import functools


def countdown(start: int) -> list[int]:
    """`start` down to 1."""
    numbers = []
    while start > 0:
        numbers.append(start)
        start -= 1
    return numbers


@functools.cache
def checked(number: int) -> int:
    """`number`. Raises ValueError when it is negative, or larger than a test ever tries."""
    if number < 0:
        raise ValueError("negative")
    if number > 1000:
        raise ValueError("too large")
    return number


def never_called() -> bool:
    """No test executes it."""
    return True
