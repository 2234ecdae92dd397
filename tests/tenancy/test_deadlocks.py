"""Nodes that get each other's slug at one moment do not wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from apps.core.actors import SYSTEM_ACTOR
from apps.tenancy import services
from tests.support import Racer, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
HERE = 4711


@pytest.fixture
def pause_before_slug(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[None]:
    """Every write to the table waits, before it is entered into the index of slugs, while the advisory lock `HERE` is held."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer")
    table, index = f"tenancy_{request.param}", f"{request.param}_slug_unique"
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [index])
        definition = cursor.fetchone()[0]
        cursor.execute(
            "CREATE FUNCTION pause(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS "
            f"$body$ BEGIN PERFORM pg_advisory_xact_lock_shared({HERE}); RETURN $1; END $body$"
        )
        try:
            cursor.execute(f"CREATE INDEX paused ON {table} (pause(slug))")
            # indexes are written in the order of their creation
            cursor.execute(f"DROP INDEX {index}")
            cursor.execute(definition)
            yield
        finally:
            cursor.execute("DROP INDEX IF EXISTS paused")
            cursor.execute("DROP FUNCTION pause(text)")


def pair(tenant: Tenant, level: str) -> tuple[Any, Any]:
    if level == "organization":
        return tenant.organization, tenant.other_organization
    if level == "environment":
        return tenant.dev, tenant.staging
    other = services.create_project(actor=SYSTEM_ACTOR, organization=tenant.organization, name="Another")
    return tenant.project, other


@pytest.mark.parametrize(
    ("level", "pause_before_slug"),
    [(level, level) for level in ("organization", "project", "environment")],
    indirect=["pause_before_slug"],
    ids=["organization", "project", "environment"],
)
@pytest.mark.usefixtures("pause_before_slug")
def test_two_nodes_that_get_each_others_slug_are_both_refused(tenant: Tenant, level: str) -> None:
    one, two = pair(tenant, level)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [HERE])
        try:
            racers = []
            for node, slug in ((one, two.slug), (two, one.slug)):
                rename = lambda n=node, s=slug: services.update_node(actor=SYSTEM_ACTOR, node=n, slug=s)  # noqa: E731
                racers.append(Racer(rename))
                racers[-1].until_it_waits()
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [HERE])
    outcomes = [racer.outcome() for racer in racers]
    assert [getattr(found, "code", found) for found in outcomes] == ["slug_taken", "slug_taken"]
    for node, slug in ((one, one.slug), (two, two.slug)):
        node.refresh_from_db()
        assert node.slug == slug
