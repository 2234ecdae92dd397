"""Config bundles over HTTP, and the schema they are checked against."""

from __future__ import annotations

import uuid

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import PersonView, ScopedView
from apps.access.roles import Permission
from apps.core.api import keyset_page, tagged, text_filter
from apps.deployments import selectors, services
from apps.deployments.api.serializers import BundleIn, bundle_body
from apps.runtime.config import CONFIG_SCHEMA


class BundlesView(ScopedView):
    """The environment's config bundles."""

    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT, "POST": Permission.OPERATE_ENVIRONMENT}

    def get(self, request: Request, **_path: uuid.UUID) -> Response:
        filters = {"q": text_filter("pipeline_name", "spec_hash", "config_hash")}
        return keyset_page(request, selectors.bundles(self.scope), bundle_body, filters=filters)

    def post(self, request: Request, **_path: uuid.UUID) -> Response:
        given = self.read(BundleIn)
        bundle = services.create_bundle(
            actor=self.principal, scope=self.scope, version_id=given["version_id"], config=given["config"]
        )
        return Response(bundle_body(bundle), status=201)


class BundleDetailView(ScopedView):
    """One config bundle: never changed, deleted only while no deployment used it."""

    finds = selectors.get_bundle
    level = "environment"
    permissions = {"GET": Permission.VIEW_ENVIRONMENT, "DELETE": Permission.OPERATE_ENVIRONMENT}

    def get(self, request: Request, bundle_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        bundle = selectors.get_bundle(self.scope, bundle_id)
        return tagged(request, bundle_body(bundle), f"{bundle.config_hash[7:23]}.{int(bundle.used_at is not None)}")

    def delete(self, request: Request, bundle_id: uuid.UUID, **_path: uuid.UUID) -> Response:
        services.delete_bundle(actor=self.principal, scope=self.scope, bundle_id=bundle_id)
        return Response(status=204)


class ConfigSchemaView(PersonView):
    """The JSON Schema (2020-12) of a bundle's configuration."""

    def get(self, request: Request) -> Response:
        return Response(CONFIG_SCHEMA)
