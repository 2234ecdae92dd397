"""Control planes that are kept warm from case to case, one a database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stack import Missing, Stack, running
from tests.services import without

VENDORS = ("sqlite", "postgres")
EVERY = bool(os.environ.get("BYTEOR_FAULTS_EVERY"))
"""Set by `make faults`: every case on both databases. The suite runs each on one, the databases alternating."""


@pytest.fixture(scope="session")
def django_db_setup() -> None:
    """No test database: the control planes have their own."""


@pytest.fixture(scope="session")
def stack_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Stack]]:
    """`stack_on("sqlite")` is the running control plane on that database."""
    with contextlib.ExitStack() as kept:
        known: dict[str, Stack] = {}

        def on(vendor: str) -> Stack:
            if vendor not in known:
                home: Path = tmp_path_factory.mktemp(vendor)
                try:
                    known[vendor] = kept.enter_context(running(vendor, home))
                except Missing as missing:
                    without(missing)
            return known[vendor]

        yield on
