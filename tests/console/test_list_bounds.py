"""What a list in the admin may be asked, and how long a statement of a web process may take."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import Client
from django.urls import reverse

from apps.api.problems import as_service_error
from apps.console.base.model_admin import ScopedModelAdmin
from apps.core.db import bound_statements
from apps.pipelines.models import PipelineDraft
from tests.support import Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

LOOKUPS = ("regex", "iregex", "startswith", "contains", "gt", "lt", "range", "date", "year")


def lists() -> list[Any]:
    """The admin of every model on the site."""
    return list(admin.site._registry.values())


def list_url(each: Any) -> str:
    return reverse(f"admin:{each.model._meta.app_label}_{each.model._meta.model_name}_changelist")


@pytest.fixture
def vera(tenant: Tenant) -> Client:
    client = Client()
    client.force_login(tenant.people["vera"])
    return client


def test_every_list_is_one_of_ours() -> None:
    assert len(lists()) >= 15
    assert [type(each) for each in lists() if not isinstance(each, ScopedModelAdmin)] == []


@pytest.mark.parametrize("each", lists(), ids=lambda each: each.model.__name__)
def test_a_list_can_be_narrowed_by_its_filters_alone(vera: Client, each: Any) -> None:
    url = list_url(each)
    assert vera.get(url).status_code == 200
    for field in each.model._meta.concrete_fields:
        assert not any(each.lookup_allowed(f"{field.name}__{lookup}", "(", None) for lookup in LOOKUPS)
        own = [getattr(filter, "parameter_name", None) for filter in each.list_filter or ()]
        offered = field.name in (each.list_filter or ()) or f"{field.name}__exact" in own
        assert each.lookup_allowed(f"{field.name}__exact", "x", None) == offered, field.name
    names = [f.name for f in each.model._meta.concrete_fields if not f.is_relation]
    text = next((n for n in names if each.model._meta.get_field(n).get_internal_type() == "CharField"), names[0])
    assert vera.get(url, {f"{text}__regex": "^(a+)+$"}).status_code == 400
    for parameters in (
        {"q": "x" * 201},
        {"q": " ".join("x" * 11)},
        {"nonsense": "1"},
    ):
        if "q" not in parameters or each.search_fields:
            assert vera.get(url, parameters).status_code == 400, parameters


def test_odd_pages_and_orders_are_answered(vera: Client) -> None:
    url = list_url(next(each for each in lists() if each.model is PipelineDraft))
    for parameters in ({"p": "9" * 400}, {"p": "-1"}, {"o": "9" * 5000}, {"o": "1.2.-3.x"}, {"all": ""}):
        assert vera.get(url, parameters, follow=True).status_code == 200, parameters
    assert vera.get(url, {"status__exact": "x" * 2001}).status_code == 400


@pytest.mark.parametrize("parameters", [{"status": "active"}, {"status__exact": "active"}, {"deploy_again": "true"}])
def test_the_filters_that_a_list_offers_work(vera: Client, parameters: dict[str, str]) -> None:
    wanted = admin.site._registry[next(m for m in admin.site._registry if m.__name__ == "Deployment")]
    names = {f.parameter_name for f in wanted.list_filter if not isinstance(f, str)}  # type: ignore[union-attr,attr-defined]
    if "deploy_again" in parameters:
        parameters = dict.fromkeys(names, "true")
    assert vera.get(list_url(wanted), parameters).status_code == 200


def test_a_nul_is_refused_on_every_way_in(tenant: Tenant) -> None:
    client = Client()
    client.force_login(tenant.people["alice"])
    assert client.get("/admin/tenancy/organization/%00/change/").status_code == 404
    assert client.get("/admin/?q=%00").status_code == 400
    add = reverse("admin:tenancy_organization_add")
    assert client.post(add, {"name": "a\x00b"}).status_code == 400
    assert client.post(add, {"na\x00me": "b"}).status_code == 400
    kid = f"/orgs/{tenant.organization.pk}/signing-keys"
    answer = tenant.caller("alice").post(f"{kid}/%00/retire")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = tenant.caller("alice").get("/orgs?q=%00")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_filter")


def test_djangos_redirect_to_an_object_elsewhere_is_not_there(vera: Client) -> None:
    assert vera.get("/admin/r/1/abc/").status_code == 404
    assert vera.get("/admin/r/abc/abc/").status_code == 404


@pytest.fixture
def bounded() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs a call in a thread whose new connection ends statements after 0.3 s."""
    options = connections.databases["default"]["OPTIONS"]
    before = dict(options)

    def run(call: Callable[[], Any]) -> Any:
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(call())
            except Exception as error:
                outcome.append(error)
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        return outcome[0]

    bound_statements(seconds=0.3, lock_seconds=0.2)
    try:
        yield run
    finally:
        connection_created.disconnect(dispatch_uid="byteor.bound_statements")
        options.clear()
        options.update(before)


ENDLESS = {
    "postgresql": "SELECT count(*) FROM generate_series(1, 100000000000)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
}


def test_a_statement_of_a_web_process_ends(transactional_db: None, bounded: Callable[..., Any]) -> None:
    def endless_then_next() -> tuple[Exception | None, int]:
        failed: Exception | None = None
        with connection.cursor() as cursor:
            try:
                cursor.execute(ENDLESS[connection.vendor])
                cursor.fetchall()
            except Exception as error:
                failed = error
        return failed, PipelineDraft.objects.count()

    began = time.monotonic()
    failed, count = bounded(endless_then_next)
    assert time.monotonic() - began < 20
    assert failed is not None
    known = as_service_error(failed)
    assert known is not None
    assert (known.status, known.code, count) == (503, "query_timeout", 0)


@pytest.mark.postgres
def test_a_statement_of_a_web_process_waits_for_a_lock_for_some_seconds_only(
    transactional_db: None, bounded: Callable[..., Any]
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite waits for its file, as long as its settings say")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE pipelines_pipelinedraft IN ACCESS EXCLUSIVE MODE")
        failed = bounded(PipelineDraft.objects.count)
    assert failed.__cause__.sqlstate == "55P03"
    known = as_service_error(failed)
    assert known is not None
    assert (known.status, known.code) == (503, "query_timeout")
    assert bounded(PipelineDraft.objects.count) == 0


def test_a_statement_that_waited_before_is_not_ended_for_it(
    transactional_db: None, bounded: Callable[..., Any]
) -> None:
    def slow_caller() -> int:
        PipelineDraft.objects.count()
        time.sleep(0.5)
        return PipelineDraft.objects.count()

    assert bounded(slow_caller) == 0


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "9998-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
    ],
)
def test_a_time_at_the_end_of_the_calendar_is_refused(tenant: Tenant, name: str, moment: str) -> None:
    alice = tenant.caller("alice")
    for path in ("/orgs", "/me/approvals", f"{tenant.path()}/deployments"):
        answer = alice.get(f"{path}?{name}={moment.replace('+', '%2B')}")
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_filter"), path


@pytest.mark.parametrize("moment", ["1970-01-01T00:00:00Z", "1970-01-01T14:00:00+14:00", "9997-12-31T23:59:59-14:00"])
def test_a_time_within_the_calendar_is_answered(tenant: Tenant, moment: str) -> None:
    alice = tenant.caller("alice")
    known = 200 if dt.datetime.fromisoformat(moment) < dt.datetime(9998, 1, 1, tzinfo=dt.UTC) else 400
    for name in ("created_after", "created_before"):
        assert alice.get(f"/orgs?{name}={moment.replace('+', '%2B')}").status_code == known
