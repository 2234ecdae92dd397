"""A service can run in a transaction of its caller, for an effect and its stored answer in one: refusals keep what must last."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from django.db import transaction

from apps.api.base import ApiView
from apps.api.operations import Handler, Operation
from apps.approvals.models import Approval
from apps.audit.models import AuditEvent
from apps.core import clock
from tests.approvals.test_approvals import ask, vote
from tests.support import Tenant

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def in_one_transaction() -> Iterator[None]:
    """Every POST with its answer in one transaction, rolled back when it is refused."""
    original = ApiView.perform

    def perform(self: ApiView, declared: Operation, method: Handler) -> Any:
        if self.request.method != "POST":
            return original(self, declared, method)
        with transaction.atomic():
            return original(self, declared, method)

    ApiView.perform = perform  # type: ignore[method-assign]
    yield
    ApiView.perform = original  # type: ignore[method-assign]


@pytest.mark.parametrize("verb", ["approve", "deny", "revoke"])
def test_a_decision_that_comes_too_late_expires_the_approval(tenant: Tenant, verb: str) -> None:
    approval = ask(tenant)
    late = clock.now() + dt.timedelta(hours=25)
    who = "bob" if verb == "revoke" else "alice"
    with time_machine.travel(late, tick=True):
        caller = tenant.caller(who)
        if verb == "revoke":
            answer = caller.post(f"{tenant.path(approval.environment)}/approvals/{approval.pk}/revoke", {})
        else:
            answer = vote(tenant, caller, approval, verb, comment="late")
    assert (answer.status_code, answer.json()["code"]) == (409, "approval_expired")
    approval = Approval.objects.get(pk=approval.pk)
    assert approval.status == "expired"
    assert AuditEvent.objects.filter(action="approval.expired", target=f"approval:{approval.pk}").count() == 1


def test_a_denial_is_on_record_once(tenant: Tenant) -> None:
    approval = ask(tenant)
    answer = vote(tenant, "vera", approval)
    assert answer.status_code == 403
    assert AuditEvent.objects.filter(outcome="denied", actor__contains=str(tenant.people["vera"].pk)).count() == 1


def test_a_refused_request_leaves_nothing(tenant: Tenant) -> None:
    bob, before = tenant.caller("bob"), AuditEvent.objects.count()
    answer = bob.post(f"{tenant.path()}/drafts", {"name": "orders", "spec": 1})
    assert answer.status_code == 400
    assert AuditEvent.objects.count() == before


def test_the_whole_way_to_an_approved_deployment(tenant: Tenant) -> None:
    bob, alice, path = tenant.caller("bob"), tenant.caller("alice"), tenant.path(tenant.staging)
    approval = ask(tenant)
    answer = vote(tenant, alice, approval)
    assert answer.status_code == 200, answer.content
    assert answer.json()["status"] == "approved"
    assert bob.get(f"{path}/deployments/{approval.deployment_id}").json()["status"] == "approved"
