"""Creation and deletion of config bundles."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from apps.access.principals import Principal
from apps.audit import services as audit
from apps.core.db import require_row
from apps.core.errors import Conflict, FieldError, NotFound, Unprocessable
from apps.deployments.models import ConfigBundle
from apps.pipelines import selectors as pipelines
from apps.runtime import config as runtime_config
from apps.runtime.faults import fault_point
from apps.runtime.spec import compile_spec
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_environment, scope_of


def create_bundle(*, actor: Principal, scope: Scope, version_id: uuid.UUID, config: Mapping[str, Any]) -> ConfigBundle:
    """Create a bundle of a version of this environment and its configuration.

    Raises Unprocessable: `unknown_version`; `spec_not_understood` for a version that only a newer server understands;
    `invalid_config` with a pointer (into the body, `/config/…`) per problem.
    """
    # a version is immutable, so the compilation and validation can precede the lock
    try:
        version = pipelines.get_version(scope, version_id)
    except NotFound:
        raise Unprocessable(
            "The version does not exist in this environment.",
            code="unknown_version",
            errors=[FieldError("/version_id", "unknown_version", "Not a version of this environment.")],
        ) from None
    plan = compile_spec(version.spec).plan
    if plan is None:
        detail = "This server does not understand the spec of the version: a newer one made it."
        raise Unprocessable.about("/version_id", "spec_not_understood", detail)
    problems = runtime_config.check_config(config, plan)
    if problems:
        raise Unprocessable(
            "The configuration is not valid.",
            code="invalid_config",
            errors=[FieldError(f"/config{p.pointer}", p.code, p.detail) for p in problems],
        )
    digest = runtime_config.config_hash(config)
    with transaction.atomic():
        environment = lock_environment(scope.require_environment().pk)
        here = scope_of(environment)
        bundle = ConfigBundle.objects.create(
            environment=environment,
            version_id=version.pk,
            version_number=version.number,
            pipeline_name=version.name,
            spec_hash=version.spec_hash,
            config=dict(config),
            config_hash=digest,
            created_by=actor.id,
            created_by_name=actor.name[:200],
        )
        audit.record_in(
            here,
            action="bundle.created",
            actor=actor.ref,
            target=f"bundle:{bundle.pk}",
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
        environment = lock_environment(scope.require_environment().pk)
        here = scope_of(environment)
        rows = ConfigBundle.objects.filter(pk=bundle_id, environment=environment)
        bundle = require_row(rows)
        deleted, _ = rows.filter(used_at__isnull=True).delete()
        if not deleted:
            raise Conflict("A deployment uses this bundle, so it can't be deleted.", code="bundle_in_use")
        audit.record_in(
            here,
            action="bundle.deleted",
            actor=actor.ref,
            target=f"bundle:{bundle_id}",
            details={"version_id": str(bundle.version_id), "config_hash": bundle.config_hash},
        )
