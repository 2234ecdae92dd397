"""The roads that lead by the fault points. Each begins in an environment of its own and ends where nothing moves any more."""

from __future__ import annotations

from tests.faults.journey import Journey

MASK, HASH = "email:mask=1:4:*", "email:hash"


def author(j: Journey) -> None:
    """Draft, ingestion, version, bundle."""
    j.bundle(j.author(), MASK)


def deploy(j: Journey) -> None:
    """A host enrolls; the first deployment, from draft to records coming out."""
    j.host()
    j.deploy(j.author(), MASK)


def twice(j: Journey) -> None:
    """A second deployment takes over from the first."""
    j.host()
    version = j.author()
    j.deploy(version, MASK)
    j.deploy(version, HASH)


def rollback(j: Journey) -> None:
    """The second deployment is taken back to the first."""
    j.host()
    version = j.author()
    j.deploy(version, MASK)
    second = j.deploy(version, HASH)
    j.act(second, "rollback", "rolling_back", "rolled_back")
    j.reach(second, "rolled_back")
    j.flow()
