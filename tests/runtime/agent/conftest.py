"""A control plane that answers what a test wants, and a host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.making import Maker


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    made = ControlPlane(Maker())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def host(tmp_path: Path, plane: ControlPlane) -> Iterator[Host]:
    made = Host(tmp_path, plane)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def running(host: Host) -> Host:
    """A host that runs a first bundle, which drops `secret`."""
    first = host.plane.maker.bundle("secret:drop", sequence=1000)
    host.plane.offer(host.plane.maker.directive(first, 10), first.archive)
    host.reported("activated")
    assert host.feed() == {"n": 1, "name": "ann"}
    host.plane.reports.clear()
    return host
