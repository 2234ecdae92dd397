"""The revocation of a key locks the environments of its organization once, in one order."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from apps.core.actors import SYSTEM_ACTOR
from apps.deployments.services.key_revocation import DeploymentsUnderKey
from apps.signing import services as signing
from apps.signing.models import SigningKey
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.services import delete_node
from tests.support import Racer, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_an_environment_that_is_created_during_a_revocation_is_not_locked_out_of_order(
    tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not connection.features.has_select_for_update:
        pytest.skip("no row locks")
    monkeypatch.setattr(settings, "BYTEOR_STORAGE_URL", (tmp_path / "blobs").as_uri())
    alice, scope = tenant.principal("alice"), Scope(tenant.organization)
    former = SigningKey.objects.get(organization=tenant.organization).kid
    signing.rotate(actor=alice, scope=scope)
    lock = DeploymentsUnderKey.lock
    deletions: list[Racer] = []

    def lock_then_create(self: DeploymentsUnderKey, organization_id: uuid.UUID) -> None:
        lock(self, organization_id)
        # made by a server whose clock is behind: its id comes before those that are locked
        new = Environment(id=uuid.UUID(int=1), project=tenant.project, name="new", slug="new", posture="dev")
        assert Racer(lambda: new.save(force_insert=True)).outcome() is None
        project = Scope(tenant.organization, tenant.project)
        deletions.append(Racer(lambda: delete_node(actor=SYSTEM_ACTOR, scope=project, force=True)))
        assert deletions[0].until_it_waits(), "it holds the new environment and waits for another"

    monkeypatch.setattr(DeploymentsUnderKey, "lock", lock_then_create)
    revoked = Racer(lambda: signing.revoke(actor=alice, scope=scope, kid=former).status)
    assert revoked.outcome() == "revoked"
    assert isinstance(deletions[0].outcome(), bool), deletions[0].result
