"""The nine states: the moves that the contract has, and no others, by whatever way they are tried."""

from __future__ import annotations

import itertools

import pytest
from django.db import IntegrityError, connection, transaction

from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import StateConflict
from apps.core.fsm import legal_moves
from apps.core.ids import new_id
from apps.deployments.models import Deployment, DeploymentEvent, DeploymentStatus
from apps.deployments.services.transitions import move
from apps.tenancy.models import Environment
from tests.support import Tenant

pytestmark = pytest.mark.django_db

MOVES = {
    ("pending_approval", "approved"): "approve",
    ("pending_approval", "denied"): "deny",
    ("approved", "building"): "start_build",
    ("approved", "denied"): "deny",
    ("building", "deploying"): "deploy",
    ("building", "denied"): "deny",
    ("building", "failed"): "fail",
    ("deploying", "active"): "activate",
    ("deploying", "failed"): "fail",
    ("deploying", "rolling_back"): "roll_back",
    ("active", "rolling_back"): "roll_back",
    ("failed", "rolling_back"): "roll_back",
    ("rolling_back", "rolled_back"): "confirm_rollback",
    ("rolling_back", "failed"): "fail",
}
TRANSITIONS = {to: name for (_, to), name in MOVES.items()}
ROADS = {
    "pending_approval": [],
    "approved": ["approve"],
    "denied": ["deny"],
    "building": ["approve", "start_build"],
    "deploying": ["approve", "start_build", "deploy"],
    "active": ["approve", "start_build", "deploy", "activate"],
    "failed": ["approve", "start_build", "fail"],
    "rolling_back": ["approve", "start_build", "deploy", "roll_back"],
    "rolled_back": ["approve", "start_build", "deploy", "roll_back", "confirm_rollback"],
}
PAIRS = list(itertools.product(DeploymentStatus.values, DeploymentStatus.values))


def made(environment: Environment, status: str = "pending_approval") -> Deployment:
    deployment = Deployment(
        environment=environment,
        bundle_id=new_id(),
        approval_id=new_id(),
        version_id=new_id(),
        version_number=1,
        pipeline_name="orders",
        spec_hash="sha256:" + "a" * 64,
        config_hash="sha256:" + "b" * 64,
        target_selector={"all": True},
        strategy={"type": "all_at_once"},
        sequence=clock.now_ms(),
        bundle_sha256="c" * 64,
        deploying_at=clock.now(),
    )
    deployment.save()
    for name in ROADS[status]:
        move(deployment, name, actor=SYSTEM_ACTOR, trigger="test")
    assert deployment.status == status
    return deployment


def stored(deployment: Deployment) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT status FROM deployments_deployment")
        return str(cursor.fetchone()[0])


def test_the_code_has_exactly_these_moves() -> None:
    code = {(source, target) for source, targets in legal_moves(Deployment).items() for target in targets}
    assert code == set(MOVES)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_moves_or_is_refused_and_changes_nothing(tenant: Tenant, source: str, target: str) -> None:
    deployment = made(tenant.dev, source)
    events, audits = DeploymentEvent.objects.count(), AuditEvent.objects.count()
    name = MOVES.get((source, target)) or TRANSITIONS.get(target)
    if (source, target) in MOVES:
        with transaction.atomic():
            move(deployment, name or "", actor=SYSTEM_ACTOR, trigger="test", reason="why")
        assert stored(deployment) == target
        event = DeploymentEvent.objects.latest("pk")
        assert (event.from_status, event.to_status, event.actor, event.trigger, event.reason) == (
            source,
            target,
            "system:byteor",
            "test",
            "why",
        )
        audit = AuditEvent.objects.latest("pk")
        assert (audit.action, audit.target) == (f"deployment.{target}", f"deployment:{deployment.pk}")
        assert DeploymentEvent.objects.count() == events + 1
        assert AuditEvent.objects.count() == audits + 1
        return
    if name is not None:
        with pytest.raises(StateConflict) as refused, transaction.atomic():
            move(deployment, name, actor=SYSTEM_ACTOR, trigger="test")
        assert refused.value.from_ == source
        assert refused.value.allowed == sorted(to for a, to in MOVES if a == source)
    assert stored(deployment) == source
    assert (DeploymentEvent.objects.count(), AuditEvent.objects.count()) == (events, audits)


@pytest.mark.postgres
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_database_itself_refuses_what_is_no_move(tenant: Tenant, source: str, target: str) -> None:
    deployment = made(tenant.dev, source)

    def write() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE deployments_deployment SET status = %s", [target])

    if (source, target) in MOVES or source == target:
        write()
        assert stored(deployment) == target
    else:
        with pytest.raises(IntegrityError):
            write()
        assert stored(deployment) == source


@pytest.mark.parametrize("target", DeploymentStatus.values)
def test_the_field_can_not_be_set_by_any_way_of_the_orm(tenant: Tenant, target: str) -> None:
    deployment = made(tenant.dev)
    with pytest.raises(AttributeError):
        deployment.status = target
    with pytest.raises(AttributeError):
        Deployment.objects.filter(pk=deployment.pk).update(status=target)
    with pytest.raises(AttributeError):
        deployment.save(update_fields=["status"])
    if target != "pending_approval":
        with pytest.raises(AttributeError):
            Deployment.objects.bulk_create([Deployment(environment=tenant.dev, status=target)])
    assert stored(deployment) == "pending_approval"


def test_a_stale_copy_loses(tenant: Tenant) -> None:
    first = made(tenant.dev)
    second = Deployment.objects.get(pk=first.pk)
    move(first, "approve", actor=SYSTEM_ACTOR, trigger="test")
    with pytest.raises(StateConflict) as lost, transaction.atomic():
        move(second, "deny", actor=SYSTEM_ACTOR, trigger="test")
    assert lost.value.from_ == "approved"
    assert DeploymentEvent.objects.count() == 1


@pytest.mark.postgres
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE deployments_deployment SET strategy = '{}'",
        "UPDATE deployments_deployment SET spec_hash = 'sha256:0'",
        "UPDATE deployments_deploymentevent SET reason = 'other'",
        "UPDATE deployments_deployment SET status = 'nonsense'",
    ],
)
def test_what_was_decided_and_what_happened_can_not_be_rewritten(tenant: Tenant, sql: str) -> None:
    made(tenant.dev, "approved")
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)


def test_nothing_is_deploying_without_a_bundle(tenant: Tenant) -> None:
    deployment = made(tenant.dev, "building")
    Deployment.objects.filter(pk=deployment.pk).update(bundle_sha256="")
    deployment = Deployment.objects.get(pk=deployment.pk)
    with pytest.raises(IntegrityError), transaction.atomic():
        move(deployment, "deploy", actor=SYSTEM_ACTOR, trigger="test")
