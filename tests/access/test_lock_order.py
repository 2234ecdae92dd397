"""Organizations are locked before people, and all that one transaction needs of them in one order."""

from __future__ import annotations

import re

import pytest
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from apps.access.models import User
from tests.access.test_invitations import accept, invite, mailed_link, plant
from tests.support import Tenant, make_person

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db,
    pytest.mark.skipif("not __import__('django').db.connection.features.has_select_for_update", reason="no row locks"),
]


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    caches["limits"].clear()


def locks(captured: CaptureQueriesContext) -> list[tuple[str, str]]:
    """(table, statement) of each lock, in order."""
    found = [(re.search(r'FROM "(\w+)"', q["sql"] or ""), q["sql"] or "") for q in captured.captured_queries]
    return [(table[1], sql) for table, sql in found if table is not None and "FOR NO KEY UPDATE" in sql]


def test_an_account_activated_and_confirmed_at_once_is_locked_after_their_organizations(tenant: Tenant) -> None:
    plant(tenant)
    planted = User.objects.get(email="ceo@example.com")
    User.objects.filter(pk=planted.pk).update(is_active=False)
    staff = Client()
    staff.force_login(make_person("staff", is_superuser=True))
    fields = {"is_active": "on", "address_proved": "on"}
    with CaptureQueriesContext(connection) as captured:
        answer = staff.post(f"/admin/access/user/{planted.pk}/change/", fields)
    assert answer.status_code == 302
    planted.refresh_from_db()
    assert planted.is_active
    assert planted.address_proved_at is not None
    assert list(dict.fromkeys(table for table, _ in locks(captured)))[:2] == ["tenancy_organization", "access_user"]


def test_a_mailed_link_locks_the_organizations_of_the_account_that_it_proves_with_its_own(tenant: Tenant) -> None:
    plant(tenant)
    invite(tenant.caller("alice"), tenant.organization, "ceo@example.com")
    link = mailed_link()
    with CaptureQueriesContext(connection) as captured:
        assert accept(link, "another good password").status_code == 302
    table, first = locks(captured)[0]
    assert table == "tenancy_organization"
    for organization in (tenant.organization, tenant.other_organization):
        assert organization.pk.hex in first.replace("-", "")
    assert "ORDER BY" in first
