"""404 comes before 403: who may read but not write gets 404 for what does not exist."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from apps.api.base import PARENTS, ScopedView
from apps.api.operations import operation_of
from apps.audit.models import AuditEvent
from tests.approvals.test_approvals import ask
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


def endpoints() -> list[tuple[str, str]]:
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


def KNOWN(tenant: Tenant) -> dict[str, object]:
    """Values for the converters of a path."""
    return {
        "<uuid:org_id>": tenant.organization.pk,
        "<uuid:project_id>": tenant.project.pk,
        "<uuid:environment_id>": tenant.dev.pk,
        "<str:kid>": "nobody",
    }


def views() -> list[tuple[str, URLPattern, Any]]:
    """Every view below an organization, project or environment, with its path below the prefix."""
    return [
        (path.removeprefix("api/v1"), pattern, view)
        for path, pattern in patterns(get_resolver())
        if path.startswith("api/v1/")
        and (view := getattr(pattern.callback, "cls", None)) is not None
        and issubclass(view, ScopedView)
    ]


def lists() -> list[tuple[str, str]]:
    """(method, path) of every write whose path names nothing below the tree, enrollment apart."""
    return [
        (method, path)
        for path, pattern, view in views()
        if not set(pattern.pattern.converters) - set(PARENTS) and not path.endswith("/agents")
        for method in WRITES
        if hasattr(view, method) and method in view.http_method_names
    ]


def single_reads() -> list[str]:
    """Paths of GETs that are no lists."""
    declared = [(path, operation_of(view, "GET")) for path, _, view in views()]
    return [path for path, each in declared if each is not None and not each.is_list]


def test_there_are_as_many_as_we_think() -> None:
    assert len(endpoints()) >= 20


@pytest.mark.parametrize(("method", "path"), endpoints())
def test_an_unknown_id_is_404_for_a_viewer_and_not_forbidden(tenant: Tenant, method: str, path: str) -> None:
    for name, value in KNOWN(tenant).items():
        path = path.replace(name, str(value))
    parts = [str(uuid.UUID(int=7)) if part.startswith("<uuid:") else part for part in path.split("/")]
    before = AuditEvent.objects.filter(outcome="denied").count()
    for who in ("vera", "alice"):
        for body in (b"{}", b'{"nonsense": 1}', b"{", b"[]"):
            for query in ("", "?nonsense=1"):
                answer = tenant.caller(who).raw(method.upper(), "/".join(parts) + query, body)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (who, body, query)
    assert AuditEvent.objects.filter(outcome="denied").count() == before


@pytest.mark.parametrize(("method", "path"), lists())
def test_who_may_not_write_gets_403_whatever_the_body(tenant: Tenant, method: str, path: str) -> None:
    for name, value in KNOWN(tenant).items():
        path = path.replace(name, str(value))
    for body in (b'{"nonsense": 1}', b"{"):
        answer = tenant.caller("vera").raw(method.upper(), path + "?nonsense=1", body)
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
        assert tenant.caller("charlie").raw(method.upper(), path + "?nonsense=1", body).status_code == 404


@pytest.mark.parametrize("verb", ["approve", "deny", "revoke"])
def test_a_viewer_who_decides_with_a_wrong_body_is_forbidden(tenant: Tenant, verb: str) -> None:
    approval = ask(tenant, tenant.dev)
    for body in (b'{"nonsense": 1}', b"{", b"{}"):
        answer = tenant.caller("vera").raw("POST", f"{tenant.path()}/approvals/{approval.pk}/{verb}", body)
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    answer = tenant.caller("carol").raw("POST", f"{tenant.path()}/approvals/{approval.pk}/{verb}", b'{"nonsense": 1}')
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize(("path"), single_reads())
def test_an_unknown_parameter_is_refused_after_the_rest(tenant: Tenant, path: str) -> None:
    for name, value in KNOWN(tenant).items():
        path = path.replace(name, str(value))
    unknown = "/".join(str(uuid.UUID(int=7)) if part.startswith("<uuid:") else part for part in path.split("/"))
    answer = tenant.caller("vera").get(f"{unknown}?nonsense=1")
    assert answer.status_code == (404 if unknown != path else 400)
    if unknown == path:
        assert answer.json()["code"] == "bad_parameter"
        outside = path.startswith("/orgs/")
        assert tenant.caller("charlie").get(f"{path}?nonsense=1").status_code == (404 if outside else 400)


def test_what_is_there_is_forbidden_and_on_record(tenant: Tenant) -> None:
    bob, vera = tenant.caller("bob"), tenant.caller("vera")
    draft = bob.post(f"{tenant.path()}/drafts", {"name": "orders", "spec": ""}).json()["id"]
    assert vera.delete(f"{tenant.path()}/drafts/{draft}").status_code == 403
    assert AuditEvent.objects.filter(outcome="denied", actor__contains=str(tenant.people["vera"].pk)).count() == 1
    assert tenant.caller("charlie").delete(f"{tenant.path()}/drafts/{draft}").status_code == 404


@pytest.mark.parametrize("verb", ["rollback", "cancel"])
def test_an_unsupported_method_is_405(tenant: Tenant, verb: str) -> None:
    for who in ("bob", "vera"):
        assert tenant.caller(who).get(f"{tenant.path()}/deployments/{uuid.UUID(int=7)}/{verb}").status_code == 405
    assert tenant.caller("charlie").get(f"{tenant.path()}/deployments/{uuid.UUID(int=7)}/{verb}").status_code == 404
