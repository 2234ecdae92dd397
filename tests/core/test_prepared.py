"""Statements that are built once answer as the querysets that they were built from."""

from __future__ import annotations

import uuid

import pytest

from apps.core.prepared import Prepared
from apps.tenancy.models import Environment
from tests.support import Tenant, in_threads

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

by_place: Prepared[Environment] = Prepared(
    lambda project_id, name: Environment.objects.select_related("project__organization").filter(
        project_id=project_id, name=name, deleted_at__isnull=True, posture__in=["dev", "staging"]
    )
)
names: Prepared[tuple[uuid.UUID, str]] = Prepared(
    lambda project_id: Environment.objects.filter(project_id=project_id).order_by("name").values_list("pk", "name")
)


def test_each_call_is_for_its_own_arguments(tenant: Tenant, django_assert_num_queries: object) -> None:
    for _ in range(5):
        for environment in (tenant.dev, tenant.staging):
            with django_assert_num_queries(1):  # type: ignore[operator]
                found = by_place.first(tenant.project.pk, environment.name)
                assert found is not None
                assert found.project.organization.name == "Acme"
            assert (found, found.policy, found.created_at) == (environment, environment.policy, environment.created_at)
    assert by_place.first(tenant.project.pk, tenant.prod.name) is None
    assert by_place.first(tenant.other_project.pk, tenant.staging.name) is None


def test_tuples_come_as_from_values_list(tenant: Tenant) -> None:
    expected = list(Environment.objects.filter(project=tenant.project).order_by("name").values_list("pk", "name"))
    assert names.all(tenant.project.pk) == expected
    assert names.all(uuid.uuid4()) == []


def test_text_that_looks_like_sql_is_only_text(tenant: Tenant) -> None:
    assert by_place.all(tenant.project.pk, "dev' OR '1'='1") == []


def test_an_argument_that_is_not_used_is_an_error(tenant: Tenant) -> None:
    careless: Prepared[Environment] = Prepared(lambda project_id, name: Environment.objects.filter(name=name))
    with pytest.raises(TypeError, match="each argument"):
        careless.all(tenant.project.pk, "dev")


@pytest.mark.django_db(transaction=True)
def test_many_threads_read_at_once(transactional_db: None, tenant: Tenant) -> None:
    def read(environment: Environment) -> bool:
        return all(by_place.first(tenant.project.pk, environment.name) == environment for _ in range(20))

    assert in_threads(*(lambda e=e: read(e) for e in (tenant.dev, tenant.staging) * 3)) == [True] * 6  # type: ignore[misc]
