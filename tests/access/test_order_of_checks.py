"""404 comes before 403: who may look but not touch is not told that what is not there is forbidden."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from apps.access.api import ScopedView
from apps.access.api.base import PARENTS
from apps.audit.models import AuditEvent
from tests.support import Tenant

pytestmark = pytest.mark.django_db

WRITES = ("post", "put", "patch", "delete")


def patterns(resolver: URLResolver, prefix: str = "") -> list[tuple[str, URLPattern]]:
    found: list[tuple[str, URLPattern]] = []
    for item in resolver.url_patterns:
        path = prefix + str(item.pattern)
        if isinstance(item, URLResolver):
            found += patterns(item, path)
        else:
            found.append((path, item))
    return found


def doors() -> list[tuple[str, str]]:
    """(method, path) of every write to something that a path names below an organization, project or environment."""
    found = []
    for path, pattern in patterns(get_resolver()):
        view: Any = getattr(pattern.callback, "cls", None)
        if not path.startswith("api/v1/") or view is None or not issubclass(view, ScopedView):
            continue
        if set(pattern.pattern.converters) - set(PARENTS):
            methods = [m for m in WRITES if hasattr(view, m) and m in view.http_method_names]
            found += [(method, path.removeprefix("api/v1")) for method in methods]
    return found


def test_there_are_as_many_as_we_think() -> None:
    assert len(doors()) >= 20


@pytest.mark.parametrize(("method", "path"), doors())
def test_an_unknown_id_is_404_for_a_viewer_and_not_forbidden(tenant: Tenant, method: str, path: str) -> None:
    known = {
        "<uuid:org_id>": tenant.organization.pk,
        "<uuid:project_id>": tenant.project.pk,
        "<uuid:environment_id>": tenant.dev.pk,
        "<str:kid>": "nobody",
    }
    for name, value in known.items():
        path = path.replace(name, str(value))
    parts = [str(uuid.UUID(int=7)) if part.startswith("<uuid:") else part for part in path.split("/")]
    before = AuditEvent.objects.filter(outcome="denied").count()
    answer = tenant.caller("vera").raw(method.upper(), "/".join(parts), b"{}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert AuditEvent.objects.filter(outcome="denied").count() == before


def test_what_is_there_is_forbidden_and_on_record(tenant: Tenant) -> None:
    bob, vera = tenant.caller("bob"), tenant.caller("vera")
    draft = bob.post(f"{tenant.path()}/drafts", {"name": "orders", "spec": ""}).json()["id"]
    assert vera.delete(f"{tenant.path()}/drafts/{draft}").status_code == 403
    assert AuditEvent.objects.filter(outcome="denied", actor__contains=str(tenant.people["vera"].pk)).count() == 1
    assert tenant.caller("charlie").delete(f"{tenant.path()}/drafts/{draft}").status_code == 404


@pytest.mark.parametrize("verb", ["rollback", "cancel"])
def test_what_is_no_method_of_a_door_is_405(tenant: Tenant, verb: str) -> None:
    for who in ("bob", "vera"):
        assert tenant.caller(who).get(f"{tenant.path()}/deployments/{uuid.UUID(int=7)}/{verb}").status_code == 405
    assert tenant.caller("charlie").get(f"{tenant.path()}/deployments/{uuid.UUID(int=7)}/{verb}").status_code == 404
