"""Many people decide at one moment, while the window closes: one outcome, one credential, one build."""

from __future__ import annotations

from typing import Any

import pytest

from apps.access.roles import Role
from apps.approvals.models import Approval, ApprovalEvent, Decision
from apps.jobs.models import Job
from tests import invariants
from tests.deployments.world import World
from tests.races.conftest import Racers, post, statuses
from tests.support import Caller, caller_for, give_role, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

PEOPLE = 50
A_DAY_AND_MORE = 25 * 3600


def reviewers(world: World, count: int = PEOPLE) -> list[Caller]:
    people = [make_person(f"reviewer{n}") for n in range(count)]
    for person in people:
        give_role(person, Role.OPERATOR, world.tenant.organization)
    return [caller_for(person) for person in people]


def votes(world: World, made: str, callers: list[Caller], deny_each: int) -> list[dict[str, Any]]:
    """A vote of each caller on what is shown now; every `deny_each`th denies."""
    approval = world.approval(made)
    body = {"comment": "seen", "shown_digest": approval["shown_digest"]}
    path = f"{world.path}/approvals/{approval['id']}"
    return [
        post(caller, f"{path}/{'deny' if n % deny_each == deny_each - 1 else 'approve'}", body)
        for n, caller in enumerate(callers)
    ]


def apply_target_progress(world: World, made: str) -> str:
    """What must hold of one approval after its race; its outcome."""
    row = world.row(made)
    approval = Approval.objects.get(pk=row.approval_id)
    outcome = str(approval.status)
    ends = ApprovalEvent.objects.filter(approval=approval).exclude(from_status="")
    assert [event.to_status for event in ends] == [outcome]
    decisions = list(Decision.objects.filter(approval=approval))
    assert len({d.reviewer_id for d in decisions}) == len(decisions)
    in_favour = [d for d in decisions if d.decision == "approve"]
    builds = Job.objects.filter(type="deploy_bundle_build", subject_id=row.pk)
    assert bool(approval.credential) == (outcome == "approved")
    assert builds.count() == (1 if outcome == "approved" else 0)
    assert row.status == {"approved": "approved", "denied": "denied", "expired": "denied"}[outcome]
    assert len(in_favour) == approval.required_approvals if outcome == "approved" else len(in_favour) < 2
    assert len(decisions) - len(in_favour) == (1 if outcome == "denied" else 0)
    invariants.check()
    return outcome


@pytest.mark.parametrize("posture", ["staging", "prod"])
def test_fifty_decide_while_the_window_closes(request: pytest.FixtureRequest, racers: Racers, posture: str) -> None:
    """Quorum 1 and 2. First the window stays open; then it closes at once, and then after each process' first answer."""
    world: World = request.getfixturevalue(posture)
    callers = reviewers(world)
    outcomes = []
    for round_, closes in enumerate(((), ({"shift": A_DAY_AND_MORE},), ({"shift": A_DAY_AND_MORE, "after": 1},))):
        made = world.request(world.bundle(f"f{round_}:drop"), [world.hosts[0]])
        sweeps = [{"do": "expire", "wait": 0.1}, {"do": "expire", "wait": 0.2}] if closes else []
        answers = racers.race(*votes(world, made, callers, 3), *sweeps, everywhere=closes)[:PEOPLE]
        outcome = apply_target_progress(world, made)
        outcomes.append(outcome)
        counts = statuses(answers)
        assert set(counts) <= {200, 409}, counts
        needed = Approval.objects.get(pk=world.row(made).approval_id).required_approvals
        if outcome == "approved":
            assert counts[200] == needed
        assert counts[200] <= needed
        allowed = {"invalid_transition", "approval_expired"}
        assert {a.code for a in answers if a.status == 409} <= allowed
        if outcome == "approved":
            assert world.act(made, "cancel").status_code == 200
    assert outcomes[0] in ("approved", "denied")


def test_one_person_many_times_is_one_vote(prod: World, racers: Racers) -> None:
    made = prod.request()
    mine = votes(prod, made, [prod.tenant.caller("carol")] * 12, deny_each=100)
    answers = racers.race(*mine)
    assert statuses(answers) == {200: 1, 409: 11}
    assert {a.code for a in answers if a.status == 409} == {"already_decided"}
    assert (prod.status(made), len(prod.approval(made)["decisions"])) == ("pending_approval", 1)


def test_a_grant_against_its_withdrawal_and_the_build(staging: World, racers: Racers) -> None:
    """Approve, the requester's revoke and two workers at once: denied, or handed out and then rolled back."""
    world = staging
    carol = world.tenant.caller("carol")
    outcomes = set()
    for round_, wait in enumerate((0, 0.03, 0.06, 0.1)):
        made = world.request(world.bundle(f"f{round_}:drop"))
        approval = world.approval(made)
        path = f"{world.path}/approvals/{approval['id']}"
        granted, taken, *_ = racers.race(
            post(carol, f"{path}/approve", {"shown_digest": approval["shown_digest"]}),
            post(world.bob, f"{path}/revoke", {"comment": "not now"}, wait=wait),
            *[{"do": "drain", "wait": pause} for pause in (0.02, 0.04, 0.06)],
        )
        assert taken.status == 200
        assert granted.status in (200, 409)
        world.work()
        world.settle()
        status = world.status(made)
        assert status in ("denied", "rolled_back")
        assert granted.status == 200 or status == "denied"
        outcomes.add((granted.status, status))
        assert world.approval(made)["status"] == "revoked"
        invariants.check(at_rest=True)
    assert outcomes <= {(200, "denied"), (409, "denied"), (200, "rolled_back")}
