"""What an agent should run: a pure function, by table and by comparison with a plain restatement of its rules."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.agents.registry import Desired
from apps.deployments.desired import Assigned, desired_of
from apps.deployments.models import DeploymentStatus, TargetStatus

T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def at(minute: int) -> dt.datetime:
    return T0 + dt.timedelta(minutes=minute)


def item(number: int, deployment: str, target: str, undone: int | None = None, here: bool = True) -> Assigned:
    """Deployment `number` with these statuses; `undone`: the minute it was rolled back (`here`: from this agent too)."""
    return Assigned(
        deployment_id=uuid.UUID(int=number),
        sequence=number,
        bundle_sha256=f"{number:064x}",
        deployment_status=deployment,
        target_status=target,
        rolling_back_at=at(undone) if undone is not None else None,
        rollback_at=at(undone) if undone is not None and here else None,
    )


def wanted(word: str, number: int | None, serves: int | None) -> Desired:
    return Desired(
        directive=word,
        deployment_id=uuid.UUID(int=number) if number else None,
        for_deployment_id=uuid.UUID(int=serves) if serves else None,
        bundle_sha256=f"{number:064x}" if number else None,
        sequence=number,
    )


TABLE = {
    "nothing was ever assigned": ([], wanted("none", None, None)),
    "the first, not confirmed yet": ([item(1, "deploying", "assigned")], wanted("activate", 1, 1)),
    "the first, running": ([item(1, "active", "activated")], wanted("activate", 1, 1)),
    "a second on its way": (
        [item(2, "deploying", "fetched"), item(1, "active", "activated")],
        wanted("activate", 2, 2),
    ),
    "silent, but it still gets it when it returns": (
        [item(2, "active", "unreachable"), item(1, "active", "activated")],
        wanted("activate", 2, 2),
    ),
    "the second failed here": (
        [item(2, "deploying", "failed"), item(1, "active", "activated")],
        wanted("rollback", 1, 1),
    ),
    "the second failed elsewhere before it ran here": (
        [item(2, "failed", "verified"), item(1, "active", "activated")],
        wanted("rollback", 1, 1),
    ),
    "the second failed elsewhere after it ran here": (
        [item(2, "failed", "activated"), item(1, "active", "activated")],
        wanted("activate", 2, 2),
    ),
    "the second is being taken back": (
        [item(2, "rolling_back", "activated", undone=5), item(1, "active", "activated")],
        wanted("rollback", 1, 2),
    ),
    "the second was taken back": (
        [item(2, "rolled_back", "rolled_back", undone=5), item(1, "active", "activated")],
        wanted("rollback", 1, 2),
    ),
    "taking the second back failed": (
        [item(2, "failed", "failed", undone=5), item(1, "active", "activated")],
        wanted("rollback", 1, 2),
    ),
    "the first is taken back": ([item(1, "rolling_back", "activated", undone=5)], wanted("stop", None, 1)),
    "the first failed": ([item(1, "failed", "failed")], wanted("stop", None, 1)),
    "back past one that it never ran": (
        [
            item(3, "rolled_back", "activated", undone=5),
            item(2, "active", "unreachable"),
            item(1, "active", "activated"),
        ],
        wanted("rollback", 1, 3),
    ),
    "two taken back, the older one last": (
        [
            item(3, "rolled_back", "rolled_back", undone=5),
            item(2, "rolling_back", "activated", undone=9),
            item(1, "active", "activated"),
        ],
        wanted("rollback", 1, 2),
    ),
    "two taken back, the newer one last": (
        [
            item(3, "rolling_back", "activated", undone=9),
            item(2, "rolled_back", "rolled_back", undone=5),
            item(1, "active", "activated"),
        ],
        wanted("rollback", 1, 3),
    ),
    "deployed again after going back": (
        [
            item(3, "deploying", "assigned"),
            item(2, "rolled_back", "rolled_back", undone=5),
            item(1, "active", "activated"),
        ],
        wanted("activate", 3, 3),
    ),
    "taken back elsewhere while a newer one ran here": (
        [
            item(3, "rolling_back", "activated", undone=9),
            item(2, "rolled_back", "activated", undone=5, here=False),
            item(1, "active", "activated"),
        ],
        wanted("rollback", 1, 3),
    ),
    "all of them taken back": (
        [item(2, "rolled_back", "rolled_back", undone=5), item(1, "rolled_back", "rolled_back", undone=3)],
        wanted("stop", None, 2),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_an_agent_should_run(name: str) -> None:
    walk, expected = TABLE[name]
    assert desired_of(walk) == expected


def test_reads_no_further_than_the_newest_when_that_counts() -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield item(9, "active", "activated")
        raise AssertionError("read too far")

    assert desired_of(rows()).sequence == 9


assignments = st.lists(
    st.tuples(
        st.sampled_from(["deploying", "active", "failed", "rolling_back", "rolled_back"]),
        st.sampled_from([s for s in TargetStatus.values if s != "pending"]),
        st.booleans(),
    ),
    max_size=8,
).map(
    lambda rows: [
        item(
            len(rows) - index,
            status,
            target,
            undone=(100 - index)
            if status in ("rolling_back", "rolled_back") or (again and status == "failed")
            else None,
        )
        for index, (status, target, again) in enumerate(rows)
    ]
)


@given(assignments)
def test_agrees_with_its_rules_written_plainly(walk: list[Assigned]) -> None:
    left = [
        a
        for a in walk
        if a.target_status != "failed"
        and a.rolling_back_at is None
        and not (a.deployment_status == "failed" and a.target_status != "activated")
    ]
    counting = [a for a in left if a is walk[0] or a.target_status == "activated"]
    got = desired_of(walk)
    if not walk:
        assert got == Desired()
    elif not counting:
        assert (got.directive, got.deployment_id, got.bundle_sha256, got.sequence) == ("stop", None, None, None)
        assert got.for_deployment_id in {a.deployment_id for a in walk}
    else:
        best = max(counting, key=lambda a: a.sequence)
        assert (got.deployment_id, got.sequence) == (best.deployment_id, best.sequence)
        assert got.directive == ("rollback" if best.sequence < walk[0].sequence else "activate")
        above = [a for a in walk if a.sequence > best.sequence and a.rollback_at is not None]
        serves = max(above, key=lambda a: a.rollback_at or T0).deployment_id if above else best.deployment_id
        assert got.for_deployment_id == serves


@given(assignments)
def test_what_is_confirmed_stays_wanted(walk: list[Assigned]) -> None:
    """An agent that reports what its directive asked for gets the same again: no directive undoes itself."""
    got = desired_of(walk)
    if got.directive != "activate" or got.deployment_id is None:
        return
    after = [
        Assigned(
            a.deployment_id,
            a.sequence,
            a.bundle_sha256,
            a.deployment_status,
            "activated" if a.deployment_id == got.deployment_id else a.target_status,
            a.rolling_back_at,
            a.rollback_at,
        )
        for a in walk
    ]
    assert desired_of(after) == got


def test_every_status_is_known_to_the_table() -> None:
    used = {a.deployment_status for walk, _ in TABLE.values() for a in walk}
    assert used <= set(DeploymentStatus.values)
