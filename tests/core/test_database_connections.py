"""Connections to PostgreSQL: statements that repeat are prepared, and one that the database ended costs no request."""

from __future__ import annotations

import io

import pytest
from django.db import OperationalError, connection, transaction
from django.test import RequestFactory

from apps.tenancy.models import Environment
from apps.tenancy.selectors import resolve
from byteor.server.bridge import call
from byteor.wsgi import application
from tests.support import Tenant, in_threads

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def postgres(db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connections that end")


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def end(pid: int) -> None:
    """End a connection in the database, as a restart does."""

    def terminate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    assert in_threads(terminate) == [None]


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_the_database_ended_costs_no_request(transactional_db: None, tenant: Tenant) -> None:
    token = tenant.caller("vera").token
    path = f"/api/v1/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}/environments/{tenant.dev.pk}"
    environ = RequestFactory().get(path, headers={"Authorization": f"Bearer {token}"}).environ
    for _ in range(3):
        assert call(application, environ, io.BytesIO()).status == 200
        end(backend())
    assert call(application, environ, io.BytesIO()).status == 200


@pytest.mark.django_db(transaction=True)
def test_inside_a_transaction_a_lost_connection_stays_an_error(transactional_db: None, tenant: Tenant) -> None:
    with pytest.raises(OperationalError), transaction.atomic():
        Environment.objects.filter(pk=tenant.dev.pk).update(name="written before")
        end(backend())
        Environment.objects.get(pk=tenant.dev.pk)
    connection.close()
    assert Environment.objects.get(pk=tenant.dev.pk).name == tenant.dev.name


@pytest.mark.django_db
def test_a_read_that_repeats_is_prepared_by_the_database(tenant: Tenant) -> None:
    def prepared() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%tenancy_environment%%'")
            return int(cursor.fetchone()[0])

    before = prepared()
    for environment in (tenant.dev, tenant.staging, tenant.prod):
        resolve(tenant.organization.pk, tenant.project.pk, environment.pk)
    assert prepared() == before + 1
