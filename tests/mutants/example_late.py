"""A module to mutate that `test_example` imports when its test runs."""

from __future__ import annotations


def successor(number: int) -> int:
    """The number after `number`."""
    return number + 1
