"""Authenticated details, with tenant scope, roles and every middleware, against Django REST framework's own way.

The other side: `RetrieveAPIView` with a `ModelSerializer` of the same columns, in an application with the middlewares of
`startproject`; a bearer token looked up by its digest together with its user (as `TokenAuthentication` does); one query for the
row that follows the same path, by its ids, up to the organization and requires an active membership of the caller there. It has
no roles per project, no request id, no log line, no entity tag, no content policy and no problem documents; ours has.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from bench.control_plane import Application, bare, control_plane, log_in_a_file, tokens_of
from bench.measure import ratio

STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def main() -> None:
    """Measure and print."""
    with control_plane(), log_in_a_file():
        _measure()


def _plain_view(model: Any, fields: list[str]) -> Any:
    """DRF's generic detail of `model`, which hangs on an environment."""
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.exceptions import AuthenticationFailed
    from rest_framework.generics import RetrieveAPIView
    from rest_framework.permissions import IsAuthenticated
    from rest_framework.serializers import ModelSerializer

    from apps.access.models import PersonalToken
    from apps.core import clock

    class Bearer(BaseAuthentication):
        def authenticate(self, request: Any) -> Any:
            text = request.headers.get("Authorization", "").removeprefix("Bearer ")
            digest = hashlib.sha256(text.encode()).hexdigest()
            token = PersonalToken.objects.select_related("user").filter(sha256=digest).first()
            if token is None or token.revoked_at or token.expires_at <= clock.now() or not token.user.is_active:
                raise AuthenticationFailed
            return token.user, token

    shown = type("Meta", (), {"model": model, "fields": fields})
    serializer = type("Shown", (ModelSerializer,), {"Meta": shown})

    class Detail(RetrieveAPIView):
        authentication_classes = [Bearer]
        permission_classes = [IsAuthenticated]
        serializer_class = serializer

        def get_queryset(self) -> Any:
            return model.objects.filter(
                environment_id=self.kwargs["environment_id"],
                environment__project_id=self.kwargs["project_id"],
                environment__project__organization_id=self.kwargs["org_id"],
                environment__deleted_at__isnull=True,
                environment__project__organization__memberships__user=self.request.user,
                environment__project__organization__memberships__status="active",
            )

    return Detail.as_view()


def _measure() -> None:
    from django.urls import path

    from apps.agents.models import Agent
    from apps.deployments.models import ConfigBundle, Deployment
    from byteor.wsgi import application
    from tests.support import make_tenant

    tenant = make_tenant()
    tokens = tokens_of(tenant.people["vera"])
    environment = tenant.dev
    rows: dict[str, Any] = {
        "agents": Agent.objects.create(environment=environment, name="host", labels={"zone": "a"}),
        "bundles": ConfigBundle.objects.create(
            environment=environment,
            version_id=uuid.uuid4(),
            version_number=1,
            pipeline_name="orders",
            spec_hash="sha256:" + "ab" * 32,
            config={"stages": {"redact": {"rules": ["customer.card:drop"]}}},
            config_hash="sha256:" + "cd" * 32,
        ),
        "deployments": Deployment.objects.create(
            environment=environment,
            bundle_id=uuid.uuid4(),
            version_id=uuid.uuid4(),
            version_number=1,
            pipeline_name="orders",
            spec_hash="sha256:" + "ab" * 32,
            config_hash="sha256:" + "cd" * 32,
            approval_id=uuid.uuid4(),
            target_selector={"all": True},
            strategy={"type": "all_at_once", "max_failures": 0, "auto_rollback": False},
        ),
    }
    where = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"
    ours = Application(application)
    for name, row in rows.items():
        hidden = {"environment", "private"}
        fields = [field.name for field in row._meta.concrete_fields if field.name not in hidden]
        plain_app = bare([path(f"{where}/{name}/<uuid:pk>", _plain_view(type(row), fields))], STARTPROJECT)
        own = f"/api/v1{tenant.path(environment)}/{name}/{row.pk}"
        theirs = f"{tenant.path(environment)}/{name}/{row.pk}"

        def get(app: Application, path_: str) -> None:
            status, body = app.call("GET", path_, token=next(tokens))
            if status != 200 or str(row.pk).encode() not in body:  # noqa: B023  (used before the next one)
                raise SystemExit(f"{path_}: {status} {body[:300]!r}")

        ratio(
            f"GET {name} / ModelSerializer view",
            lambda own=own, get=get: get(ours, own),  # type: ignore[misc]
            lambda theirs=theirs, get=get, app=plain_app: get(app, theirs),  # type: ignore[misc]
            100,
            wanted="<= 0.77 (1.3 times the rate)",
        )


if __name__ == "__main__":
    main()
