"""Rules for every response: no caching, bounded echoes, Location, health checks for any Host, restricted metrics."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, get_resolver

from apps.audit import services as audit
from apps.core import metrics
from apps.jobs.watchdog import _Health
from byteor.logs import OneLine
from tests.api.test_order_of_checks import patterns
from tests.flows.world import SPEC
from tests.support import Caller, Tenant

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _count_anew() -> Iterator[None]:
    metrics.forget()
    yield
    metrics.forget()


def api_routes() -> list[tuple[str, URLPattern]]:
    found = [
        (path.removeprefix("api/v1"), each) for path, each in patterns(get_resolver()) if path.startswith("api/v1/")
    ]
    return [(path, each) for path, each in found if hasattr(each.callback, "cls")]


def test_no_answer_of_the_api_may_be_stored(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    assert len(api_routes()) > 50
    for path, _ in api_routes():
        for name, value in (
            ("<uuid:org_id>", tenant.organization.pk),
            ("<uuid:project_id>", tenant.project.pk),
            ("<uuid:environment_id>", tenant.dev.pk),
        ):
            path = path.replace(name, str(value))
        path = "/".join(str(uuid.UUID(int=7)) if "<" in part else part for part in path.split("/"))
        answer = alice.get(path)
        assert answer["Cache-Control"] == "no-store", path
        assert {"Authorization", "Cookie"} <= set(answer["Vary"].split(", ")), path
        options = alice.raw("OPTIONS", path)
        assert options.content == b"" or options.status_code >= 400, path


def test_a_created_resource_has_a_location(tenant: Tenant) -> None:
    alice, env = tenant.caller("alice"), tenant.path()
    made = [
        alice.post("/orgs", {"name": "New"}),
        alice.post(f"/orgs/{tenant.organization.pk}/projects", {"name": "New"}),
        alice.post(f"/orgs/{tenant.organization.pk}/members", {"email": "new@example.com", "role": "viewer"}),
        alice.post(f"{env}/drafts", {"name": "orders", "spec": SPEC}),
        alice.post(f"{env}/enrollment-tokens", {}),
    ]
    for answer in made:
        assert answer.status_code == 201, answer.content
        assert answer["Location"].endswith(f"/{answer.json()['id']}")
        assert alice.get(answer["Location"].removeprefix("/api/v1")).json()["id"] == answer.json()["id"]
    draft = made[3].json()["id"]
    version = alice.post(f"{env}/drafts/{draft}/promote")
    assert version["Location"] == f"/api/v1{env}/versions/{version.json()['id']}"
    copied = alice.post(f"{env}/versions/{version.json()['id']}/copy", {"to_environment_id": str(tenant.prod.pk)})
    assert copied["Location"] == f"/api/v1{tenant.path(tenant.prod)}/versions/{copied.json()['id']}"
    assert alice.get(copied["Location"].removeprefix("/api/v1")).status_code == 200


def test_only_json_is_answered(tenant: Tenant) -> None:
    answer = tenant.caller("alice").get("/me", accept="text/html")
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


def test_invalid_input_is_echoed_in_part_only(tenant: Tenant) -> None:
    alice = tenant.caller("alice")
    many = alice.post("/orgs", {f"k{n}": 1 for n in range(5000)})
    assert many.status_code == 400
    assert len(many.json()["errors"]) == 50
    assert len(many.content) < 10_000
    long = "k" * 100_000
    asked = (
        alice.post("/orgs", {long: 1}),
        alice.get(f"/orgs?{long[:5000]}=1"),
        alice.get(f"/orgs?q={long[:5000]}"),
        alice.get(f"/me?{long[:5000]}=1"),
        alice.get(f"/orgs?q=a&q={long[:100]}"),
        alice.raw("FOO" * 20, "/orgs"),
        alice.post(
            f"{tenant.path()}/deployments",
            {"bundle_id": str(uuid.uuid4()), "targets": {"all": True}, "strategy": {"type": long}},
        ),
        alice.raw("POST", "/orgs", b"{}", content_type="text/" + long[:5000]),
        alice.get("/orgs", accept="text/" + long[:5000]),
        alice.get("/" + long[:5000]),
        alice.put(f"/orgs/{tenant.organization.pk}", {"name": "x", "slug": long}),
        alice.post(f"/orgs/{tenant.organization.pk}/members", {"email": long, "role": long}),
        alice.post(f"{tenant.path()}/bundles", {"version_id": str(uuid.uuid4()), "config": {long: 1}}),
    )
    for answer in asked:
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 3000, answer.content[:300]


PROBES = ("/healthz", "/readyz", "/metrics")


@pytest.mark.parametrize("path", PROBES)
def test_probes_are_answered_whatever_the_host_also_to_head(settings: Any, path: str) -> None:
    settings.BYTEOR_HOSTED, settings.SECURE_SSL_REDIRECT = True, True
    settings.SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$"]
    settings.BYTEOR_METRICS_TOKEN = "t"
    for host in ("10.0.0.3:8080", "anything.example", "[::1", "a b"):
        for method in ("get", "head"):
            answer = getattr(Client(), method)(path, HTTP_HOST=host, HTTP_AUTHORIZATION="Bearer t")
            assert answer.status_code in ((200, 503) if path == "/readyz" else (200,)), (host, answer.content)
    assert Client().post(path).status_code == 405


@pytest.mark.parametrize("host", ["api.byteor.com", "API.ByteOr.com"])
def test_the_api_host_serves_no_pages_and_takes_no_session_however_it_is_spelled(
    tenant: Tenant, settings: Any, host: str
) -> None:
    settings.BYTEOR_HOSTED, settings.ALLOWED_HOSTS = True, ["api.byteor.com", "cloud.byteor.com"]
    client = Client(HTTP_HOST=host)
    for path in ("/", "/admin/login/", "/auth/login", "/install.sh"):
        assert client.get(path).status_code == 404, path
    client.force_login(tenant.people["alice"])
    answer = client.get("/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (401, "wrong_credential")
    pages = Client(HTTP_HOST="cloud.byteor.com")
    assert pages.get("/admin/login/").status_code == 200
    assert pages.get("/v1/me").status_code == 404


def test_an_answer_states_its_request_id_also_when_its_audit_event_can_not_be_written(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OperationalError("the disk is full")

    charlie = tenant.caller("charlie")
    charlie._client.raise_request_exception = False
    monkeypatch.setattr(audit, "record", refuse)
    answer = charlie.get(tenant.path())
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert answer.json()["request_id"] == answer["X-Request-Id"] != ""


@pytest.mark.parametrize("path", ["/install.sh", "/install/byteor-agent.pyz"])
def test_head_asks_for_an_installer(path: str) -> None:
    answer = Client().head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_metrics_are_for_their_token(settings: Any) -> None:
    def scrape(authorization: str | None = None) -> int:
        extra = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
        return Client().get("/metrics", **extra).status_code

    assert scrape() == 200
    settings.BYTEOR_METRICS_TOKEN = "word"
    assert [scrape(), scrape("Bearer word"), scrape("Bearer é"), scrape("word"), scrape("Bearer ")] == [
        401,
        200,
        401,
        401,
        401,
    ]
    settings.BYTEOR_METRICS_TOKEN, settings.BYTEOR_HOSTED = "", True
    assert scrape("Bearer ") == 401


def test_a_scrape_counts_once_and_names_every_status(tenant: Tenant, django_assert_num_queries: Any) -> None:
    with CaptureQueriesContext(connection) as captured:
        first = Client().get("/metrics").content
    assert len([q for q in captured if "COUNT(" in (q["sql"] or "")]) == 3
    assert b'byteor_jobs{status="dead_letter"} 0.0' in first
    assert b'byteor_deployments{status="active"} 0.0' in first
    assert b"byteor_agents 0.0" in first
    with django_assert_num_queries(0):
        assert Client().get("/metrics").content == first


def test_the_workers_port_has_metrics_too(settings: Any, transactional_db: None) -> None:
    settings.BYTEOR_METRICS_TOKEN = "word"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(method: str, path: str, **headers: str) -> tuple[int, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        found = (answer.status, answer.read())
        client.close()
        return found

    try:
        assert ask("GET", "/metrics")[0] == 401
        status, text = ask("GET", "/metrics", Authorization="Bearer word")
        assert (status, b"byteor_agents" in text) == (200, True)
        assert ask("HEAD", "/healthz") == (200, b"")
        assert ask("GET", "/healthz", Host="anything")[0] == 200
    finally:
        server.shutdown()
        server.server_close()


def test_a_credential_over_plain_http_is_refused_and_not_redirected(tenant: Tenant, settings: Any) -> None:
    settings.BYTEOR_HOSTED, settings.SECURE_SSL_REDIRECT = True, True
    alice = tenant.caller("alice")
    answer = alice.get("/me")
    assert (answer.status_code, answer.json()["code"]) == (403, "https_required")
    assert answer["Content-Type"] == "application/problem+json"
    assert alice.raw("GET", "/me", secure=True).status_code == 200
    assert Client().get("/admin/login/").status_code == 301


def test_a_wrong_host_is_one_line_of_warning(capfd: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord(
        "django.security.DisallowedHost", logging.ERROR, "", 0, "Invalid %s", ("x" * 9000,), None
    )
    try:
        raise ValueError
    except ValueError:
        import sys

        record.exc_info = sys.exc_info()
    assert OneLine().filter(record)
    assert (record.levelname, record.exc_info, len(record.getMessage())) == ("WARNING", None, 300)
    capfd.readouterr()
    answer = Client().get("/api/v1/me", HTTP_HOST="evil.example")
    assert (answer.status_code, json.loads(answer.content)["code"]) == (400, "bad_request")
    lines = [line for line in capfd.readouterr().err.splitlines() if "evil.example" in line]
    assert len(lines) <= 1
    assert "Traceback" not in "".join(lines)


def test_a_report_on_a_deployment_of_others_is_404_whatever_the_body(tenant: Tenant) -> None:
    token = tenant.caller("bob").post(f"{tenant.path()}/enrollment-tokens", {}).json()["token"]
    host = Caller(token).post(f"{tenant.path()}/agents", {"name": "one", "hostname": "one", "version": "1"}).json()
    agent = Caller(host["api_key"])
    for body in (b"{", b"{}", b'{"nonsense": 1}'):
        path = f"/agents/{host['agent_id']}/deployments/{uuid.uuid4()}/status"
        answer = agent.raw("POST", path, body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
