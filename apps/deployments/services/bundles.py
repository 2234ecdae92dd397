"""Config bundles: made, and deleted while nobody uses them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core.errors import Conflict, FieldError, NotFound, Unprocessable
from apps.deployments.models import ConfigBundle
from apps.pipelines import selectors as pipelines
from apps.runtime import config as runtime_config
from apps.runtime.faults import fault_point
from apps.runtime.spec import compile_spec
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of


def create_bundle(*, actor: Principal, scope: Scope, version_id: uuid.UUID, config: Mapping[str, Any]) -> ConfigBundle:
    """A version of this environment together with its configuration.

    Raises Unprocessable: `unknown_version`; `invalid_config` with a pointer (into the body, `/config/…`) per problem.
    """
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        here = scope_of(environment)
        try:
            version = pipelines.get_version(here, version_id)
        except NotFound:
            raise Unprocessable(
                "There is no such version in this environment.",
                code="unknown_version",
                errors=[FieldError("/version_id", "unknown_version", "No version of this environment.")],
            ) from None
        problems = runtime_config.check_config(config, compile_spec(version.spec).plan)
        if problems:
            raise Unprocessable(
                "The configuration is not valid.",
                code="invalid_config",
                errors=[FieldError(f"/config{p.pointer}", p.code, p.detail) for p in problems],
            )
        bundle = ConfigBundle.objects.create(
            environment=environment,
            version_id=version.pk,
            version_number=version.number,
            pipeline_name=version.name,
            spec_hash=version.spec_hash,
            config=dict(config),
            config_hash=runtime_config.config_hash(config),
            created_by=actor.id,
            created_by_name=actor.name[:200],
        )
        audit.record(
            organization_id=here.organization_id,
            action="bundle.created",
            actor=actor.ref,
            target=f"bundle:{bundle.pk}",
            scope=here.as_dict(),
            details={
                "version_id": str(version.pk),
                "spec_hash": bundle.spec_hash,
                "config_hash": bundle.config_hash,
            },
        )
        fault_point("deployments.bundle.before_commit")
    fault_point("deployments.bundle.after_commit")
    return bundle


def delete_bundle(*, actor: Principal, scope: Scope, bundle_id: uuid.UUID) -> None:
    """Delete a bundle that no deployment ever used. Raises NotFound, Conflict `bundle_in_use`."""
    with transaction.atomic():
        environment = lock_environment(scope.here.pk)
        here = scope_of(environment)
        rows = ConfigBundle.objects.filter(pk=bundle_id, environment=environment)
        bundle = rows.first()
        if bundle is None:
            raise NotFound()
        deleted, _ = rows.filter(used_at__isnull=True).delete()
        if not deleted:
            raise Conflict("A deployment uses this bundle: it stays as it is.", code="bundle_in_use")
        audit.record(
            organization_id=here.organization_id,
            action="bundle.deleted",
            actor=actor.ref,
            target=f"bundle:{bundle_id}",
            scope=here.as_dict(),
            details={"version_id": str(bundle.version_id), "config_hash": bundle.config_hash},
        )
