"""API of config bundles and of the JSON Schema of their configuration."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.base import ApiView, ScopedView, no_content_response
from apps.api.etags import etag_response
from apps.api.operations import operation
from apps.api.parameters import exact_filter, id_filter, text_filter
from apps.deployments import selectors, services
from apps.deployments.api.documents import LONG_BUNDLE_MEMBERS, BundleDocument, bundle_document
from apps.deployments.api.serializers import BundleInput
from apps.deployments.models import ConfigBundle
from apps.runtime.config import CONFIG_SCHEMA

VIEW, OPERATE = Permission.VIEW_ENVIRONMENT, Permission.OPERATE_ENVIRONMENT


class BundlesView(ScopedView):
    """Config bundles of an environment."""

    @operation(
        VIEW,
        lists=BundleDocument,
        filters={
            "version_id": id_filter("version_id"),
            "config_hash": exact_filter("config_hash"),
            "q": text_filter("pipeline_name", "spec_hash", "config_hash"),
        },
        long_members=LONG_BUNDLE_MEMBERS,
    )
    def get(self, request: Request) -> Response:
        """List the config bundles of the environment."""
        return self.page(selectors.bundles(self.scope), bundle_document)

    @operation(
        OPERATE,
        body=BundleInput,
        answer=BundleDocument,
        status=201,
        errors=("unknown_version", "spec_not_understood", "invalid_config"),
    )
    def post(self, request: Request) -> Response:
        """Create a config bundle."""
        bundle = services.create_bundle(actor=self.principal, scope=self.scope, **self.given)
        return Response(bundle_document(bundle), status=201)


class BundleDetailView(ScopedView):
    """A config bundle. It never changes, and can be deleted only until a deployment uses it."""

    queryset = ConfigBundle.objects.all()
    found: ConfigBundle

    @operation(VIEW, answer=BundleDocument)
    def get(self, request: Request) -> Response:
        """Read a config bundle."""
        tag = f"{self.found.config_hash[7:23]}.{int(self.found.used_at is not None)}"
        return etag_response(request, bundle_document(self.found), tag)

    @operation(OPERATE, status=204, errors=("bundle_in_use",))
    def delete(self, request: Request) -> Response:
        """Delete a config bundle that no deployment used."""
        services.delete_bundle(actor=self.principal, scope=self.scope, bundle_id=self.found.pk)
        return no_content_response()


class ConfigSchemaView(ApiView):
    """The JSON Schema (2020-12) of a bundle's configuration."""

    @operation(answer=dict[str, object])
    def get(self, request: Request) -> Response:
        """Read the JSON Schema (2020-12) of a bundle's configuration."""
        return Response(CONFIG_SCHEMA)
